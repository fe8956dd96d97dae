from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor

from artmancer import images

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "workflows" / "examples"


@pytest.fixture(scope="session")
def example() -> Callable[[str], Tensor]:
    """An example photo as an IMAGE, or, where its name ends in _mask, a MASK."""

    def load(name: str) -> Tensor:
        path = EXAMPLES / f"{name}.png"
        return images.load_mask(path) if name.endswith("_mask") else images.load(path).image

    return load
