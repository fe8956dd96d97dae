"""How far an edit moved what it should have left alone, and how it is moved back."""

import math

import torch
from torch import Tensor
from torch.nn import functional

_CUTOFF = 0.1  # cycles per pixel: above, resampling and noise have spoiled the phases
_STEP = 0.02  # pixels
_AGREEMENT = 0.2  # of the peak that two equal pictures have


Shift = tuple[float, float]
"""(down, right) in pixels."""


def drift(after: Tensor, before: Tensor, outside: Tensor) -> list[Shift | None]:
    """The shifts between two pictures, by phase correlation.

    Phase correlation after Kuglin and Hines (1975), its peak sought on a fine grid as in
    Guizar-Sicairos, Thurman and Fienup (2008). Shifts down to about 0.05 pixels are told from none.

    Parameters
    ----------
    after, before : IMAGE [B, h, w, 3]
    outside : bool [B, h, w], what the edit should have left alone

    Returns
    -------
    One for each picture of the batch; None where it cannot be told: less than a tenth of it is
    outside, or the two have nothing in common there.
    """
    import cv2

    height, width = outside.shape[1:]
    window = torch.from_numpy(cv2.createHanningWindow((width, height), cv2.CV_32F))
    moved: list[Shift | None] = []
    for new, old, kept in zip(after.mean(-1), before.mean(-1), outside, strict=True):
        if kept.float().mean() < 0.1:
            moved.append(None)
            continue
        # The edge of the hole stands still in both pictures:
        # it has to be soft, or it would be what is found.
        soft = (
            torch.from_numpy(cv2.GaussianBlur(kept.float().numpy(), (0, 0), 8))
            .mul_(2)
            .sub_(1)
            .clamp_(0, 1)
        )
        moved.append(_shift(*((one - one[kept].mean()) * soft * window for one in (old, new))))
    return moved


def realign(after: Tensor, moved: Shift) -> Tensor:
    """Move an edited picture [h, w, 3] back by the shift that `drift` found; past the edges, which
    moved into it, their pixels are repeated.
    """
    height, width = after.shape[:2]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    down, right = moved
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
    """From old [h, w] to new [h, w]; None where no shift makes them agree."""
    height, width = old.shape
    y, x = torch.fft.fftfreq(height).unsqueeze(1), torch.fft.fftfreq(width).unsqueeze(0)
    cross = torch.fft.fft2(new) * torch.fft.fft2(old).conj()
    weight = torch.exp(-(y**2 + x**2) / (2 * _CUTOFF**2))
    cross = cross / cross.abs().clamp(min=1e-12) * weight
    correlation = torch.fft.ifft2(cross).real
    if correlation.max() < _AGREEMENT * weight.mean():
        return None
    down, right = divmod(int(correlation.argmax()), width)
    down, right = down - height * (down > height // 2), right - width * (right > width // 2)
    fine = torch.arange(-1, 1 + _STEP / 2, _STEP)
    peak = torch.exp(2j * math.pi * (down + fine).unsqueeze(1) * y.T) @ cross
    peak = (peak @ torch.exp(2j * math.pi * x.T * (right + fine).unsqueeze(0))).real
    row, column = divmod(int(peak.argmax()), len(fine))
    return down + float(fine[row]), right + float(fine[column])
