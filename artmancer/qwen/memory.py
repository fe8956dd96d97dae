"""Where the base's three models lie while one of them works."""

from collections.abc import Callable
from typing import Any

import torch

PARTS = ("text_encoder", "transformer", "vae")

Bring = Callable[[str], None]
"""Called with the name of a part before it is used: the part is then on the device it computes on."""


def all_on(pipeline: Any, device: torch.device) -> Bring:
    """All three on the device, always."""
    pipeline.to(device)
    return lambda part: None


def one_at_a_time(pipeline: Any, device: torch.device) -> Bring:
    """Only the part at work on the device, the others in the CPU's memory."""

    def bring(part: str) -> None:
        for other in PARTS:
            if other != part:
                getattr(pipeline, other).to("cpu")
        getattr(pipeline, part).to(device)

    return bring


def choose(pipeline: Any, device: torch.device) -> Bring:
    """All on the device where they fit into what is free there, with a third left for the work; else one at a time."""
    if device.type != "cuda":
        return all_on(pipeline, device)
    free, _ = torch.cuda.mem_get_info(device)
    size = sum(parameter.nbytes for part in PARTS for parameter in getattr(pipeline, part).parameters())
    return all_on(pipeline, device) if size < free * 2 / 3 else one_at_a_time(pipeline, device)
