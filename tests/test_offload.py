"""Models on a device and back: what is copied, and what stays."""

from typing import Any

import pytest
import torch
from torch import nn

from artmancer.offload import move_model, unload_model
from artmancer.progress import no_progress

DEVICE = torch.device("meta")
"""A device that any machine has, and from which nothing can be copied back."""


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2, bias=False))


def test_weights_that_did_not_change_are_not_copied_back() -> None:
    moved = model()
    before = {name: (value, value.clone()) for name, value in moved.state_dict().items()}
    for _ in range(2):
        move_model(moved, DEVICE, no_progress)
        assert {value.device for value in moved.state_dict().values()} == {DEVICE}
        # A copy from this device would fail.
        unload_model(moved)
        for name, value in moved.state_dict().items():
            assert value.data_ptr() == before[name][0].data_ptr()
            assert torch.equal(value, before[name][1])


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("change", ["in place", "replaced"])
def test_a_weight_that_was_changed_on_the_device_is_copied_back(change: str, mode: Any) -> None:
    with mode():
        moved = model()
        move_model(moved, DEVICE, no_progress)
        if change == "in place":
            moved[0].weight.fill_(2)
        else:
            moved[0].weight = nn.Parameter(torch.empty(4, 4, device=DEVICE))
        with pytest.raises(NotImplementedError, match="Cannot copy out of meta"):
            unload_model(moved)


def test_weights_move_in_inference_mode_too() -> None:
    with torch.inference_mode():
        moved = model()
        before = moved.state_dict()
        move_model(moved, torch.device("cpu", 0), no_progress)
        move_model(moved, DEVICE, no_progress)
        unload_model(moved)
        assert all(torch.equal(value, before[name]) for name, value in moved.state_dict().items())


def test_a_weight_keeps_its_requirement_of_a_gradient() -> None:
    moved = model().requires_grad_(False)
    move_model(moved, DEVICE, no_progress)
    assert not any(parameter.requires_grad for parameter in moved.parameters())
