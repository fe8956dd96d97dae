"""The LaMa editor, from the library and the command line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny_lama
from support.images import disc
from support.paths import EXAMPLES
from torch import Tensor

from artmancer import cli, fill, images, lama, mask_ops
from artmancer.conditions import prepare
from artmancer.draft import DraftEditor
from artmancer.edit import edit
from artmancer.errors import ArtMancerError
from artmancer.lama_editor import LamaEditor
from artmancer.offload import Offloader

pytestmark = pytest.mark.usefixtures("spandrel")

PHOTO, MASK = EXAMPLES / "coffee.png", EXAMPLES / "coffee_mask.png"


@pytest.fixture
def comfyui_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty ComfyUI folder that the command line uses."""
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    for name in ("inpaint", "artmancer"):
        (tmp_path / "models" / name).mkdir(parents=True)
    return tmp_path


def command(tmp_path: Path, capsys: Any, *options: str) -> tuple[Tensor, dict[str, Any]]:
    """Run `artmancer edit` with the lama editor; return the image and the report."""
    output = tmp_path / "out.png"
    arguments = ["edit", str(PHOTO), "--editor=lama", "--task=removal", f"--mask={MASK}"]
    assert cli.main([*arguments, f"--output={output}", "--json", *options]) == 0
    report = json.loads(capsys.readouterr().out)["report"]
    return images.load(output).image, report


def test_a_removal_changes_no_byte_outside_the_feathered_mask(
    example: Callable[[str], Tensor], tmp_path: Path
) -> None:
    with tiny_lama.small():
        network = lama.load(tiny_lama.save(tmp_path / "lama.pt"), Offloader("cpu"))
    photo, mask = example("coffee"), example("coffee_mask")
    result = edit(LamaEditor("removal", network), prepare(photo, mask), seed=3)
    outside = mask_ops.feather(mask, 16) == 0
    assert torch.equal(result.image[outside], photo[outside])
    assert not torch.equal(result.image, photo)
    assert result.report.editor == "lama/removal"
    assert result.report.notes == ()


def test_lama_fills_beyond_a_brush_mask_and_the_result_keeps_to_the_mask(
    example: Callable[[str], Tensor],
) -> None:
    holes: list[Tensor] = []

    class Recorder:
        """A LaMa that paints the hole black."""

        def fill(self, image: Tensor, hole: Tensor, *_: object) -> Tensor:
            holes.append(hole)
            return torch.where(hole.unsqueeze(-1), 0.0, image)

    photo, mask = example("coffee"), example("coffee_mask")
    conditions = prepare(photo, mask, brushed=True)
    painted = conditions.crop.mask[0] > 0
    result = edit(LamaEditor("removal", Recorder()), conditions, match=False)
    assert (holes[0] & painted).sum() == painted.sum()
    assert holes[0].sum() > 1.2 * painted.sum()
    outside = mask_ops.feather(mask, 16) == 0
    assert torch.equal(result.image[outside], photo[outside])


def test_a_fill_beyond_the_mask_is_matched_to_nothing_that_it_removed() -> None:
    class Cleaner:
        """A LaMa that knows the gray wall behind everything."""

        def fill(self, image: Tensor, hole: Tensor, *_: object) -> Tensor:
            return torch.where(hole.unsqueeze(-1), 0.6, image)

    ball, shadow = disc(200, 200, 100, 100, 20), disc(200, 200, 100, 100, 30)
    photo = 0.6 - 0.2 * shadow.unsqueeze(-1).expand(-1, -1, -1, 3)
    result = edit(LamaEditor("removal", Cleaner()), prepare(photo, ball, brushed=True))
    assert (result.image[ball > 0] - 0.6).abs().max() < 1e-6


@pytest.mark.parametrize("folder", ["inpaint", "artmancer"])
def test_the_command_finds_lama_in_comfyuis_folders(
    comfyui_folder: Path, folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_lama.save(comfyui_folder / "models" / folder / "big-lama.pt")
    with tiny_lama.small():
        image, report = command(comfyui_folder, capsys)
        network = lama.load(comfyui_folder / "models" / folder / "big-lama.pt")
    assert report["editor"] == "lama/removal" and report["notes"] == []
    photo, mask = images.load(PHOTO).image, images.load_mask(MASK)
    expected = edit(LamaEditor("removal", network), prepare(photo, mask)).image
    assert (image - expected).abs().max() <= 0.5001 / 255
    assert cli.main(["models", "--json"]) == 0
    assert {"lama"} == {row["kind"] for row in json.loads(capsys.readouterr().out)} & {"lama"}


def test_the_command_without_its_file_says_where_it_goes_and_what_needs_none(
    comfyui_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = comfyui_folder / "out.png"
    arguments = ["edit", str(PHOTO), "--editor=lama", "--task=removal", f"--mask={MASK}"]
    assert cli.main([*arguments, f"--output={output}"]) == 1
    message = capsys.readouterr().err
    assert str(comfyui_folder / "models" / "inpaint" / "big-lama.pt") in message
    assert "models fetch big-lama" in message and "--editor draft" in message
    assert message.count("\n") == 1 and not output.exists()


def test_a_batch_without_its_file_ends_before_the_first_photo(
    comfyui_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = comfyui_folder / "photos"
    photos.mkdir()
    for name in ("a", "b"):
        (photos / f"{name}.png").symlink_to(PHOTO)
        (photos / f"{name}_mask.png").symlink_to(MASK)
    out = comfyui_folder / "out"
    assert cli.main(["batch", str(photos), "-o", str(out), "--editor=lama", "--task=removal"]) == 1
    output = capsys.readouterr()
    assert output.err.count("The lama editor needs") == 1
    assert not list((out / "edited").glob("*"))


@pytest.mark.parametrize("brushed", [False, True])
def test_in_a_graph_patchmatch_fills_without_its_file_and_the_report_says_so(brushed: bool) -> None:
    photo, mask = images.load(PHOTO).image, images.load_mask(MASK)
    result = edit(LamaEditor("removal", None), prepare(photo, mask, brushed=brushed))
    assert result.report.editor == "draft/removal"
    (note,) = result.report.notes
    assert "LaMa is not installed" in note and "models fetch big-lama" in note
    by_draft = edit(DraftEditor("removal"), prepare(photo, mask, brushed=brushed)).image
    assert fill.method() == "telea" or torch.equal(result.image, by_draft)


def test_a_damaged_file_is_an_error_and_no_reason_for_another_method(
    comfyui_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = comfyui_folder / "models" / "inpaint" / "big-lama.pt"
    path.write_bytes(b"not a model")
    output = comfyui_folder / "out.png"
    arguments = ["edit", str(PHOTO), "--editor=lama", "--task=removal", f"--mask={MASK}"]
    assert cli.main([*arguments, f"--output={output}"]) == 1
    message = capsys.readouterr().err
    assert "'big-lama.pt' is not a LaMa, or is damaged" in message
    assert not output.exists()


@pytest.mark.parametrize("variant", ["insertion", "white_balance"])
def test_lama_only_removes(
    variant: str, comfyui_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ArtMancerError, match=f"only removes, but the variant is {variant}"):
        LamaEditor(variant, None)
    output = comfyui_folder / "out.png"
    arguments = ["edit", str(PHOTO), "--editor=lama", f"--task={variant}", f"--mask={MASK}"]
    assert cli.main([*arguments, f"--output={output}"]) == 1
    assert "only removes" in capsys.readouterr().err


def test_doctor_says_how_to_get_lama(
    comfyui_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def finding() -> dict[str, Any]:
        cli.main(["doctor", "--json"])
        rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
        return dict(rows["editor lama"])

    assert finding()["status"] == "off"
    assert "models fetch big-lama" in finding()["advice"]
    tiny_lama.save_state_dict(comfyui_folder / "models" / "inpaint" / "big-lama.pt")
    assert finding()["status"] == "ok"
