"""`artmancer models`: the list of models, and downloads from a local stand-in for the Hugging Face
hub.
"""

import asyncio
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web
from support import tiny_qwen

from artmancer import cli, models

WEIGHTS = "transformer/one.safetensors"
"""Path of the weights in the hub's repository."""


class Hub:
    """A Hugging Face hub with one repository, at one revision.

    Parameters
    ----------
    name : a key of models.BASES, whose repository and revision it has

    Attributes
    ----------
    files : content of the repository's files by path
    requests : (path, value of the Range header) of each download
    cuts : number of next downloads of weights that are cut off in the middle
    url : address of the hub
    """

    def __init__(self, files: dict[str, bytes], name: str = "qwen-2511") -> None:
        self.files = files
        self.base = models.BASES[name]
        self.requests: list[tuple[str, str | None]] = []
        self.cuts = 0
        self.loop = asyncio.new_event_loop()
        self.ready = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()
        self.ready.wait(10)

    def _serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        app = web.Application()
        root, revision = f"/{self.base.repository}", self.base.revision
        app.router.add_get(f"/api/models{root}/revision/{revision}", self._info)
        app.router.add_get(f"/api/models{root}/tree/{revision}", self._tree)
        app.router.add_route("*", root + "/resolve/" + revision + "/{name:.*}", self._file)
        runner = web.AppRunner(app)
        self.loop.run_until_complete(runner.setup())
        site = web.TCPSite(runner, "127.0.0.1", 0)
        self.loop.run_until_complete(site.start())
        self.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
        self.ready.set()
        self.loop.run_forever()

    async def _info(self, request: web.Request) -> web.Response:
        siblings = [{"rfilename": name} for name in self.files]
        return web.json_response(
            {"id": self.base.repository, "sha": self.base.revision, "siblings": siblings}
        )

    async def _tree(self, request: web.Request) -> web.Response:
        return web.json_response(
            [
                {
                    "type": "file",
                    "path": name,
                    "size": len(data),
                    "oid": "0" * 40,
                    "lfs": {
                        "oid": hashlib.sha256(data).hexdigest(),
                        "size": len(data),
                        "pointerSize": 100,
                    },
                }
                for name, data in self.files.items()
            ]
        )

    async def _file(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        data = self.files[name]
        digest = hashlib.sha256(data).hexdigest()
        headers = {
            "X-Repo-Commit": self.base.revision,
            "ETag": f'"{digest}"',
            "Accept-Ranges": "bytes",
        }
        if request.method == "HEAD":
            return web.Response(headers={**headers, "Content-Length": str(len(data))})
        byte_range = request.headers.get("Range")
        self.requests.append((name, byte_range))
        start = int(byte_range.removeprefix("bytes=").split("-")[0]) if byte_range else 0
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        response = web.StreamResponse(status=206 if start else 200, headers=headers)
        response.content_length = len(data) - start
        await response.prepare(request)
        if self.cuts and name.endswith(".safetensors"):
            self.cuts -= 1
            await response.write(data[start : len(data) // 2])
            assert request.transport
            request.transport.abort()
            return response
        await response.write(data[start:])
        return response


@pytest.fixture
def hub() -> Iterator[Hub]:
    weights = bytes(range(256)) * 200_000
    running = Hub({"model_index.json": b"{}", WEIGHTS: weights})
    yield running
    running.loop.call_soon_threadsafe(running.loop.stop)


def download(hub: Hub, folder: Path, *model: str) -> subprocess.CompletedProcess[str]:
    """Run `artmancer models fetch` with the hub's address."""
    options = [*model, "--folder", str(folder)]
    command = [sys.executable, "-m", "artmancer.cli", "models", "fetch", *options]
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HUB_DOWNLOAD_TIMEOUT": "2",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(folder.parent / "hf"),
    }
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_the_base_is_downloaded_once_and_every_file_checked(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    process = download(hub, folder)
    assert process.returncode == 0, process.stderr
    assert "complete, every file checked" in process.stdout
    assert "%" in process.stderr
    for name, data in hub.files.items():
        assert (folder / name).read_bytes() == data
    hub.requests.clear()
    assert download(hub, folder).returncode == 0
    assert hub.requests == []


@pytest.mark.parametrize(
    ("model", "repository"),
    [
        ((), "Qwen/Qwen-Image-Edit-2511"),
        (("qwen",), "Qwen/Qwen-Image-Edit-2511"),
        (("qwen-2511",), "Qwen/Qwen-Image-Edit-2511"),
        (("qwen-2509",), "Qwen/Qwen-Image-Edit-2509"),
    ],
)
def test_the_base_is_chosen_and_its_size_and_revision_come_before_the_download(
    model: tuple[str, ...],
    repository: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    (tmp_path / "main.py").touch()
    downloads: list[tuple[str, str, str]] = []

    def snapshot_download(repository: str, revision: str, local_dir: Path) -> None:
        downloads.append((repository, revision, local_dir.name))
        line = capsys.readouterr().err
        assert f"{repository} (57.7 GB, revision {revision})" in line
        assert str(local_dir) in line
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert cli.main(["models", "fetch", *model, "--json"]) == 1
    assert "no network" in json.loads(capsys.readouterr().out)["detail"]
    [(source, revision, folder)] = downloads
    assert (source, folder) == (repository, repository.split("/")[1])
    assert re.fullmatch("[0-9a-f]{40}", revision), "a commit, and no branch, which may move"


def test_the_older_base_is_downloaded_from_its_own_repository(tmp_path: Path) -> None:
    hub = Hub({"model_index.json": b"{}"}, "qwen-2509")
    process = download(hub, tmp_path / "base", "qwen-2509")
    hub.loop.call_soon_threadsafe(hub.loop.stop)
    assert process.returncode == 0, process.stderr
    assert [name for name, _ in hub.requests] == ["model_index.json"]


def test_the_message_names_a_changed_file(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    assert download(hub, folder).returncode == 0
    path = folder / WEIGHTS
    changed = bytearray(path.read_bytes())
    changed[1000] ^= 1
    times = path.stat()
    path.write_bytes(changed)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    process = download(hub, folder)
    assert process.returncode == 1
    assert WEIGHTS in process.stderr
    assert "Traceback" not in process.stderr


@pytest.mark.slow
def test_a_download_resumes_after_a_lost_connection(hub: Hub, tmp_path: Path) -> None:
    hub.cuts = 1
    assert download(hub, tmp_path / "base").returncode == 0
    _, byte_range = hub.requests[-1]
    assert byte_range
    assert not byte_range.startswith("bytes=0-")


@pytest.mark.slow
def test_whole_files_are_kept_after_a_failed_download(hub: Hub, tmp_path: Path) -> None:
    hub.cuts = 100
    process = download(hub, tmp_path / "base")
    assert process.returncode == 1
    assert "Run the command again: whole files are kept" in process.stderr
    hub.cuts = 0
    hub.requests.clear()
    assert download(hub, tmp_path / "base").returncode == 0
    assert [name for name, _ in hub.requests] == [WEIGHTS]


@pytest.mark.parametrize(
    ("model", "name", "file"),
    [("fastsam-s", "FASTSAM", "FastSAM-s.pt"), ("big-lama", "LAMA", "big-lama.pt")],
)
def test_a_file_is_downloaded_and_checked(
    model: str,
    name: str,
    file: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    weights = bytes(range(256)) * 1000
    source = tmp_path / "served.pt"
    target = tmp_path / "models" / file
    source.write_bytes(weights)
    monkeypatch.setattr(models, f"{name}_URL", source.as_uri())
    monkeypatch.setattr(models, f"{name}_SHA256", hashlib.sha256(weights).hexdigest())
    command = ["models", "fetch", model, "--folder"]
    assert cli.main([*command, str(target.parent)]) == 0
    assert target.read_bytes() == weights
    assert " MB) into" in capsys.readouterr().err
    # A file with another hash.
    source.write_bytes(weights[::-1])
    target.unlink()
    assert cli.main([*command, str(target.parent)]) == 1
    assert f"{file} could not be downloaded" in capsys.readouterr().err
    assert not list(target.parent.glob("*.pt")), "no partial file"
    # A folder inside a file cannot be created.
    assert cli.main([*command, str(source / "folder")]) == 1
    assert f"{file} could not be downloaded" in capsys.readouterr().err


def test_models_lists_the_files_in_comfyuis_folders_and_in_the_environment(
    tiny_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    monkeypatch.setenv("MODEL_PATH", str(tiny_base))
    loras = tmp_path / "models" / "loras"
    loras.mkdir(parents=True)
    metadata = {"artmancer.resolution": "512"}
    tiny_qwen.save_lora(loras / "removal_cp.safetensors", tiny_base, metadata=metadata)
    tiny_qwen.save_lora(loras / "other.safetensors", tiny_base)
    own_lora = tiny_qwen.save_lora(tmp_path / "mine.safetensors", tiny_base)
    monkeypatch.setenv("MODEL_FILE", str(own_lora))
    monkeypatch.setenv("MODEL_FILE_WHITE_BALANCE", str(tmp_path / "gone.safetensors"))
    assert cli.main(["models", "--json"]) == 0
    rows = {Path(row["path"]).name: row for row in json.loads(capsys.readouterr().out)}
    kinds = {name: (row["kind"], row["about"]) for name, row in rows.items()}
    assert kinds[tiny_base.name] == ("base", "")
    assert kinds["removal_cp.safetensors"] == (
        "removal",
        "recipe background_mask_fill by its file name, resolution 512",
    )
    assert kinds["other.safetensors"] == ("lora", "")
    assert kinds["mine.safetensors"] == ("insertion", "")
    assert kinds["gone.safetensors"][0] == "white_balance"
    assert "no checkpoint" in kinds["gone.safetensors"][1]
    assert cli.main(["models"]) == 0
    assert "removal        " in capsys.readouterr().out


def test_the_newest_base_is_the_default_whatever_the_folders_are_called(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    monkeypatch.delenv("MODEL_PATH", raising=False)
    diffusers = tmp_path / "models" / "diffusers"
    releases = {"a-2509": {}, "b-2509": {"zero_cond_t": False}, "c-2511": {"zero_cond_t": True}}
    for name, config in releases.items():
        (diffusers / name / "transformer").mkdir(parents=True)
        index = {"_class_name": "QwenImageEditPlusPipeline"}
        (diffusers / name / "model_index.json").write_text(json.dumps(index))
        (diffusers / name / "transformer" / "config.json").write_text(json.dumps(config))
    (diffusers / "a-2509" / "transformer" / "config.json").write_text("damaged")

    def listed() -> list[str]:
        assert cli.main(["models", "--json"]) == 0
        rows = json.loads(capsys.readouterr().out)
        return [Path(row["path"]).name for row in rows if row["kind"] == "base"]

    assert listed() == ["c-2511", "a-2509", "b-2509"]
    assert models.base() == diffusers / "c-2511"
    monkeypatch.setenv("MODEL_PATH", str(diffusers / "b-2509"))
    assert listed() == ["b-2509", "c-2511", "a-2509"]
    assert models.base() == diffusers / "b-2509"


def test_without_a_base_models_shows_the_command_to_download_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    for name in ("MODEL_PATH", "MODEL_FILE", "MODEL_FILE_REMOVAL", "MODEL_FILE_WHITE_BALANCE"):
        monkeypatch.delenv(name, raising=False)
    assert cli.main(["models"]) == 0
    text = capsys.readouterr().out
    assert "artmancer models fetch" in text
    assert all(f"no {variant}" in text for variant in ("insertion", "removal", "white_balance"))
    assert "removal_cp.safetensors" in text


def test_of_two_checkpoints_with_one_name_the_one_in_the_first_folder_is_used(
    tiny_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    monkeypatch.delenv("MODEL_FILE_REMOVAL", raising=False)
    for folder, resolution in (("artmancer", "512"), ("loras", "768")):
        path = tmp_path / "models" / folder / "removal_cp.safetensors"
        path.parent.mkdir(parents=True)
        tiny_qwen.save_lora(path, tiny_base, metadata={"artmancer.resolution": resolution})
    assert cli.main(["models", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    kinds = {Path(row["path"]).parent.name: (row["kind"], row["about"]) for row in rows}
    assert kinds["artmancer"] == (
        "removal",
        "recipe background_mask_fill by its file name, resolution 512",
    )
    assert kinds["loras"] == (
        "lora",
        "loras/removal_cp.safetensors is not used: artmancer/removal_cp.safetensors has the same "
        "name and comes first.",
    )
    path, notes = models.checkpoint("removal")
    assert path == tmp_path / "models" / "artmancer" / "removal_cp.safetensors"
    assert notes == (kinds["loras"][1],)
    monkeypatch.setenv(
        "MODEL_FILE_REMOVAL", str(tmp_path / "models" / "loras" / "removal_cp.safetensors")
    )
    kinds = {model.path.parent.name: model.kind for model in models.inventory()}
    assert kinds == {"artmancer": "lora", "loras": "removal"}, "the environment comes first"


def test_other_loras_of_one_name_do_not_hide_each_other(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    for folder in ("a", "b"):
        path = tmp_path / "models" / "loras" / folder / "pytorch_lora_weights.safetensors"
        path.parent.mkdir(parents=True)
        tiny_qwen.save_lora(path, tiny_base, metadata={"artmancer.resolution": "512"})
    assert [model.note for model in models.inventory()] == ["resolution 512"] * 2
