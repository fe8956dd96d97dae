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

PHOTO = EXAMPLES / "coffee.png"
MASK = EXAMPLES / "coffee_mask.png"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A gateway with a token."""
    folder = tmp_path_factory.mktemp("gateway")
    gateway_settings = settings(folder, comfyui_url=FakeHost().url, api_token="s3cret")
    with Served(gateway_settings) as gateway:
        gateway.http.headers["authorization"] = "Bearer s3cret"
        yield gateway.connected()


@pytest.fixture
def client(served: Served) -> Iterator[Client]:
    """A client with the token."""
    with Client(served.url, "s3cret") as client:
        yield client


def test_an_edit_from_files(client: Client, tmp_path: Path) -> None:
    statuses: list[JobStatus] = []
    edit = client.edit(str(PHOTO), "slow 0.5", mask=MASK, on_progress=statuses.append, seed=4)
    assert edit.model == "draft/removal" and edit.parameters["seed"] == 4 and edit.seconds > 0.4
    assert statuses[-1].state == "done" and statuses[-1].progress == 1
    assert any(status.step for status in statuses)
    edit.save(tmp_path / "result.png")
    # The fake ComfyUI returns the photo.
    assert (tmp_path / "result.png").read_bytes() == PHOTO.read_bytes()


def test_an_edit_from_bytes_step_by_step(client: Client) -> None:
    job_id = client.submit(PHOTO.read_bytes(), "hold", mask=MASK.read_bytes(), task="removal")
    assert client.status(job_id).state in ("queued", "processing")
    with pytest.raises(ArtMancerError) as refused:
        client.result(job_id)
    assert refused.value.code == "not_finished"
    assert client.cancel(job_id)
    with pytest.raises(ArtMancerError, match="cancelled"):
        client.wait(job_id)


def test_errors_have_their_codes(client: Client, served: Served) -> None:
    with pytest.raises(ArtMancerError) as refused:
        client.edit(PHOTO, "x", task="removal")
    assert refused.value.code == "mask_missing"
    with pytest.raises(ArtMancerError) as failed:
        client.edit(PHOTO, "fail out_of_memory", mask=MASK)
    assert failed.value.code == "out_of_memory"
    with Client(served.url, "wrong") as stranger, pytest.raises(ArtMancerError) as unknown:
        stranger.status("x")
    assert unknown.value.code == "unauthorized"


def test_a_keyboard_interrupt_cancels_the_edit(client: Client, served: Served) -> None:
    def stop(status: JobStatus) -> None:
        if status.state == "processing":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        client.edit(PHOTO, "hold", mask=MASK, on_progress=stop)
    until(lambda: 'artmancer_jobs_total{state="cancelled"' in served.http.get("/metrics").text)


def test_the_command_serves_until_it_is_interrupted(tmp_path: Path) -> None:
    host = FakeHost()
    port = free_port()
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

            # It is healthy only with COMFYUI_URL of the environment, which precedes .env.
            until(healthy)
            assert http.get("/").status_code == 404
            assert http.get("/api/health", headers={"host": "evil.example:8003"}).status_code == 401
    finally:
        process.send_signal(signal.SIGINT)
    assert process.wait(WAIT_TIMEOUT) in (0, -signal.SIGINT, 130)


@pytest.mark.parametrize("url", ["http://10.1.2.3:8188", "http://comfy.example:80"])
def test_a_comfyui_is_started_on_this_machine_only(tmp_path: Path, url: str) -> None:
    env = {
        **os.environ,
        "ARTMANCER_DATA": str(tmp_path),
        "COMFYUI_LIGHT_URL": url,
        "COMFYUI_PATH": str(tmp_path),
    }
    command = [
        *(sys.executable, "-m", "artmancer", "serve"),
        *("--with-comfyui", "--comfyui-url", url),
    ]
    process = subprocess.run(
        command, env=env, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert process.returncode == 1 and "an address of this machine" in process.stderr


def test_the_client_retries_the_result_after_a_lost_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = FakeHost()
    with (
        Served(settings(tmp_path, comfyui_url=host.url)) as served,
        Client(served.connected().url) as client,
    ):
        requests: list[str] = []
        result = client.result

        def fail_once(job_id: str) -> EditResponse:
            requests.append(job_id)
            if len(requests) == 1:
                raise ConnectionError("The gateway restarts.")
            return result(job_id)

        monkeypatch.setattr(client, "result", fail_once)
        assert client.edit(PHOTO, "now", mask=MASK).image
        assert len(requests) == 2


def test_the_error_without_a_gateway_names_the_command_that_starts_it() -> None:
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
    assert (line["level"], line["message"]) == ("info", "job ended")
    assert (line["job"], line["seconds"]) == ("1", 0.5)


def test_log_lines_on_a_terminal_are_plain_text(capsys: pytest.CaptureFixture[str]) -> None:
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


def test_the_documented_environment_variables_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
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
    values = Settings(_env_file=None)
    assert (values.host, values.port, values.debug, values.role) == ("0.0.0.0", 9000, True, "light")
    assert values.allowed_origins == ["https://a.example", "https://b.example"]
    assert values.comfyui_light_url is None
    assert (
        values.api_token
        and values.api_token.get_secret_value() == "t"
        and "'t'" not in repr(values)
    )


@pytest.mark.parametrize(
    ("message", "expected"),
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
def test_messages_contain_no_folder_of_the_host(message: str, expected: str) -> None:
    assert without_paths(message) == expected


def test_threads_can_share_a_client(client: Client) -> None:
    models: list[str] = []

    def edit(seed: int) -> None:
        models.append(client.edit(PHOTO, "now", mask=MASK, seed=seed).model)

    threads = [threading.Thread(target=edit, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_TIMEOUT)
    assert len(models) == len(threads)


def test_allowing_every_origin_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALLOWED_ORIGINS", "*")
    with pytest.raises(ValueError, match="would allow every web page"):
        Settings()
