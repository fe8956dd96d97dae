"""`artmancer serve --with-comfyui` while its ComfyUI starts, or cannot start."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.comfyui import free_port
from support.gateway import GRAPHS, error, removal, until
from support.paths import ROOT
from support.processes import ForkedProcess

from artmancer import cli

SLOW = """
import sys, time
from pathlib import Path

sys.path.insert(0, "{tests}")
from support.fake_comfyui import serve_fake_comfyui

while not Path("{go}").exists():
    time.sleep(0.02)
serve_fake_comfyui(int(sys.argv[sys.argv.index("--port") + 1]), Path("{log}"))
"""
"""The main.py of a ComfyUI that listens once the file `go` is there."""


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., httpx.Client]]:
    """Start the gateway with a ComfyUI of this main.py, and return a client of it."""
    processes: list[ForkedProcess] = []
    clients: list[httpx.Client] = []

    def start(main: str, *more: str) -> httpx.Client:
        folder = tmp_path / "ComfyUI"
        folder.mkdir()
        paths = {"tests": ROOT / "tests", "go": tmp_path / "go", "log": tmp_path / "runs.log"}
        (folder / "main.py").write_text(main.format(**paths))
        port = free_port()
        comfyui_url = f"http://127.0.0.1:{free_port()}"
        arguments = ["serve", "--with-comfyui", "--port", str(port), "--comfyui-url", comfyui_url]
        process = ForkedProcess(
            cli.main,
            [*arguments, *more],
            log=tmp_path / "gateway.log",
            environment={
                "ARTMANCER_DATA": str(tmp_path / "data"),
                "ARTMANCER_WORKFLOWS": str(GRAPHS),
                "COMFYUI_PATH": str(folder),
            },
        )
        processes.append(process)
        client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False)
        clients.append(client)
        until(lambda: health(client))
        return client

    yield start
    for client in clients:
        client.close()
    for process in processes:
        process.stop()


def health(http: httpx.Client) -> dict[str, Any]:
    """Return the gateway's health; empty while it does not listen."""
    try:
        return dict(http.get("/api/health").json())
    except httpx.HTTPError:
        return {}


def messages(folder: Path, beginning: str) -> list[str]:
    """Return the messages in the gateway's log that begin so."""
    log = (folder / "gateway.log").read_text().splitlines()
    texts = [json.loads(line)["message"] for line in log if line.startswith("{")]
    return [text for text in texts if text.startswith(beginning)]


@pytest.mark.browser
def test_the_page_says_that_comfyui_starts_and_then_that_it_is_ready(
    serve: Callable[..., httpx.Client], browser: Any, tmp_path: Path
) -> None:
    from playwright.sync_api import expect

    http = serve(SLOW)
    page = browser.new_page()
    page.goto(str(http.base_url))
    line = page.get_by_role("status").first
    expect(line).to_have_text("ComfyUI is starting.")
    # The class that makes it red.
    expect(line).not_to_contain_class("degraded")
    (tmp_path / "go").touch()
    expect(line).to_contain_text("Editor: draft.", timeout=60_000)
    page.close()


def test_serve_says_when_it_is_ready_and_where_the_page_is(
    serve: Callable[..., httpx.Client], tmp_path: Path
) -> None:
    http = serve(SLOW)
    starting = health(http)
    assert starting["status"] == "degraded" and starting["starting"]
    answer = http.post("/api/generate", json=removal())
    assert error(answer) == (503, "comfyui_unavailable")
    assert answer.json()["detail"] == "ComfyUI is starting. Try again in a moment."
    assert not messages(tmp_path, "Ready")
    (tmp_path / "go").touch()
    until(lambda: health(http)["status"] == "healthy")
    assert not health(http)["starting"]
    until(lambda: messages(tmp_path, "Ready"))
    assert messages(tmp_path, "Ready") == [f"Ready: open {http.base_url}/"]


@pytest.mark.parametrize("count", [1, 2])
def test_one_comfyui_starts_unless_the_light_lane_has_an_address_of_its_own(
    serve: Callable[..., httpx.Client], tmp_path: Path, count: int
) -> None:
    (tmp_path / "go").touch()
    light = ["--comfyui-light-url", f"http://127.0.0.1:{free_port()}"]
    http = serve(SLOW, "--light-on-gpu", *(light if count == 2 else []))
    until(lambda: messages(tmp_path, "Ready"))
    assert http.get("/api/system/health").json()["status"] == "healthy"
    assert len(messages(tmp_path, "Starting ComfyUI")) == count
    warnings = messages(tmp_path, "--light-on-gpu is ignored")
    assert len(warnings) == (1 if count == 1 else 0)
    assert all("COMFYUI_LIGHT_URL" in warning for warning in warnings)


def test_a_comfyui_that_cannot_start_is_not_said_to_be_starting(
    serve: Callable[..., httpx.Client],
) -> None:
    http = serve("raise SystemExit(3)")
    until(lambda: not health(http).get("starting", True))
    reason = health(http)["reason"]
    assert reason == "ComfyUI exited with code 3 and is restarted. Look at its log."
