"""The Python client, the command `artmancer serve`, and the settings."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from support.gateway import WAIT_TIMEOUT, FakeHost, Served, free_port, settings, until
from support.paths import EXAMPLES, ROOT

from artmancer.client import Client, EditResponse, JobStatus
from artmancer.errors import ArtMancerError
from artmancer.gateway.comfy_runner import without_paths
from artmancer.gateway.logs import JsonLines, PlainLines, log_event
from artmancer.gateway.settings import Settings

PHOTO, MASK = EXAMPLES / "coffee.png", EXAMPLES / "coffee_mask.png"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    made = settings(
        tmp_path_factory.mktemp("gateway"), comfyui_url=FakeHost().url, api_token="s3cret"
    )
    with Served(made) as gateway:
        gateway.http.headers["authorization"] = "Bearer s3cret"
        yield gateway.connected()


@pytest.fixture
def client(served: Served) -> Iterator[Client]:
    with Client(served.url, "s3cret") as made:
        yield made


def test_an_edit_from_files(client: Client, tmp_path: Path) -> None:
    seen: list[JobStatus] = []
    edited = client.edit(str(PHOTO), "slow 0.5", mask=MASK, on_progress=seen.append, seed=4)
    assert (
        edited.model == "draft/removal" and edited.parameters["seed"] == 4 and edited.seconds > 0.4
    )
    assert seen[-1].state == "done" and seen[-1].progress == 1 and any(one.step for one in seen)
    edited.save(tmp_path / "result.png")
    assert (tmp_path / "result.png").read_bytes() == PHOTO.read_bytes()  # what the fake gives back


def test_an_edit_from_bytes_step_by_step(client: Client) -> None:
    task = client.submit(PHOTO.read_bytes(), "hold", mask=MASK.read_bytes(), task="removal")
    assert client.status(task).state in ("queued", "processing")
    with pytest.raises(ArtMancerError) as refused:
        client.result(task)
    assert refused.value.code == "not_finished"
    assert client.cancel(task)
    with pytest.raises(ArtMancerError, match="cancelled"):
        client.wait(task)


def test_a_refusal_has_its_code(client: Client, served: Served) -> None:
    with pytest.raises(ArtMancerError) as refused:
        client.edit(PHOTO, "x", task="removal")
    assert refused.value.code == "mask_missing"
    with pytest.raises(ArtMancerError) as failed:
        client.edit(PHOTO, "fail out_of_memory", mask=MASK)
    assert failed.value.code == "out_of_memory"
    with Client(served.url, "wrong") as stranger, pytest.raises(ArtMancerError) as unknown:
        stranger.status("x")
    assert unknown.value.code == "unauthorized"


def test_an_edit_that_is_interrupted_is_cancelled(client: Client, served: Served) -> None:
    def stop(status: JobStatus) -> None:
        if status.state == "processing":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        client.edit(PHOTO, "hold", mask=MASK, on_progress=stop)
    until(lambda: 'artmancer_jobs_total{state="cancelled"' in served.http.get("/metrics").text)


def test_the_command_serves_and_ends(tmp_path: Path) -> None:
    host, port = FakeHost(), free_port()
    env = {**os.environ, "ARTMANCER_DATA": str(tmp_path / "data"), "COMFYUI_URL": host.url}
    (tmp_path / ".env").write_text(
        f"PORT={port}\nCOMFYUI_URL=http://127.0.0.1:1\nARTMANCER_PAGE=false\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "artmancer", "serve"],
        cwd=tmp_path,
        env={**env, "PYTHONPATH": str(ROOT)},
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http:

            def healthy() -> bool:
                try:
                    return bool(http.get("/api/health").json()["status"] == "healthy")
                except httpx.HTTPError:
                    return False

            until(healthy)  # the environment wins over .env
            assert http.get("/").status_code == 404
            assert http.get("/api/health", headers={"host": "evil.example:8003"}).status_code == 401
    finally:
        process.send_signal(signal.SIGINT)
    assert process.wait(WAIT_TIMEOUT) in (0, -signal.SIGINT, 130)


@pytest.mark.parametrize("url", ["http://10.1.2.3:8188", "http://comfy.example:80"])
def test_a_comfyui_is_started_on_this_machine_alone(tmp_path: Path, url: str) -> None:
    env = {
        **os.environ,
        "ARTMANCER_DATA": str(tmp_path),
        "COMFYUI_LIGHT_URL": url,
        "COMFYUI_PATH": str(tmp_path),
    }
    command = [
        sys.executable,
        "-m",
        "artmancer",
        "serve",
        "--with-comfyui",
        "--comfyui-url",
        url,
    ]
    said = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    assert said.returncode == 1 and "an address of this machine" in said.stderr


def test_a_gateway_that_starts_again_between_the_end_and_the_result_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = FakeHost()
    with (
        Served(settings(tmp_path, comfyui_url=host.url)) as served,
        Client(served.connected().url) as client,
    ):
        asked, real = [0], client.result

        def breaks_once(task_id: str) -> EditResponse:
            asked[0] += 1
            if asked[0] == 1:
                raise ConnectionError("it starts again")
            return real(task_id)

        monkeypatch.setattr(client, "result", breaks_once)
        assert client.edit(PHOTO, "now", mask=MASK).image and asked[0] == 2


def test_where_no_gateway_answers_a_sentence_says_what_to_do() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with Client(url) as client, pytest.raises(ConnectionError, match="artmancer serve") as refused:
        client.edit(PHOTO, "x")
    assert url in str(refused.value)


def test_log_lines_are_json(capsys: pytest.CaptureFixture[str]) -> None:
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonLines())
    logger = logging.Logger("a")
    logger.addHandler(handler)
    log_event(logger, "job ended", job="1", seconds=0.5)
    line = json.loads(capsys.readouterr().out)
    assert (line["level"], line["message"], line["job"], line["seconds"]) == (
        "info",
        "job ended",
        "1",
        0.5,
    )


def test_log_lines_on_a_terminal_are_words(capsys: pytest.CaptureFixture[str]) -> None:
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(PlainLines())
    logger = logging.Logger("a")
    logger.addHandler(handler)
    log_event(logger, "job ended", job="1", seconds=0.5)
    logger.warning("ComfyUI ended")
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith(" job ended job=1 seconds=0.5")
    assert second.endswith(" WARNING: ComfyUI ended")


def test_the_gateway_needs_no_torch() -> None:
    probe = "import sys, artmancer.gateway.app, artmancer.client; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe], check=False, cwd=ROOT).returncode == 0


def test_the_names_of_the_contract_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "HOST": "0.0.0.0",
        "PORT": "9000",
        "DEBUG": "true",
        "ALLOWED_ORIGINS": "https://a.example, https://b.example/",
        "COMFYUI_URL": "http://10.0.0.1:8188",
        "COMFYUI_LIGHT_URL": "",
        "ARTMANCER_API_TOKEN": "t",
        "ARTMANCER_ROLE": "light",
    }.items():
        monkeypatch.setenv(name, value)
    read = Settings(_env_file=None)
    assert (read.host, read.port, read.debug, read.role) == ("0.0.0.0", 9000, True, "light")
    assert read.allowed_origins == ["https://a.example", "https://b.example"]
    assert read.comfyui_light_url is None
    assert read.api_token and read.api_token.get_secret_value() == "t" and "'t'" not in repr(read)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("No file /root/models/x.safetensors is there.", "No file x.safetensors is there."),
        (r"No file C:\models\x.safetensors is there.", "No file x.safetensors is there."),
        ("C:/models/a/x.safetensors, file:/root/models/y", "x.safetensors, y"),
        ("no dir /root", "no dir root"),
        ("'/home/John Smith/models/x.safetensors' is gone", "'x.safetensors' is gone"),
        (r"'C:\Users\John Smith\ComfyUI\x.safetensors' is gone", "'x.safetensors' is gone"),
        ("Error:/root/models/x", "Error:x"),
        (r"no \\server\share\x", "no x"),
        ("3/4 of it at http://127.0.0.1:8188/x stay", "3/4 of it at http://127.0.0.1:8188/x stay"),
        (
            "The mask is 60x40 but the image is 600x400.",
            "The mask is 60x40 but the image is 600x400.",
        ),
    ],
)
def test_no_folder_of_the_host_is_told(said: str, told: str) -> None:
    assert without_paths(said) == told


def test_threads_may_share_a_gateway(client: Client) -> None:
    done: list[str] = []
    threads = [
        threading.Thread(
            target=lambda n=n: done.append(client.edit(PHOTO, "now", mask=MASK, seed=n).model)
        )
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_TIMEOUT)
    assert len(done) == 8


def test_not_every_page_can_be_let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALLOWED_ORIGINS", "*")
    with pytest.raises(ValueError, match="would allow every web page"):
        Settings()
