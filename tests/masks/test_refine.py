"""BiRefNet's refinement of a mask, with an ONNX file of BiRefNet's shape whose output is the red
channel: it sees red objects, with their soft edges.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support import rembg_weights
from support.images import disc
from torch import Tensor

from artmancer import mask_ops, matting
from artmancer.masks.refine import refine

RED, GREEN = torch.tensor([0.9, 0.1, 0.1]), torch.tensor([0.1, 0.8, 0.1])

TOLERANCE = 0.1
"""Largest difference of the mask from alpha: rembg puts BiRefNet's output through a sigmoid, and
resizes it.
"""


@pytest.fixture
def subject(tmp_path: Path, compiled_rembg: None) -> Callable[[Tensor], Tensor]:
    pytest.importorskip("rembg")
    path = tmp_path / "birefnet-general.onnx"
    path.write_bytes(rembg_weights.onnx("Identity", side=1024))
    assert matting.installed_birefnet([tmp_path]) == "birefnet-general"
    remover = matting.Remover("birefnet-general", path)
    return lambda image: remover.cut_out(image, decontaminate=False).mask


def red_on_green(alpha: Tensor) -> Tensor:
    """Return an IMAGE of red objects with this alpha, a MASK."""
    size = (*alpha.shape, 3)
    return torch.lerp(GREEN.expand(size), RED.expand(size), alpha.unsqueeze(-1))


def test_the_edge_becomes_as_soft_as_in_the_photo(subject: Callable[[Tensor], Tensor]) -> None:
    alpha = mask_ops.feather(disc(200, 260, 100, 90, 50), 8)
    found = (alpha > 0.5).float()
    refined = refine(red_on_green(alpha), found, subject)
    assert refined is not None and refined.shape == found.shape
    near = mask_ops.grow(found, 5) > 0
    assert (refined - alpha)[near].abs().max() < TOLERANCE
    assert (found - alpha)[near].abs().max() > 0.4


def test_another_object_beside_it_is_left_out(subject: Callable[[Tensor], Tensor]) -> None:
    other = disc(200, 260, 100, 160, 8)
    found = disc(200, 260, 100, 90, 50)
    refined = refine(red_on_green(found + other), found, subject)
    assert refined is not None
    assert refined[other > 0].max() == 0
    assert refined[found > 0].mean() > 0.9


def test_of_a_touching_object_at_most_a_narrow_strip_is_added(
    subject: Callable[[Tensor], Tensor],
) -> None:
    found = torch.zeros(1, 200, 400)
    found[:, 50:150, 50:150] = 1
    both = found.clone()
    both[:, 50:150, 150:250] = 1
    refined = refine(red_on_green(both), found, subject)
    assert refined is not None
    assert refined[:, :, 154:].max() == 0


def test_an_object_at_the_border_is_refined(subject: Callable[[Tensor], Tensor]) -> None:
    alpha = mask_ops.feather(disc(80, 120, 0, 119, 30), 4)
    found = (alpha > 0.5).float()
    refined = refine(red_on_green(alpha), found, subject)
    assert refined is not None
    near = mask_ops.grow(found, 2) > 0
    assert (refined - alpha)[near].abs().max() < TOLERANCE


def test_what_birefnet_does_not_see_is_not_refined(subject: Callable[[Tensor], Tensor]) -> None:
    image = red_on_green(disc(200, 260, 100, 90, 50))
    assert refine(image, disc(200, 260, 100, 150, 20), subject) is None
    assert refine(image, torch.zeros(1, 200, 260), subject) is None


def test_without_a_birefnet_model_none_is_chosen(tmp_path: Path) -> None:
    (tmp_path / "u2net.onnx").touch()
    assert matting.installed_birefnet([tmp_path]) is None
