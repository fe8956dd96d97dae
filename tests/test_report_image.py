"""Image of a report."""

from typing import Any

import torch
from PIL import Image
from support.paths import BUILD

from artmancer import images, report_image
from artmancer.report_image import LINE

REPORT: dict[str, Any] = {
    "editor": "qwen-image-edit/removal",
    "variant": "removal",
    "conditions": ["mask", "background", "object"],
    "seed": 7,
    "crop_size": [512, 640],
    "seconds": {"crop": 0.01, "split": 0.02, "edit": 12.5, "stitch": 0.05},
    "outside_psnr_raw": 34.2,
    "outside_psnr": "infinite",
    "drift_px": 0.12,
    "realigned": True,
    "spill": 0.0,
    "widened": False,
}


WARNING_COLOR = torch.tensor([0xF2, 0x8B, 0x82])
"""Red of a warning, in 8-bit levels."""

TOLERANCE = 24
"""Largest difference from WARNING_COLOR, in 8-bit levels, that counts as a warning's color."""


def count_red(report: dict[str, Any]) -> int:
    """Return the number of pixels in the color of warnings."""
    image = images.to_uint8(report_image.draw(report)[0]).int()
    return int(((image - WARNING_COLOR).abs().amax(-1) < TOLERANCE).sum())


def test_unusual_values_are_red() -> None:
    image = report_image.draw(REPORT)
    assert image.shape[0] == 1
    assert image.shape[2:] == (report_image.WIDTH, 3)
    assert count_red(REPORT) == 0
    # To look at it.
    BUILD.mkdir(exist_ok=True)
    Image.fromarray(images.to_uint8(image[0]).numpy()).save(BUILD / "report.png")
    for values in ({"outside_psnr_raw": 22.0}, {"drift_px": 3.0}, {"spill": 0.02}):
        assert count_red({**REPORT, **values}) > 50, values
    assert count_red({**REPORT, "spill": 0.02, "widened": True}) == 0
    balanced = {**REPORT, "variant": "white_balance", "outside_psnr_raw": 19.0}
    assert count_red(balanced) == 0, "white balance changes the whole crop on purpose"


def test_an_unknown_value_is_shown_as_unknown_without_a_warning() -> None:
    known = report_image.draw(REPORT)
    for name in ("outside_psnr_raw", "outside_psnr", "drift_px", "seed"):
        report = {**REPORT, name: None}
        assert not torch.equal(report_image.draw(report), known), name
        assert count_red(report) == 0, name
    assert report_image.draw({**REPORT, "seconds": {}}).shape[1] < known.shape[1]


def test_notes_take_lines_of_their_own() -> None:
    note = "loras/removal_cp.safetensors is not used: artmancer/removal_cp.safetensors comes first."
    image = report_image.draw({**REPORT, "notes": [note]})
    without = report_image.draw(REPORT)
    assert image.shape[1] > without.shape[1]
    added = image[:, without.shape[1] - report_image.LINE :]
    assert added.amax() > 0.8, "the text is drawn"


def test_added_grain_takes_lines_of_its_own() -> None:
    off = report_image.draw({**REPORT, "grain": None, "sharpening": None})
    assert torch.equal(off, report_image.draw(REPORT))
    image = report_image.draw({**REPORT, "grain": 4.2, "sharpening": 0.5})
    assert image.shape[1] == off.shape[1] + 2 * report_image.LINE


def test_many_conditions_take_more_lines() -> None:
    names = ["mask", "background", "object", *(f"extra {number}" for number in range(1, 9))]
    image = report_image.draw({**REPORT, "conditions": names})
    assert image.shape[1] > report_image.draw(REPORT).shape[1]


def test_zoom_and_rotation_have_a_line_where_they_were_measured() -> None:
    without = report_image.draw(REPORT)
    registration = {
        "shift": [0.1, 0.2],
        "zoom": 1.012,
        "rotation": -0.3,
        "error_before": 4.0,
        "error_after": 0.4,
    }
    image = report_image.draw({**REPORT, "registration": registration})
    assert image.shape[1] == without.shape[1] + report_image.LINE
    other = report_image.draw({**REPORT, "registration": {**registration, "zoom": 0.99}})
    assert not torch.equal(image, other)
    assert torch.equal(report_image.draw({**REPORT, "registration": None}), without)


def test_each_part_of_a_mask_has_a_line() -> None:
    row = {"crop_size": [320, 448], "seconds": {"edit": 0.5, "stitch": 0.02}, "verdict": "good"}
    one = report_image.draw({**REPORT, "regions": [row]})
    assert torch.equal(one, report_image.draw(REPORT))
    two = report_image.draw({**REPORT, "regions": [row, {**row, "verdict": "look"}]})
    assert two.shape[1] == one.shape[1] + 2 * LINE


def test_the_verdict_is_a_colored_word_above_its_reasons() -> None:
    good = {**REPORT, "verdict": "good", "verdict_reasons": []}
    assert report_image.draw(good).shape[1] == report_image.draw(REPORT).shape[1] + 2 * LINE
    assert count_red(good) == 0
    reason = "Only 0.0 % of the mask changed visibly."
    failed = {**REPORT, "verdict": "failed", "verdict_reasons": [reason]}
    assert report_image.draw(failed).shape[1] == report_image.draw(REPORT).shape[1] + 3 * LINE
    assert count_red(failed) > 50
    look = {**failed, "verdict": "look"}
    assert count_red(look) == 0
    assert not torch.equal(
        report_image.draw(look), report_image.draw({**failed, "verdict": "good"})
    )


def test_the_verdict_can_be_read_at_a_third_of_the_size() -> None:
    image = report_image.draw({**REPORT, "verdict": "failed", "verdict_reasons": ["The reason."]})
    red = (images.to_uint8(image[0]).int() - WARNING_COLOR).abs().amax(-1) < TOLERANCE
    rows = red.any(1).nonzero()
    assert rows.max() < 3 * LINE, "it comes first"
    assert rows.max() - rows.min() > 3 * 9, "9 pixels are the height of small print on a screen"
