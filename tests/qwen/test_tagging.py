"""`artmancer models tag`: metadata in a checkpoint's file, its weights untouched."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from artmancer import cli
from artmancer.errors import ArtMancerError
from artmancer.qwen import checkpoints, tagging
from artmancer.qwen.editor import QwenEditor


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    """Provide a file with metadata of its own, weights in two types and an empty tensor."""
    path = tmp_path / "removal_cp.safetensors"
    weights = {
        "a.lora_A.weight": torch.rand(4, 33),
        "b": torch.rand(7).to(torch.bfloat16),
        "empty": torch.zeros(0, 2),
    }
    save_file(weights, path, {"format": "pt", "ss_note": "über"})
    return path


def weights_of(path: Path) -> bytes:
    data = path.read_bytes()
    return data[8 + int.from_bytes(data[:8], "little") :]


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


def test_a_tag_in_place_changes_the_metadata_alone(lora: Path, capsys) -> None:
    before, tensors = weights_of(lora), load_file(lora)
    lora.chmod(0o640)
    command = ["models", "tag", str(lora), "--recipe=image_edges", "--resolution=768"]
    assert cli.main([*command, "--prompt=make it neutral"]) == 0
    assert "the weights are unchanged" in capsys.readouterr().out
    assert weights_of(lora) == before
    assert metadata_of(lora) == {
        "format": "pt",
        "ss_note": "über",
        "artmancer.recipe": "image_edges",
        "artmancer.resolution": "768",
        "artmancer.prompt": "make it neutral",
    }
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in load_file(lora).items())
    assert lora.stat().st_mode & 0o777 == 0o640
    assert [path.name for path in lora.parent.iterdir()] == [lora.name]
    # A new tag replaces the old one: this prompt was the other recipe's.
    assert cli.main(["models", "tag", str(lora), "--recipe=background_mask_fill"]) == 0
    assert metadata_of(lora) == {
        "format": "pt",
        "ss_note": "über",
        "artmancer.recipe": "background_mask_fill",
    }
    # The weights of a header of this length are aligned.
    assert int.from_bytes(lora.read_bytes()[:8], "little") % 8 == 0


def test_the_editor_follows_the_metadata_before_the_files_name(lora: Path) -> None:
    untagged = QwenEditor(None, "removal", checkpoints.read(lora))
    assert (untagged.recipe, untagged.recipe_reason) == ("background_mask_fill", "file name")
    assert untagged.resolution is None and untagged.default_prompt is None
    tagging.tag(lora, {"recipe": "image_edges", "resolution": "768", "prompt": "neutral"})
    tagged = QwenEditor(None, "removal", checkpoints.read(lora))
    assert (tagged.recipe, tagged.recipe_reason) == ("image_edges", "metadata")
    assert (tagged.resolution, tagged.default_prompt) == ("768", "neutral")


def test_a_copy_leaves_the_file_as_it_is(lora: Path, capsys) -> None:
    before = lora.read_bytes()
    copy = lora.parent / "tagged.safetensors"
    command = ["models", "tag", str(lora), "--recipe=image_edges", "-o", str(copy), "--json"]
    assert cli.main(command) == 0
    assert json.loads(capsys.readouterr().out)["metadata"] == {"recipe": "image_edges"}
    assert lora.read_bytes() == before
    assert weights_of(copy) == weights_of(lora)
    assert metadata_of(copy)["artmancer.recipe"] == "image_edges"


def test_a_link_stays_a_link(lora: Path) -> None:
    link = lora.parent / "link.safetensors"
    link.symlink_to(lora)
    tagging.tag(link, {"recipe": "image_edges"})
    assert link.is_symlink() and metadata_of(lora)["artmancer.recipe"] == "image_edges"


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_no_other(
    lora: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    before = lora.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    if failing == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    else:
        monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(ArtMancerError, match=r"cannot be written \(No space left on device\)"):
        tagging.tag(lora, {"recipe": "image_edges"})
    assert lora.read_bytes() == before
    assert [path.name for path in lora.parent.iterdir()] == [lora.name]


def test_weights_that_differ_on_the_disk_are_noticed(
    lora: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, fsync = lora.read_bytes(), os.fsync

    def flip(descriptor: int) -> None:
        fsync(descriptor)
        size = os.fstat(descriptor).st_size
        os.pwrite(descriptor, bytes([before[-1] ^ 1]), size - 1)

    monkeypatch.setattr(os, "fsync", flip)
    with pytest.raises(ArtMancerError, match="weights on the disk differ"):
        tagging.tag(lora, {"recipe": "image_edges"})
    assert lora.read_bytes() == before


def test_what_is_no_whole_checkpoint_is_refused(lora: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtMancerError) as error:
        tagging.tag(tmp_path / "none.safetensors", {"recipe": "image_edges"})
    assert error.value.code == "checkpoint_missing"
    lora.write_bytes(lora.read_bytes()[:-1])
    with pytest.raises(ArtMancerError, match="not a whole safetensors file"):
        tagging.tag(lora, {"recipe": "image_edges"})


@pytest.mark.parametrize(
    "key",
    [
        "transformer_blocks.0.attn.to_q.weight",  # a whole model
        "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight",  # of the text encoder alone
        "transformer_blocks.0.attn.to_q.oft_blocks",  # another kind of adapter
        "emb_params",  # a textual inversion
    ],
)
def test_what_is_no_lora_is_refused_in_one_sentence_and_stays(
    tmp_path: Path, capsys, key: str
) -> None:
    path = tmp_path / "model.safetensors"
    save_file({key: torch.zeros(2, 2), "a.alpha": torch.ones(1)}, path)
    before = path.read_bytes()
    assert cli.main(["models", "tag", str(path), "--recipe=image_edges"]) == 1
    message = capsys.readouterr().err
    assert "'model.safetensors' is no LoRA that can be loaded" in message
    assert message.count("\n") == 1
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["tag"],
        ["tag", "x.safetensors"],
        ["tag", "x.safetensors", "--recipe=soup"],
        ["fetch", "soup"],
    ],
)
def test_wrong_usage_ends_with_2(arguments: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["models", *arguments])
    assert exit_.value.code == 2
    assert capsys.readouterr().err
