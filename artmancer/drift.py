"""The shift between an edit and the image, measured outside the mask, and the way back."""

import math

import torch
from torch import Tensor
from torch.nn import functional

_MIN_OUTSIDE = 0.1
"""Smallest share of the crop that must lie outside the mask; with less, no shift is measured."""

_SOFT_EDGE = 8.0
"""Standard deviation, in pixels, of the Gaussian that softens the edge of the hole."""

_CUTOFF = 0.1
"""Standard deviation of the low-pass, in cycles per pixel. Above it, resampling and noise have
spoiled the phases.
"""

_STEP = 0.02
"""Step of the fine grid on which the peak is searched, in pixels."""

_MIN_AGREEMENT = 0.2
"""Smallest peak of the correlation that counts, as a share of the peak of two equal images."""

Shift = tuple[float, float]
"""(down, right) in pixels."""


def drift(after: Tensor, before: Tensor, outside: Tensor) -> list[Shift | None]:
    """Measure the shift between two images, by phase correlation.

    Phase correlation after Kuglin and Hines (1975), with a low-pass. Its peak is searched on a fine
    grid as in Guizar-Sicairos, Thurman and Fienup (2008). Shifts down to about 0.05 pixels differ
    from no shift.

    cv2.phaseCorrelate is not used: it has no low-pass, and was off by half a pixel for odd DFT
    sizes.

    Parameters
    ----------
    after, before : IMAGE [B, h, w, 3]
    outside : bool [B, h, w], True where the edit should have left the image alone

    Returns
    -------
    the shift of each image of the batch; None where it cannot be measured: less than a tenth of the
    image is outside, or the two have nothing in common there
    """
    import cv2

    height, width = outside.shape[1:]
    window = torch.from_numpy(cv2.createHanningWindow((width, height), cv2.CV_32F))
    shifts: list[Shift | None] = []
    for new, old, kept in zip(after.mean(-1), before.mean(-1), outside, strict=True):
        if kept.float().mean() < _MIN_OUTSIDE:
            shifts.append(None)
            continue
        # The edge of the hole stands still in both images. A sharp edge would be the strongest
        # match, at a shift of 0. The blur is 1/2 at the edge; there the weight starts, with 0.
        blurred = torch.from_numpy(cv2.GaussianBlur(kept.float().numpy(), (0, 0), _SOFT_EDGE))
        weight = blurred.mul_(2).sub_(1).clamp_(0, 1)
        weighted_old = (old - old[kept].mean()) * weight * window
        weighted_new = (new - new[kept].mean()) * weight * window
        shifts.append(_shift(weighted_old, weighted_new))
    return shifts


def realign(after: Tensor, shift: Shift) -> Tensor:
    """Move an edited image [h, w, 3] back by the shift that `drift` measured. Where the
    moved image would be empty, the edge pixels are repeated.
    """
    height, width = after.shape[:2]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    down, right = shift
    # grid_sample's coordinates are -1..1 from edge to edge.
    grid = torch.stack([(2 * (x + right) + 1) / width - 1, (2 * (y + down) + 1) / height - 1], -1)
    planes = functional.grid_sample(
        after.movedim(-1, 0)[None],
        grid[None],
        mode="bicubic",
        padding_mode="border",
        align_corners=False,
    )
    return planes[0].movedim(0, -1).clamp(0, 1)


def _shift(old: Tensor, new: Tensor) -> Shift | None:
    """Return the shift from old [h, w] to new [h, w]; None where no shift makes them agree."""
    height, width = old.shape
    y, x = torch.fft.fftfreq(height).unsqueeze(1), torch.fft.fftfreq(width).unsqueeze(0)
    cross = torch.fft.fft2(new) * torch.fft.fft2(old).conj()
    low_pass = torch.exp(-(y**2 + x**2) / (2 * _CUTOFF**2))
    # The phases alone; clamped, because an amplitude may be 0.
    cross = cross / cross.abs().clamp(min=1e-12) * low_pass
    correlation = torch.fft.ifft2(cross).real
    # Two equal images have all phases 0, and the low-pass's mean as their peak.
    if correlation.max() < _MIN_AGREEMENT * low_pass.mean():
        return None
    down, right = divmod(int(correlation.argmax()), width)
    # The DFT is periodic: indices in the upper half are negative shifts.
    down -= height * (down > height // 2)
    right -= width * (right > width // 2)
    # One pixel around the peak, evaluated on the fine grid by a DFT as two matrix products.
    fine = torch.arange(-1, 1 + _STEP / 2, _STEP)
    rows = torch.exp(2j * math.pi * (down + fine).unsqueeze(1) * y.T)
    columns = torch.exp(2j * math.pi * x.T * (right + fine).unsqueeze(0))
    peak = (rows @ cross @ columns).real
    row, column = divmod(int(peak.argmax()), len(fine))
    return down + float(fine[row]), right + float(fine[column])
