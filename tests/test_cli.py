import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from PIL import Image
from support.paths import EXAMPLES

from artmancer import cli, fill, images
from artmancer.masks import refine

SHUTTLE = ["--mask", str(EXAMPLES / "astronaut_shuttle_mask.png"), "--task", "removal"]


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


def test_a_photo_a_mask_and_a_task_give_an_edited_photo(tmp_path: Path, capsys, example) -> None:
    assert run("edit", EXAMPLES / "astronaut.png", *SHUTTLE, "-o", tmp_path / "out.png") == 0
    assert "draft/removal" in capsys.readouterr().out
    outside = refine.feather(example("astronaut_shuttle_mask"), 16) == 0
    result = images.load(tmp_path / "out.png").image
    assert torch.equal(result[outside], example("astronaut")[outside])
    assert not torch.equal(result, example("astronaut"))


def test_the_report_is_printed_as_json(tmp_path: Path, capsys) -> None:
    output = tmp_path / "out.png"
    assert (
        run("edit", EXAMPLES / "chelsea.png", "--task", "white-balance", "-o", output, "--json")
        == 0
    )
    answer = json.loads(capsys.readouterr().out)
    assert answer["output"] == str(output)
    assert answer["report"]["editor"] == "draft/white_balance"


@pytest.mark.parametrize(
    ("arguments", "said", "code"),
    [
        (["gone.png", "--task", "removal"], "The picture 'gone.png' is not there", "not_found"),
        (
            [EXAMPLES / "coffee.png", "--task", "removal", "--mask", "gone.png"],
            "The mask 'gone.png' is not there",
            "not_found",
        ),
        ([EXAMPLES / "coffee.png", "--task", "removal"], "mask is needed", "mask_missing"),
        (
            [EXAMPLES / "coffee.png", *SHUTTLE],
            "512x512 but the image is 600x400",
            "invalid_request",
        ),
        ([EXAMPLES / "README.md", "--task", "white_balance"], "not a picture", "invalid_image"),
        (
            [
                EXAMPLES / "coffee.png",
                "--task",
                "insertion",
                "--mask",
                EXAMPLES / "coffee_mask.png",
            ],
            "inserts a reference",
            "reference_missing",
        ),
    ],
)
def test_a_mistake_is_one_sentence_and_nothing_is_written(
    tmp_path: Path, capsys, arguments, said, code
) -> None:
    assert run("edit", *arguments, "-o", tmp_path / "out.png") == 1
    error = capsys.readouterr().err
    assert said in error and error.startswith("artmancer: ") and error.count("\n") == 1
    assert run("edit", *arguments, "-o", tmp_path / "out.png", "--json") == 1
    assert json.loads(capsys.readouterr().out)["error_type"] == code
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["image", "mask", "reference", "reference-mask"])
def test_no_input_is_overwritten(tmp_path: Path, capsys, option: str) -> None:
    files = {
        name: tmp_path / f"{name}.png" for name in ("image", "mask", "reference", "reference-mask")
    }
    for path in files.values():
        path.write_bytes((EXAMPLES / "chelsea.png").read_bytes())
    options = [f"--{name}={path}" for name, path in files.items() if name != "image"]
    assert run("edit", files["image"], *options, "--task", "insertion", "-o", files[option]) == 1
    assert "is one of the inputs" in capsys.readouterr().err
    assert files[option].read_bytes() == (EXAMPLES / "chelsea.png").read_bytes()


def test_an_output_that_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, capsys
) -> None:
    (tmp_path / "folder.png").mkdir()
    for output in (
        tmp_path / "out.heic",
        tmp_path / "no" / "out.png",
        tmp_path / "folder.png",
        tmp_path / "out",
    ):
        assert run("edit", "gone.png", "--task", "removal", "-o", output) == 1
    said = capsys.readouterr().err
    assert all(
        part in said
        for part in ("ends in '.heic'", "does not exist", "is a folder", "has no ending")
    )
    assert "gone.png" not in said


def test_a_transparent_reference_needs_no_mask(tmp_path: Path, example) -> None:
    cut_out = Image.open(EXAMPLES / "astronaut.png").convert("RGBA")
    cut_out.putalpha(Image.open(EXAMPLES / "astronaut_patch_mask.png"))
    cut_out.save(tmp_path / "patch.png")
    options = [
        "--task=insertion",
        f"--mask={EXAMPLES / 'coffee_mask.png'}",
        f"--reference={tmp_path / 'patch.png'}",
    ]
    assert run("edit", EXAMPLES / "coffee.png", *options, "-o", tmp_path / "out.png") == 0
    color = images.load(tmp_path / "out.png").image[0, 270:370, 470:570].mean((0, 1))
    assert color[2] > color[1], "the patch is violet"


@pytest.mark.skipif(fill.method() != "patchmatch", reason="nothing else takes long enough")
def test_ctrl_c_ends_at_once_with_nothing_written(tmp_path: Path) -> None:
    Image.new("RGB", (3000, 3000), "gray").save(tmp_path / "photo.png")
    mask = Image.new("L", (3000, 3000))
    mask.paste(255, (800, 800, 2200, 2200))
    mask.save(tmp_path / "mask.png")
    command = [
        sys.executable,
        "-m",
        "artmancer.cli",
        "edit",
        "photo.png",
        "--mask=mask.png",
        "--task=removal",
    ]
    process = subprocess.Popen(
        [*command, "-o", "out.png"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    watched = psutil.Process(process.pid)
    while not (filling := watched.children()):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert "nothing was written" in process.communicate(timeout=60)[1]
    assert process.returncode == 130 and not any(child.is_running() for child in filling)
    assert {path.name for path in tmp_path.iterdir()} == {"photo.png", "mask.png"}


def test_jpeg_is_written_with_a_warning(tmp_path: Path, caplog) -> None:
    assert (
        run("edit", EXAMPLES / "chelsea.png", "--task", "white_balance", "-o", tmp_path / "out.jpg")
        == 0
    )
    assert "write PNG" in caplog.text
    assert Image.open(tmp_path / "out.jpg").format == "JPEG"


@pytest.mark.parametrize(
    "arguments", [[], ["edit"], ["edit", "a.png", "--task", "x", "-o", "b.png"]]
)
def test_wrong_usage_is_exit_code_two(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        cli.main(arguments)
    assert exit.value.code == 2


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--steps=0", "expected 1 to 100, got 0"),
        ("--steps=-2", "expected 1 to 100, got -2"),
        ("--steps=2.5", "invalid number value: '2.5'"),
        ("--cfg=nan", "expected 0.5 to 20.0, got nan"),
        ("--seed=-1", "expected 0 to 9007199254740991, got -1"),
        ("--condition-megapixels=0", "expected 0.05 to 4.0, got 0.0"),
        ("--grow=1025", "expected 0 to 1024, got 1025"),
    ],
)
def test_a_number_out_of_its_range_is_wrong_usage(capsys, option: str, said: str) -> None:
    with pytest.raises(SystemExit) as exit:
        run("edit", "a.png", "--task", "removal", option, "-o", "b.png")
    assert exit.value.code == 2 and said in capsys.readouterr().err


def test_doctor_says_what_is_there_and_how_to_get_what_is_not(
    tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    assert run("doctor") == 1
    said = capsys.readouterr().out
    assert "ok      torch" in said and "missing ComfyUI" in said and "set COMFYUI_PATH" in said
    (tmp_path / "models" / "loras").mkdir(parents=True)
    (tmp_path / "models" / "loras" / "wb_cp.safetensors").touch()
    (tmp_path / "main.py").touch()
    code = run("doctor", "--json")
    findings = {finding["name"]: finding for finding in json.loads(capsys.readouterr().out)}
    assert "wb_cp.safetensors" in findings["models/loras"]["found"]
    missing = [name for name, finding in findings.items() if not finding["ok"]]
    assert code == bool(missing) and missing in ([], ["pypatchmatch"])  # no wheel for Python 3.10


def test_the_installed_command_runs() -> None:
    command = Path(sys.executable).with_name("artmancer")
    answer = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert answer.stdout.startswith("artmancer 0.")
