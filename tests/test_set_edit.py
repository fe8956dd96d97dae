"""`artmancer edit` with a model set: refusals before anything is started."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.comfyui import free_port
from support.paths import EXAMPLES

from artmancer import cli
from artmancer.commands import comfyui_edit

CONTENT = {"unet": "a.safetensors", "clip": "b.safetensors", "vae": "c.safetensors"}


def edit(output: Path, *options: str) -> int:
    photo, mask = EXAMPLES / "coffee.png", EXAMPLES / "coffee_mask.png"
    arguments = ["edit", str(photo), "--task", "removal", "--mask", str(mask), "-o", str(output)]
    return cli.main([*arguments, *options])


def test_without_a_comfyui_one_sentence_tells_how_to_get_one(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path / "none"))
    assert edit(tmp_path / "out.png", "--editor", "fp8") == 1
    text = capsys.readouterr().err
    assert "expected draft, lama, qwen, got 'fp8'. A model set runs in ComfyUI" in text
    assert "Set COMFYUI_PATH" in text and "--comfyui-url" in text
    assert text.count("\n") == 1
    # A folder of model sets alone does not run them.
    folder = tmp_path / "base" / "models" / "artmancer"
    folder.mkdir(parents=True)
    (folder / "q4.json").write_text(json.dumps(CONTENT))
    assert edit(tmp_path / "out.png", "--editor=q4", f"--comfyui-base={tmp_path / 'base'}") == 1
    text = capsys.readouterr().err
    assert "expected" not in text and "Set COMFYUI_PATH" in text and "--comfyui-url" in text


def test_an_unknown_set_is_refused_with_the_list(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    (tmp_path / "main.py").touch()
    folder = tmp_path / "models" / "artmancer"
    folder.mkdir(parents=True)
    (folder / "q4.json").write_text(json.dumps(CONTENT))
    for name in ("fp8", "../q4"):
        assert edit(tmp_path / "out.png", "--editor", name) == 1
        assert "expected draft, lama, qwen, q4, got" in capsys.readouterr().err
    (folder / "q4.json").write_text("{}")
    assert edit(tmp_path / "out.png", "--editor", "q4") == 1
    assert "'unet', not set" in capsys.readouterr().err
    (tmp_path / "base" / "models" / "artmancer").mkdir(parents=True)
    assert edit(tmp_path / "out.png", "--editor=q4", f"--comfyui-base={tmp_path / 'base'}") == 1
    assert "expected draft, lama, qwen, got" in capsys.readouterr().err


def test_options_of_the_editor_qwen_are_refused(tmp_path: Path, capsys: Any) -> None:
    for option in ("--base=x", "--variant-file=x", "--acceleration=x", "--precision=fp8"):
        assert edit(tmp_path / "out.png", "--editor=fp8", option) == 1
        text = capsys.readouterr().err
        assert f"{option.partition('=')[0]} is for the editor qwen" in text


def test_a_comfyui_that_does_not_answer_is_named(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comfyui_edit, "ANSWER_SECONDS", 0.5)
    url = f"http://127.0.0.1:{free_port()}"
    assert edit(tmp_path / "out.png", "--editor=fp8", f"--comfyui-url={url}") == 1
    text = capsys.readouterr().err
    assert f"No ComfyUI answers at {url}" in text
    assert not (tmp_path / "out.png").exists()


def test_a_comfyui_that_does_not_start_is_named_with_the_end_of_its_log(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    (tmp_path / "main.py").write_text("raise SystemExit('no GPU here')")
    (tmp_path / "models" / "artmancer").mkdir(parents=True)
    (tmp_path / "models" / "artmancer" / "q4.json").write_text(json.dumps(CONTENT))
    assert edit(tmp_path / "out.png", "--editor=q4") == 1
    text = capsys.readouterr().err
    assert "did not start; its log ends with 'no GPU here'" in text and "--cpu" in text
