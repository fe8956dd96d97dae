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
def test_against_scipy(seed: int, density: float, pixels: int) -> None:
    mask = (torch.rand(2, 40, 55, generator=torch.Generator().manual_seed(seed)) < density).float()
    mask[:, 3, 4] = 1
    shape = mask.numpy() > 0
    far = np.stack([distance_transform_edt(~one) for one in shape])
    assert (mask_ops.grow(mask, pixels).numpy() == (far <= pixels)).all()
    assert (
        mask_ops.fill_holes(mask).numpy() == np.stack([binary_fill_holes(one) for one in shape])
    ).all()
    faded = mask_ops.feather(mask, pixels).numpy()
    assert ((faded == 0) == (far >= pixels - 1e-4)).all()
    assert (faded[shape] == 1).all()


def test_feather_falls_evenly_and_keeps_soft_values() -> None:
    mask = disc(100, 100, 50, 50, 10)
    mask[0, 50, 70] = 0.3
    faded = mask_ops.feather(mask, 16)[0, 50, 60:78]
    assert faded[10] == pytest.approx(0.3156, abs=0.01) and (faded[:9].diff() <= 0).all()
    assert mask_ops.feather(mask * 0.4, 16).sum() == (mask * 0.4).sum(), "too soft to have a shape"


@pytest.mark.parametrize("shape", [torch.zeros(1, 5, 5), torch.ones(1, 5, 5), torch.ones(1, 1, 1)])
def test_empty_and_full_masks_stay(shape: torch.Tensor) -> None:
    for result in (mask_ops.grow(shape, 3), mask_ops.fill_holes(shape), mask_ops.feather(shape, 3)):
        assert torch.equal(result, shape)
