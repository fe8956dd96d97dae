"""`artmancer models`: what is found, and the download, from a hub on this machine that answers as
the real one does.
"""

import asyncio
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web
from support import tiny_qwen

from artmancer import cli, models


class Hub:
    """A Hugging Face hub with one repository, at one revision."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.asked: list[tuple[str, str | None]] = []  # file, range
        self.cuts = 0  # how many answers break off in the middle of the weights
        self.loop = asyncio.new_event_loop()
        self.ready = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()
        self.ready.wait(10)

    def _serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        app = web.Application()
        root = f"/{models.REPOSITORY}"
        app.router.add_get(f"/api/models{root}/revision/{models.REVISION}", self._info)
        app.router.add_get(f"/api/models{root}/tree/{models.REVISION}", self._tree)
        app.router.add_route("*", root + "/resolve/" + models.REVISION + "/{name:.*}", self._file)
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
            {"id": models.REPOSITORY, "sha": models.REVISION, "siblings": siblings}
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
            "X-Repo-Commit": models.REVISION,
            "ETag": f'"{digest}"',
            "Accept-Ranges": "bytes",
        }
        if request.method == "HEAD":
            return web.Response(headers={**headers, "Content-Length": str(len(data))})
        asked = request.headers.get("Range")
        self.asked.append((name, asked))
        start = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
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
    served = Hub({"model_index.json": b"{}", "transformer/one.safetensors": weights})
    yield served
    served.loop.call_soon_threadsafe(served.loop.stop)


def fetch(hub: Hub, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "artmancer.cli", "models", "fetch", "--folder", str(folder)]
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HUB_DOWNLOAD_TIMEOUT": "2",
        "HF_HUB_DISABLE_XET": "1",
    }
    environment["HF_HOME"] = str(folder.parent / "hf")
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_the_base_is_fetched_and_checked_and_not_again(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    done = fetch(hub, folder)
    assert done.returncode == 0, done.stderr
    assert "complete, every file checked" in done.stdout and "%" in done.stderr
    for name, data in hub.files.items():
        assert (folder / name).read_bytes() == data
    hub.asked.clear()
    assert fetch(hub, folder).returncode == 0
    assert hub.asked == []


def test_a_file_that_was_changed_is_named(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    assert fetch(hub, folder).returncode == 0
    weights = folder / "transformer" / "one.safetensors"
    spoiled = bytearray(weights.read_bytes())
    spoiled[1000] ^= 1
    stamp = weights.stat()
    weights.write_bytes(spoiled)
    os.utime(weights, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    failed = fetch(hub, folder)
    assert failed.returncode == 1 and "transformer/one.safetensors" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_a_connection_that_breaks_off_goes_on_in_the_middle(hub: Hub, tmp_path: Path) -> None:
    hub.cuts = 1
    assert fetch(hub, tmp_path / "base").returncode == 0
    assert hub.asked[-1][1] and not hub.asked[-1][1].startswith("bytes=0-")


def test_after_a_download_that_failed_whole_files_are_kept(hub: Hub, tmp_path: Path) -> None:
    hub.cuts = 100
    failed = fetch(hub, tmp_path / "base")
    assert failed.returncode == 1 and "Run the command again: whole files are kept" in failed.stderr
    hub.cuts = 0
    hub.asked.clear()
    assert fetch(hub, tmp_path / "base").returncode == 0
    assert [name for name, _ in hub.asked] == ["transformer/one.safetensors"]


def test_fastsam_is_fetched_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = bytes(range(256)) * 1000
    (tmp_path / "served.pt").write_bytes(weights)
    monkeypatch.setattr(models, "FASTSAM_URL", (tmp_path / "served.pt").as_uri())
    monkeypatch.setattr(models, "FASTSAM_SHA256", hashlib.sha256(weights).hexdigest())
    command = ["models", "fetch", "fastsam-s", "--folder", str(tmp_path / "fastsam")]
    assert cli.main(command) == 0
    assert (tmp_path / "fastsam" / "FastSAM-s.pt").read_bytes() == weights
    capsys.readouterr()
    (tmp_path / "served.pt").write_bytes(weights[::-1])
    (tmp_path / "fastsam" / "FastSAM-s.pt").unlink()
    assert cli.main(command) == 1
    assert "FastSAM-s.pt could not be downloaded" in capsys.readouterr().err
    assert not list((tmp_path / "fastsam").glob("*.pt")), "nothing half-written"
    assert cli.main([*command[:-1], str(tmp_path / "served.pt" / "fastsam")]) == 1
    assert "FastSAM-s.pt could not be downloaded" in capsys.readouterr().err, (
        "no folder can be made in a file"
    )


def test_what_lies_in_comfyuis_folders_is_listed(
    tiny_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    monkeypatch.setenv("MODEL_PATH", str(tiny_base))
    loras = tmp_path / "models" / "loras"
    loras.mkdir(parents=True)
    tiny_qwen.save_lora(
        loras / "removal_cp.safetensors", tiny_base, metadata={"artmancer.resolution": "512"}
    )
    tiny_qwen.save_lora(loras / "other.safetensors", tiny_base)
    elsewhere = tiny_qwen.save_lora(tmp_path / "mine.safetensors", tiny_base)
    monkeypatch.setenv("MODEL_FILE", str(elsewhere))
    monkeypatch.setenv("MODEL_FILE_WHITE_BALANCE", str(tmp_path / "gone.safetensors"))
    assert cli.main(["models", "--json"]) == 0
    listed = {
        Path(one["path"]).name: (one["kind"], one["about"])
        for one in json.loads(capsys.readouterr().out)
    }
    assert listed[tiny_base.name] == ("base", "")
    assert listed["removal_cp.safetensors"] == ("removal", "resolution 512")
    assert listed["other.safetensors"] == ("lora", "") and listed["mine.safetensors"] == (
        "insertion",
        "",
    )
    assert (
        listed["gone.safetensors"][0] == "white_balance"
        and "no checkpoint" in listed["gone.safetensors"][1]
    )
    assert cli.main(["models"]) == 0
    assert "removal        " in capsys.readouterr().out


def test_without_a_base_the_list_says_how_to_get_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    for name in ("MODEL_PATH", "MODEL_FILE", "MODEL_FILE_REMOVAL", "MODEL_FILE_WHITE_BALANCE"):
        monkeypatch.delenv(name, raising=False)
    assert cli.main(["models"]) == 0
    said = capsys.readouterr().out
    assert "artmancer models fetch" in said
    assert all(f"no {variant}" in said for variant in ("insertion", "removal", "white_balance"))
    assert "removal_cp.safetensors" in said


def test_of_two_checkpoints_with_one_name_the_first_folders_is_used_everywhere(
    tiny_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    monkeypatch.delenv("MODEL_FILE_REMOVAL", raising=False)
    for folder in ("artmancer", "loras"):
        (tmp_path / "models" / folder).mkdir(parents=True)
        tiny_qwen.save_lora(
            tmp_path / "models" / folder / "removal_cp.safetensors",
            tiny_base,
            metadata={"artmancer.resolution": "512" if folder == "artmancer" else "768"},
        )
    assert cli.main(["models", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    kinds = {Path(row["path"]).parent.name: (row["kind"], row["about"]) for row in rows}
    assert kinds["artmancer"] == ("removal", "resolution 512")
    assert kinds["loras"] == (
        "lora",
        "loras/removal_cp.safetensors is not used: artmancer/removal_cp.safetensors has the same "
        "name and comes first.",
    )
    path, notes = models.checkpoint("removal")
    assert path == tmp_path / "models" / "artmancer" / "removal_cp.safetensors"
    assert notes == (kinds["loras"][1],)
