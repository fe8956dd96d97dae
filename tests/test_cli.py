"""The command line: edit, doctor, and wrong usage."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from PIL import Image
from support.images import disc
from support.paths import EXAMPLES, ROOT

from artmancer import cli, fill, images, mask_ops

SHUTTLE = ["--mask", str(EXAMPLES / "astronaut_shuttle_mask.png"), "--task", "removal"]


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


def test_edit_writes_the_edited_photo(tmp_path: Path, capsys, example) -> None:
    assert run("edit", EXAMPLES / "astronaut.png", *SHUTTLE, "-o", tmp_path / "out.png") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "draft/removal" in lines[0]
    assert lines[-1] == "verdict: good."
    outside = mask_ops.feather(example("astronaut_shuttle_mask"), 16) == 0
    result = images.load(tmp_path / "out.png").image
    assert torch.equal(result[outside], example("astronaut")[outside])
    assert not torch.equal(result, example("astronaut"))


def test_a_failed_edit_is_written_and_named(tmp_path: Path, capsys) -> None:
    Image.new("RGB", (64, 64), "gray").save(tmp_path / "wall.png")
    mask = Image.new("L", (64, 64))
    mask.paste(255, (20, 20, 40, 40))
    mask.save(tmp_path / "mask.png")
    options = ["--task", "removal", "--mask", tmp_path / "mask.png", "-o", tmp_path / "out.png"]
    assert run("edit", tmp_path / "wall.png", *options) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "verdict: failed. Only 0.0 % of the mask changed visibly."


def test_the_report_is_printed_as_json(tmp_path: Path, capsys) -> None:
    output = tmp_path / "out.png"
    options = ["--task", "white-balance", "-o", output, "--json"]
    assert run("edit", EXAMPLES / "chelsea.png", *options) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["output"] == str(output)
    assert answer["report"]["editor"] == "draft/white_balance"
    assert answer["report"]["grain"] is None


def test_an_inserted_object_gets_the_grain_of_a_noisy_photo(tmp_path: Path, capsys) -> None:
    noise = 0.5 + 0.03 * torch.randn(1, 200, 240, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(200, 240)
    mask[60:140, 80:160] = 1
    for name, image in (
        ("photo", noise),
        ("mask", mask),
        ("gray", torch.full((1, 80, 80, 3), 0.4)),
    ):
        images.save(tmp_path / f"{name}.png", image)
    paths = ["--mask", tmp_path / "mask.png", "--reference", tmp_path / "gray.png"]
    output = ["-o", tmp_path / "out.png", "--json"]
    task = ["--task", "insertion", "--match-grain"]
    assert run("edit", tmp_path / "photo.png", *paths, *task, *output) == 0
    report = json.loads(capsys.readouterr().out)["report"]
    assert report["grain"] == pytest.approx(0.03 * 255, rel=0.15)
    inside = images.load(tmp_path / "out.png").image[:, 80:120, 100:140]
    assert inside.std() == pytest.approx(0.03, rel=0.2)


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["gone.png", "--task", "removal"], "The image 'gone.png' does not exist", "not_found"),
        (
            [EXAMPLES / "coffee.png", "--task", "removal", "--mask", "gone.png"],
            "The mask 'gone.png' does not exist",
            "not_found",
        ),
        ([EXAMPLES / "coffee.png", "--task", "removal"], "mask is needed", "mask_missing"),
        (
            [EXAMPLES / "coffee.png", *SHUTTLE],
            "512x512 but the image is 600x400",
            "invalid_request",
        ),
        ([EXAMPLES / "README.md", "--task", "white_balance"], "not an image", "invalid_image"),
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
def test_an_error_is_one_line_and_nothing_is_written(
    tmp_path: Path, capsys, arguments, message, code
) -> None:
    assert run("edit", *arguments, "-o", tmp_path / "out.png") == 1
    error = capsys.readouterr().err
    assert error.startswith("artmancer: ")
    assert message in error
    assert error.count("\n") == 1
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
    errors = capsys.readouterr().err
    for reason in ("ends in '.heic'", "does not exist", "is a folder", "has no ending"):
        assert reason in errors
    assert "gone.png" not in errors


def test_a_transparent_reference_needs_no_mask(tmp_path: Path, example) -> None:
    reference = Image.open(EXAMPLES / "astronaut.png").convert("RGBA")
    reference.putalpha(Image.open(EXAMPLES / "astronaut_patch_mask.png"))
    reference.save(tmp_path / "patch.png")
    options = [
        "--task=insertion",
        f"--mask={EXAMPLES / 'coffee_mask.png'}",
        f"--reference={tmp_path / 'patch.png'}",
    ]
    assert run("edit", EXAMPLES / "coffee.png", *options, "-o", tmp_path / "out.png") == 0
    color = images.load(tmp_path / "out.png").image[0, 270:370, 470:570].mean((0, 1))
    assert color[2] > color[1], "the patch is violet"


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_an_insertion_says_that_nothing_cuts_the_object_out(
    tmp_path: Path, capsys, mode: str
) -> None:
    Image.new("RGB", (96, 64), "gray").save(tmp_path / "photo.png")
    Image.new(mode, (20, 20), "red").save(tmp_path / "square.png")
    cut = Image.new("L", (20, 20))
    cut.paste(255, (2, 2, 18, 20))
    cut.save(tmp_path / "cut.png")
    place = Image.new("L", (96, 64))
    place.paste(255, (30, 20, 60, 50))
    place.save(tmp_path / "mask.png")
    options = ["--task=insertion", "--mask", tmp_path / "mask.png", "-o", tmp_path / "out.png"]
    options += ["--reference", tmp_path / "square.png"]
    sentence = "Nothing cuts the object out of the reference"
    assert run("edit", tmp_path / "photo.png", *options) == 0
    (line,) = [text for text in capsys.readouterr().out.splitlines() if sentence in text]
    assert "add a mask" in line
    options.append(f"--reference-mask={tmp_path}/cut.png")
    assert run("edit", tmp_path / "photo.png", *options) == 0
    assert sentence not in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(fill.method() != "patchmatch", reason="only PatchMatch takes long enough")
def test_ctrl_c_ends_the_command_and_nothing_is_written(tmp_path: Path) -> None:
    Image.new("RGB", (3000, 3000), "gray").save(tmp_path / "photo.png")
    mask = Image.new("L", (3000, 3000))
    mask.paste(255, (800, 800, 2200, 2200))
    mask.save(tmp_path / "mask.png")
    command = [
        sys.executable,
        "-m",
        "artmancer",
        "edit",
        "photo.png",
        "--mask=mask.png",
        "--task=removal",
    ]
    process = subprocess.Popen(
        [*command, "-o", "out.png"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts background commands with SIGINT ignored, and a command keeps that; these
        # tests may be such a background command.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    command_process = psutil.Process(process.pid)
    while not (fill_processes := command_process.children()):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert "nothing was written" in process.communicate()[1]
    assert process.returncode == 130
    # test_fill.py checks that these processes end before the fill is complete.
    psutil.wait_procs(fill_processes)
    assert {path.name for path in tmp_path.iterdir()} == {"photo.png", "mask.png"}


def test_jpeg_is_written_with_a_warning(tmp_path: Path, caplog) -> None:
    options = ["--task", "white_balance", "-o", tmp_path / "out.jpg"]
    assert run("edit", EXAMPLES / "chelsea.png", *options) == 0
    assert "write PNG" in caplog.text
    assert Image.open(tmp_path / "out.jpg").format == "JPEG"


@pytest.mark.parametrize(
    "arguments", [[], ["edit"], ["edit", "a.png", "--task", "x", "-o", "b.png"]]
)
def test_wrong_usage_gives_exit_code_two(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as error:
        cli.main(arguments)
    assert error.value.code == 2


EDIT = ["edit", "a.png", "-o", "b.png"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["edti"],
            "artmancer: argument COMMAND: expected edit, batch, models, serve, doctor, got "
            "'edti'; did you mean edit? See `artmancer --help`.",
        ),
        (
            [*EDIT, "--task", "remval"],
            "artmancer edit: argument --task/--variant: expected "
            "insertion, removal, white-balance, got 'remval'; did you mean removal? See `artmancer "
            "edit --help`.",
        ),
        ([*EDIT, "--task", "removal", "--regions=apat"], "got 'apat'; did you mean apart? See"),
        # The required --task is missing because it is misspelled.
        ([*EDIT, "--tsk", "removal"], "there is no option --tsk; did you mean --task? See"),
        ([*EDIT, "--task=removal", "--maks=m.png"], "no option --maks; did you mean --mask? See"),
        ([*EDIT, "--task=removal", "--promt=remove the lamp"], "did you mean --prompt? See"),
        ([*EDIT, "--task=removal", "--xyzzy"], "artmancer edit: there is no option --xyzzy. See"),
        (["batch", "a", "-o", "b", "--formt", "png"], "did you mean --format? See"),
        (["batch", "a", "-o", "b", "--sort=link"], "did you mean links? See `artmancer batch"),
        (["models", "fech"], "did you mean fetch? See `artmancer models --help`."),
        (["models", "fetch", "qwen-2508"], "got 'qwen-2508'; did you mean qwen-2509? See"),
        (["serve", "--prot", "80"], "there is no option --prot; did you mean --port? See"),
        (["doctor", "now"], "artmancer doctor: unexpected argument 'now'. See"),
    ],
)
def test_wrong_usage_is_one_line_that_names_what_was_probably_meant(
    capsys, arguments: list[str], sentence: str
) -> None:
    with pytest.raises(SystemExit) as error:
        cli.main(arguments)
    assert error.value.code == 2
    message = capsys.readouterr().err
    assert sentence in message
    assert message.count("\n") == 1 and message.endswith(" --help`.\n")


def test_an_unknown_editor_is_named_with_the_one_that_was_probably_meant(
    tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    options = [*SHUTTLE, "-o", tmp_path / "out.png", "--editor=darft"]
    assert run("edit", EXAMPLES / "astronaut.png", *options) == 1
    assert "draft, lama, qwen, got 'darft'; did you mean draft? " in capsys.readouterr().err


def test_a_value_that_looks_like_an_option_is_a_value(tmp_path: Path, caplog) -> None:
    options = ["--task=white-balance", "--prompt=--warmer", "--negative", "--no noise, please"]
    assert run("edit", EXAMPLES / "chelsea.png", *options, "-o", tmp_path / "out.png") == 0
    assert "--prompt is ignored" in caplog.text


def test_both_spellings_of_white_balance_are_taken_and_the_help_shows_one(
    tmp_path: Path, capsys
) -> None:
    for spelling in ("white-balance", "white_balance"):
        output = tmp_path / f"{spelling}.png"
        assert run("edit", EXAMPLES / "chelsea.png", "--task", spelling, "-o", output) == 0
    results = [path.read_bytes() for path in tmp_path.iterdir()]
    assert len(results) == 2 and results[0] == results[1]
    capsys.readouterr()
    for command in ("edit", "batch"):
        with pytest.raises(SystemExit):
            run(command, "--help")
        text = capsys.readouterr().out
        assert "{insertion,removal,white-balance}" in text and "white_balance" not in text


@pytest.mark.parametrize(
    ("photo", "results"),
    [
        ("Room.JPG", ["Room-edited.png", "Room-edited-2.png", "Room-edited-3.png"]),
        # A GIF is read, and not written.
        ("room.gif", ["room-edited.png", "room-edited-2.png", "room-edited-3.png"]),
    ],
)
def test_without_an_output_the_result_is_beside_the_photo_and_replaces_nothing(
    tmp_path: Path, capsys, photo: str, results: list[str]
) -> None:
    Image.open(EXAMPLES / "chelsea.png").convert("RGB").save(tmp_path / photo)
    before = {photo: (tmp_path / photo).read_bytes()}
    for result in results:
        assert run("edit", tmp_path / photo, "--task=white-balance") == 0
        path = tmp_path / result
        assert capsys.readouterr().out.startswith(f"{path}: draft/white_balance")
        before[result] = path.read_bytes()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--steps=0", "expected 1 to 100, got 0"),
        ("--steps=-2", "expected 1 to 100, got -2"),
        ("--steps=2.5", "expected a whole number, got '2.5'"),
        ("--cfg=nan", "expected 0.5 to 20.0, got nan"),
        ("--seed=-1", "expected 0 to 9007199254740991, got -1"),
        ("--condition-megapixels=0", "expected recipe, crop, or 0.05 to 4 megapixels, got '0'"),
        ("--grow=1025", "expected 0 to 1024, got 1025"),
    ],
)
def test_a_number_out_of_its_range_is_wrong_usage(capsys, option: str, message: str) -> None:
    with pytest.raises(SystemExit) as error:
        run("edit", "a.png", "--task", "removal", option, "-o", "b.png")
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_doctor_reports_installed_and_missing_parts(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    monkeypatch.delenv("MODEL_PATH", raising=False)
    assert run("doctor") == 1
    text = capsys.readouterr().out
    assert re.search(r"^ok +torch ", text, re.M)
    assert re.search(r"^missing +ComfyUI ", text, re.M)
    assert "set COMFYUI_PATH" in text
    (tmp_path / "models" / "loras").mkdir(parents=True)
    (tmp_path / "models" / "loras" / "wb_cp.safetensors").touch()
    (tmp_path / "models" / "fastsam").mkdir()
    (tmp_path / "main.py").touch()
    assert run("doctor", "--json") == 0
    findings = {finding["name"]: finding for finding in json.loads(capsys.readouterr().out)}
    assert "wb_cp.safetensors" in findings["models/loras"]["found"]
    assert findings["models/fastsam"]["status"] == findings["models/rembg"]["status"] == "empty"
    assert all(finding["ok"] for finding in findings.values())


def test_doctor_reports_which_editors_run_and_why_others_do_not(
    tiny_base: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    monkeypatch.delenv("MODEL_PATH", raising=False)

    def findings() -> dict[str, Any]:
        run("doctor", "--json")
        return {finding["name"]: finding for finding in json.loads(capsys.readouterr().out)}

    without_base = findings()
    assert without_base["editor draft"]["status"] == "ok"
    assert without_base["editor qwen"]["status"] == "off"
    assert without_base["editor qwen"]["found"] == "no base model"
    assert "models fetch" in without_base["editor qwen"]["advice"]
    monkeypatch.setenv("MODEL_PATH", str(tmp_path / "gone"))
    gone = findings()["editor qwen"]
    assert f"There is no base model in '{tmp_path}/gone'" in gone["found"]
    assert gone["advice"] == "correct or remove MODEL_PATH"
    monkeypatch.setenv("MODEL_PATH", str(tiny_base))
    assert findings()["editor qwen"]["found"] == f"runs here: {tiny_base}"
    monkeypatch.setattr("artmancer.doctor.QWEN_PACKAGES", ("diffusers", "no-such-package"))
    without_package = findings()["editor qwen"]
    assert without_package["status"] == "off"
    assert without_package["found"] == "no-such-package not installed"
    assert without_package["advice"] == "pip install no-such-package"
    rembg = tmp_path / "models" / "rembg"
    rembg.mkdir(parents=True)
    (rembg / "README.md").touch()
    assert "no model in models/rembg" in findings()["Remove Background"]["found"]
    segmenters = tmp_path / "models" / "ultralytics" / "segm"
    segmenters.mkdir(parents=True)
    (segmenters / "FastSAM-x.pt").touch()
    assert findings()["Smart Mask, FastSAM"]["found"] == "runs here: FastSAM-x.pt"


def test_doctor_names_the_gpu_and_reports_when_torch_cannot_use_it(
    tmp_path: Path, capsys, monkeypatch
) -> None:
    nvidia_smi = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def device(script: str) -> dict[str, Any]:
        nvidia_smi.write_text(f"#!/bin/sh\n{script}\n")
        nvidia_smi.chmod(0o755)
        run("doctor", "--json")
        findings = json.loads(capsys.readouterr().out)
        return next(finding for finding in findings if finding["name"] == "device")

    card = "echo 'NVIDIA H100, 70000 MiB, 81559 MiB'"
    monkeypatch.setattr("artmancer.doctor._torch_cuda", lambda: "12.8")
    assert device(card)["found"] == "NVIDIA H100, 70000 MiB of 81559 MiB free"
    assert device("exit 9")["found"].startswith("CPU")
    monkeypatch.setattr("artmancer.doctor._NVIDIA_SMI_TIMEOUT", 0.1)
    assert device("exec sleep 60")["found"].startswith("CPU")
    monkeypatch.setattr("artmancer.doctor._torch_cuda", lambda: None)
    monkeypatch.setattr("artmancer.doctor._NVIDIA_SMI_TIMEOUT", 60)
    assert device(card)["status"] == "off"


COMMANDS_WITHOUT_TORCH = [
    ["edit", "missing.jpg", "--task", "removal", "--mask", "m.png", "-o", "o.png"],
    ["edit", "photo.png", "--task", "removal", "--mask", "black.png", "-o", "o.png"],
    ["edit", "photo.png", "--task", "removal", "--mask", "small.png", "-o", "o.png"],
    ["edit", "photo.png", "--task", "insertion", "--mask", "white.png", "-o", "o.png"],
    ["doctor"],
    ["models"],
]
"""Commands that import no torch, so that they end at once; the edits among them are refused."""


@pytest.mark.parametrize("arguments", COMMANDS_WITHOUT_TORCH, ids=" ".join)
def test_refused_edits_doctor_and_models_do_not_import_torch(
    tmp_path: Path, arguments: list[str]
) -> None:
    for name, height, color in (
        ("photo", 64, "gray"),
        ("black", 64, "black"),
        ("white", 64, "white"),
        ("small", 32, "white"),
    ):
        Image.new("RGB", (64, height), color).save(tmp_path / f"{name}.png")
    script = (
        "import sys; from artmancer import cli; cli.main(sys.argv[1:]); "
        "sys.exit('torch' in sys.modules or 'diffusers' in sys.modules)"
    )
    probe = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert probe.returncode == 0, probe.stderr


def test_several_photos_are_refused_with_the_command_for_many(capsys) -> None:
    with pytest.raises(SystemExit) as error:
        run("edit", "a.jpg", "b.jpg", "--task", "white-balance", "-o", "out.png")
    assert error.value.code == 2
    text = capsys.readouterr().err
    assert "takes one photo, got 2" in text
    assert "artmancer batch" in text


def test_a_prompt_for_the_draft_editor_gives_a_warning(tmp_path: Path, caplog) -> None:
    options = ["--task=white-balance", "--prompt=warmer", "-o", tmp_path / "out.png"]
    assert run("edit", EXAMPLES / "chelsea.png", *options) == 0
    assert "--prompt is ignored" in caplog.text


def test_the_command_fills_holes_and_widens(tmp_path: Path, capsys) -> None:
    noise = torch.rand(1, 240, 320, 1, generator=torch.Generator().manual_seed(0))
    photo = noise * torch.tensor([1.0, 0.8, 0.6])
    images.save(tmp_path / "photo.png", photo)
    ring = disc(240, 320, 120, 160, 50) - disc(240, 320, 120, 160, 35)
    images.save(tmp_path / "ring.png", ring[0])
    options = ["--task=white-balance", "--mask", tmp_path / "ring.png", "--feather=0"]

    def middle_changes(*more: str) -> bool:
        output = tmp_path / "out.png"
        command = [tmp_path / "photo.png", *options, *more, "-o", output, "--json"]
        assert run("edit", *command) == 0
        report = json.loads(capsys.readouterr().out)["report"]
        assert report["widened"] == ("--widen" in more)
        result = images.load(output).image
        return not torch.equal(result[0, 120, 160], images.load(command[0]).image[0, 120, 160])

    assert not middle_changes("--widen")
    assert middle_changes("--fill-holes")


def test_the_package_runs_as_a_module() -> None:
    process = subprocess.run(
        [sys.executable, "-m", "artmancer", "--version"], capture_output=True, text=True, check=True
    )
    assert process.stdout.startswith("artmancer 0.")


def test_the_installed_command_runs() -> None:
    command = Path(sys.executable).with_name("artmancer")
    process = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert process.stdout.startswith("artmancer 0.")
