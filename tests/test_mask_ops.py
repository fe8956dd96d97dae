"""Grow, feather and fill masks."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_fill_holes, distance_transform_edt
from support.images import disc

from artmancer import mask_ops


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), density=st.floats(0.001, 0.9), pixels=st.integers(1, 30))
def test_grow_fill_holes_and_feather_agree_with_scipy(
    seed: int, density: float, pixels: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    mask = (torch.rand(2, 40, 55, generator=random) < density).float()
    mask[:, 3, 4] = 1
    inside = mask.numpy() > 0
    distance = np.stack([distance_transform_edt(~plane) for plane in inside])
    filled = np.stack([binary_fill_holes(plane) for plane in inside])
    assert (mask_ops.grow(mask, pixels).numpy() == (distance <= pixels)).all()
    assert (mask_ops.fill_holes(mask).numpy() == filled).all()
    feathered = mask_ops.feather(mask, pixels).numpy()
    assert ((feathered == 0) == (distance >= pixels - 1e-4)).all()
    assert (feathered[inside] == 1).all()


def test_feather_falls_evenly_and_keeps_soft_values() -> None:
    mask = disc(100, 100, 50, 50, 10)
    mask[0, 50, 70] = 0.3
    row = mask_ops.feather(mask, 16)[0, 50, 60:78]
    assert row[10] == pytest.approx(0.3156, abs=0.01)
    assert (row[:9].diff() <= 0).all()
    faint = mask * 0.4
    assert mask_ops.feather(faint, 16).sum() == faint.sum(), "a mask below 0.5 gets no fade"


@pytest.mark.parametrize("mask", [torch.zeros(1, 5, 5), torch.ones(1, 5, 5), torch.ones(1, 1, 1)])
def test_empty_and_full_masks_stay_unchanged(mask: torch.Tensor) -> None:
    for result in (mask_ops.grow(mask, 3), mask_ops.fill_holes(mask), mask_ops.feather(mask, 3)):
        assert torch.equal(result, mask)
