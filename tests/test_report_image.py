"""The report as a picture."""

from typing import Any

import torch
from PIL import Image
from support.paths import ROOT

from artmancer import images, report_image

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


def red(report: dict[str, Any]) -> int:
    """Pixels of warnings."""
    picture = images.to_uint8(report_image.draw(report)[0]).int()
    return int(((picture - torch.tensor([0xF2, 0x8B, 0x82])).abs().amax(-1) < 24).sum())


def test_it_shows_what_deserves_a_look_in_red() -> None:
    picture = report_image.draw(REPORT)
    assert (
        picture.shape[0] == 1 and picture.shape[2:] == (report_image.WIDTH, 3) and red(REPORT) == 0
    )
    folder = ROOT / "build"
    folder.mkdir(exist_ok=True)
    Image.fromarray(images.to_uint8(picture[0]).numpy()).save(folder / "report.png")
    for bad in ({"outside_psnr_raw": 22.0}, {"drift_px": 3.0}, {"spill": 0.02}):
        assert red({**REPORT, **bad}) > 50, bad
    assert red({**REPORT, "spill": 0.02, "widened": True}) == 0
    balanced = {**REPORT, "variant": "white_balance", "outside_psnr_raw": 19.0}
    assert red(balanced) == 0, "it is meant to change all that it sees"


def test_what_cannot_be_told_is_said() -> None:
    known = report_image.draw(REPORT)
    for unknown in ("outside_psnr_raw", "outside_psnr", "drift_px", "seed"):
        report = {**REPORT, unknown: None}
        assert not torch.equal(report_image.draw(report), known) and red(report) == 0, unknown
    assert report_image.draw({**REPORT, "seconds": {}}).shape[1] < known.shape[1]


def test_many_conditions_take_more_lines() -> None:
    names = ["mask", "background", "object", *(f"extra {number}" for number in range(1, 9))]
    many = report_image.draw({**REPORT, "conditions": names})
    assert many.shape[1] > report_image.draw(REPORT).shape[1]
