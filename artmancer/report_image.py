"""A report as a picture."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

WIDTH, LINE, MARGIN = 520, 24, 16
_BACK, _TEXT, _FAINT, _BAR, _WARN = "#202124", "#e8eaed", "#9aa0a6", "#e37400", "#f28b82"
GOOD_PSNR = 30.0
"""dB: an edit that is closer to the photo than this where it should have left it alone
has kept it.
"""
MUCH_DRIFT = 0.5
"""Pixels of the crop: less is not seen."""


def draw(report: Mapping[str, Any]) -> Tensor:
    """A report, as Edit Sampler gives it in JSON, as an IMAGE [1, h, 520, 3]: who edited, bars of
    the seconds a stage took, and what the edit did where it should not.
    """
    seconds: Mapping[str, float] = report["seconds"]
    kept, moved, spilled = report["outside_psnr_raw"], report["drift_px"], report["spill"]
    figures = [
        (
            "kept outside the mask",
            _decibel(kept),
            isinstance(kept, float)
            and kept < GOOD_PSNR
            and report["variant"] != "white_balance",  # it is to change all that it sees
        ),
        ("after stitching", _decibel(report["outside_psnr"]), False),
        (
            "drift",
            "not told" if moved is None else f"{moved:.2f} px",
            moved is not None and moved > MUCH_DRIFT,
        ),
        ("realigned", "yes" if report["realigned"] else "no", False),
        (
            "changed around the mask",
            f"{100 * spilled:.1f} % of the crop",
            spilled > 0 and not report["widened"],
        ),
    ]
    font = ImageFont.load_default(14)
    conditions = _wrapped(report["conditions"], font)
    top = 1 + len(conditions)
    height = MARGIN * 2 + LINE * (len(seconds) + len(figures) + top + 2)
    picture = Image.new("RGB", (WIDTH, height), _BACK)
    pen = ImageDraw.Draw(picture)

    def line(row: float, left: str, right: str = "", color: str = _TEXT) -> None:
        y = MARGIN + row * LINE
        pen.text((MARGIN, y), left, _TEXT, font)
        pen.text((WIDTH - MARGIN, y), right, color, font, anchor="ra")

    crop_height, crop_width = report["crop_size"]
    seed = "" if report["seed"] is None else f"seed {report['seed']}, "
    line(0, report["editor"], f"{seed}crop {crop_width}x{crop_height}", _FAINT)
    for row, said in enumerate(conditions, 1):
        line(row, said)
    longest = max([*seconds.values(), 1e-9])
    for row, (stage, value) in enumerate(seconds.items(), top):
        line(row + 0.5, stage, f"{value:.2f} s")
        y, room = MARGIN + (row + 0.5) * LINE, WIDTH - 2 * MARGIN - 190
        pen.rectangle((MARGIN + 110, y + 3, MARGIN + 111 + room * value / longest, y + 14), _BAR)
    for row, (name, said, bad) in enumerate(figures, len(seconds) + top + 1):
        line(row, name, said, _WARN if bad else _TEXT)
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return pixels.view(1, height, WIDTH, 3).float() / 255


def _wrapped(names: Sequence[str], font: Any) -> list[str]:
    """The names in lines that fit."""
    lines = [""]
    for name in names:
        longer = f"{lines[-1]}, {name}" if lines[-1] else name
        if font.getlength(longer) <= WIDTH - 2 * MARGIN:
            lines[-1] = longer
        else:
            lines.append(name)
    return lines


def _decibel(value: float | str | None) -> str:
    if value is None:
        return "nothing is outside"
    return "exactly" if value == "infinite" else f"{value} dB"
