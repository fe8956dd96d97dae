"""A report drawn as an image."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

WIDTH = 520
"""Width of the image in pixels."""

GOOD_PSNR = 30.0
"""Smallest PSNR, in dB, outside the mask with which an edit counts as having kept the photo."""

MUCH_DRIFT = 0.5
"""Largest drift, in pixels of the crop, that is not visible."""

LINE = 24
"""Height of a line in pixels."""

_MARGIN = 16
"""Border around the text in pixels."""

_FONT_SIZE = 14

_HEADLINE_SIZE = 40
"""Size of the verdict's font. It can be read where the node is drawn at a third of its size."""

_BAR_LEFT = 110
"""Space for the name of a stage, in pixels."""

_BAR_RIGHT = 80
"""Space for the seconds of a stage, in pixels."""

_BAR_ROWS = (3, 14)
"""First and last row of a bar, in pixels from the top of its line."""

_BACKGROUND = "#202124"
_TEXT = "#e8eaed"
_FAINT = "#9aa0a6"
_BAR = "#e37400"
_WARNING = "#f28b82"
_VERDICT_COLORS = {"good": "#81c995", "look": "#fdd663", "failed": _WARNING}


class _Figure(NamedTuple):
    """A line of the report.

    Attributes
    ----------
    name : name of the figure
    text : its value, with the unit
    bad : whether it is drawn as a warning
    """

    name: str
    text: str
    bad: bool = False


def draw(report: Mapping[str, Any]) -> Tensor:
    """Draw a report: the verdict, the editor, the conditions, bars of the seconds of each stage,
    and the changes of the edit where it should have changed nothing.

    Parameters
    ----------
    report : as Report.as_dict returns it; it may come from JSON

    Returns
    -------
    IMAGE [1, h, WIDTH, 3]
    """
    seconds: Mapping[str, float] = report["seconds"]
    figures = _figures(report)
    font = ImageFont.load_default(_FONT_SIZE)
    conditions = _wrap(report["conditions"], font)
    top = 1 + len(conditions)
    notes = [line for note in report.get("notes", ()) for line in _wrap(note.split(), font, " ")]
    # A report of an earlier version has no verdict.
    word = report.get("verdict", "")
    sentences = report.get("verdict_reasons", ())
    reasons = [line for sentence in sentences for line in _wrap(sentence.split(), font, " ")]
    end = top + len(seconds) + len(figures) + 2 + len(notes)
    # The verdict and its reasons come first. The verdict takes two lines.
    head = 2 * bool(word) + len(reasons)
    # Half a line is empty above the bars and below them, and one line below the figures.
    height = 2 * _MARGIN + LINE * (head + end)
    image = Image.new("RGB", (WIDTH, height), _BACKGROUND)
    pen = ImageDraw.Draw(image)

    def line(row: float, left: str, right: str = "", color: str = _TEXT) -> None:
        y = _MARGIN + (head + row) * LINE
        pen.text((_MARGIN, y), left, _TEXT, font)
        pen.text((WIDTH - _MARGIN, y), right, color, font, anchor="ra")

    crop_height, crop_width = report["crop_size"]
    seed = "" if report["seed"] is None else f"seed {report['seed']}, "
    line(0, report["editor"], f"{seed}crop {crop_width}x{crop_height}", _FAINT)
    for row, text in enumerate(conditions, 1):
        line(row, text)
    # Not 0, because the seconds are divided by it.
    longest = max([*seconds.values(), 1e-9])
    left = _MARGIN + _BAR_LEFT
    full_length = WIDTH - _MARGIN - _BAR_RIGHT - left
    for row, (stage, value) in enumerate(seconds.items(), top):
        line(row + 0.5, stage, f"{value:.2f} s")
        y = _MARGIN + (head + row + 0.5) * LINE
        right = left + 1 + full_length * value / longest
        pen.rectangle((left, y + _BAR_ROWS[0], right, y + _BAR_ROWS[1]), _BAR)
    for row, figure in enumerate(figures, top + len(seconds) + 1):
        line(row, figure.name, figure.text, _WARNING if figure.bad else _TEXT)
    for row, note in enumerate(notes, top + len(seconds) + len(figures) + 2):
        line(row, note)
    if word:
        headline = ImageFont.load_default(_HEADLINE_SIZE)
        pen.text((_MARGIN, _MARGIN - LINE / 4), f"verdict: {word}", _VERDICT_COLORS[word], headline)
    for row, reason in enumerate(reasons, -len(reasons)):
        line(row, reason)
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(1, height, WIDTH, 3).float() / 255


def _figures(report: Mapping[str, Any]) -> list[_Figure]:
    psnr, drift, spill = report["outside_psnr_raw"], report["drift_px"], report["spill"]
    # A white balance is meant to change the whole image.
    is_local = report["variant"] != "white_balance"
    changed = is_local and isinstance(psnr, float) and psnr < GOOD_PSNR
    drifted = drift is not None and drift > MUCH_DRIFT
    return [
        _Figure("kept outside the mask", _decibel(psnr), changed),
        _Figure("after stitching", _decibel(report["outside_psnr"])),
        _Figure("drift", "not measured" if drift is None else f"{drift:.2f} px", drifted),
        *_movement(report.get("registration")),
        _Figure("realigned", "yes" if report["realigned"] else "no"),
        _Figure(
            "changed around the mask",
            f"{100 * spill:.1f} % of the crop",
            spill > 0 and not report["widened"],
        ),
        *_grain_figures(report),
        *_part_figures(report.get("regions", ())),
    ]


def _part_figures(rows: Sequence[Mapping[str, Any]]) -> list[_Figure]:
    """Return a line for each part of a mask; none for a single one."""
    return [
        _Figure(
            f"part {number}: crop {row['crop_size'][1]}x{row['crop_size'][0]}",
            f"{sum(row['seconds'].values()):.2f} s, {row['verdict']}",
            row["verdict"] != "good",
        )
        for number, row in enumerate(rows, 1)
        if len(rows) > 1
    ]


def _grain_figures(report: Mapping[str, Any]) -> list[_Figure]:
    if report.get("grain") is None:
        return []
    return [
        _Figure("grain added", f"{report['grain']:.1f} levels"),
        _Figure("sharpened by", f"{100 * report['sharpening']:.0f} %"),
    ]


def _movement(registration: Mapping[str, Any] | None) -> list[_Figure]:
    """Return the line on zoom and rotation; none where they were not measured, or in the report of
    an older version.
    """
    if registration is None:
        return []
    zoom, rotation = registration["zoom"], registration["rotation"]
    return [_Figure("zoom and rotation", f"{100 * (zoom - 1):+.2f} %, {rotation:+.2f} degrees")]


def _wrap(names: Sequence[str], font: Any, separator: str = ", ") -> list[str]:
    """Join the names, in as many lines as they need."""
    lines = [""]
    for name in names:
        longer = f"{lines[-1]}{separator}{name}" if lines[-1] else name
        if font.getlength(longer) <= WIDTH - 2 * _MARGIN:
            lines[-1] = longer
        else:
            lines.append(name)
    return lines


def _decibel(value: float | str | None) -> str:
    if value is None:
        return "nothing is outside"
    return "exactly" if value == "infinite" else f"{value} dB"
