"""Fixtures of the tests of the Qwen editor."""

from typing import Any

import pytest
import torch

from artmancer.options import Sampling
from artmancer.qwen import pipeline, sampler


@pytest.fixture
def samplings(monkeypatch: pytest.MonkeyPatch) -> list[Sampling]:
    """The sampler settings of each image that is sampled, in order."""
    settings: list[Sampling] = []
    sample = sampler.sample

    def record(base: pipeline.Base, request: Any, sampling: Sampling, *rest: Any) -> torch.Tensor:
        settings.append(sampling)
        return sample(base, request, sampling, *rest)

    monkeypatch.setattr(sampler, "sample", record)
    return settings
