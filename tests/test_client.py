"""The Python client, the command `artmancer serve`, and the settings."""

import asyncio
import base64
import functools
import inspect
import io
import json
import logging
import os
import re
import signal
import ssl
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest
from PIL import Image
from support import gateway as support_gateway
from support.gateway import WAIT_TIMEOUT, FakeHost, Served, free_port, settings, until
from support.paths import EXAMPLES, ROOT

from artmancer import images
from artmancer.client import AsyncClient, Client, EditResponse, JobStatus, patience
from artmancer.errors import ArtMancerError
from artmancer.gateway.comfy_runner import without_paths
from artmancer.gateway.logs import JsonLines, PlainLines, log_event
from artmancer.gateway.settings import Settings

PHOTO = EXAMPLES / "coffee.png"
MASK = EXAMPLES / "coffee_mask.png"


@pytest.fixture(scope="module", autouse=True)
def shared_tls() -> Iterator[None]:
    """Let all clients share one TLS context, which none of these tests uses: each would read the
    certificates of all authorities, for 40 ms.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssl, "create_default_context", functools.cache(ssl.create_default_context))
        yield


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


def same_pixels(first: bytes, second: bytes) -> bool:
    """Tell whether two image files show the same; the gateway adds metadata to a result."""
    images = [np.asarray(Image.open(io.BytesIO(data))) for data in (first, second)]
    return np.array_equal(*images)


def test_an_edit_from_files(client: Client, tmp_path: Path) -> None:
    statuses: list[JobStatus] = []
    edit = client.edit(str(PHOTO), "slow 0.5", mask=MASK, on_progress=statuses.append, seed=4)
    assert edit.model == "draft/removal" and edit.parameters["seed"] == 4 and edit.seconds > 0.4
    assert statuses[-1].state == "done" and statuses[-1].progress == 1
    assert any(status.step for status in statuses)
    edit.save(tmp_path / "result.png")
    # The fake ComfyUI returns the photo.
    assert same_pixels((tmp_path / "result.png").read_bytes(), PHOTO.read_bytes())


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


class Reply(NamedTuple):
    """An answer of a SmallServer."""

    status: int
    body: str = ""
    type: str = "text/html"
    headers: Mapping[str, str] = {}


def json_reply(status: int = 200, /, **fields: Any) -> Reply:
    return Reply(status, json.dumps(fields), "application/json")


SILENCE = None
"""In place of a Reply: no answer comes, and the connection stays open."""

CUT = Reply(200, '{"task_id": "abc', "application/json", {"Content-Length": "999"})
"""An answer whose connection breaks."""

BAD_GATEWAY = Reply(502, "<html>502 Bad Gateway</html>")
"""A proxy's answer while the gateway behind it restarts."""

QUEUED = json_reply(202, task_id="abc", ignored=[])

CANCELLED = json_reply(success=True)


def status_reply(state: str) -> Reply:
    return json_reply(
        task_id="abc",
        status=state,
        progress=1,
        current_step=0,
        total_steps=0,
        loading_message=None,
        error=None,
        queue_position=None,
    )


RESULT = json_reply(
    image=base64.b64encode(PHOTO.read_bytes()).decode(),
    generation_time=1.0,
    model_used="draft/removal",
    parameters_used={},
    report={},
)

Respond = Callable[[str, str], Reply | None]
"""Returns the answer to a method and a path."""


class SmallServer:
    """An HTTP server on a port of its own, in threads.

    Attributes
    ----------
    url : its address
    requests : method, path and body of each request, in order
    """

    def __init__(self, respond: Respond, port: int = 0) -> None:
        self.requests: list[tuple[str, str, bytes]] = []
        self._closing = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                server.requests.append((self.command, self.path, body))
                reply = respond(self.command, self.path)
                if reply is None:
                    server._closing.wait()
                    return
                data = reply.body.encode()
                self.send_response(reply.status)
                headers = {"Content-Type": reply.type, "Content-Length": str(len(data))}
                for name, value in {**headers, **reply.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = answer

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        # Closing the server waits for the end of a poll.
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()

    def __enter__(self) -> "SmallServer":
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._http.shutdown()
        self._http.server_close()

    def calls(self) -> list[str]:
        """Return the method and the last part of the path of each request."""
        return [f"{method} {path.rpartition('/')[2]}" for method, path, _ in self.requests]


def in_order(*replies: Reply | None) -> Respond:
    """Return a function that gives these answers one after the other."""
    rest = iter(replies)
    return lambda method, path: next(rest)


def always(reply: Reply | None) -> Respond:
    """Return a function that gives one answer to every request."""
    return lambda method, path: reply


def cancelled_jobs(served: Served) -> int:
    """Return the number of jobs that were cancelled."""
    lines = served.http.get("/metrics").text.splitlines()
    counts = [
        line for line in lines if re.match(r'artmancer_jobs_total\{.*state="cancelled"', line)
    ]
    return sum(round(float(line.rpartition(" ")[2])) for line in counts)


# Waiting for a gateway


@pytest.mark.parametrize(
    ("timeout", "most"),
    # Each attempt but the last takes its timeout and the pause before the next.
    [(0.2, 1.5 / (0.2 + patience.POLL_SECONDS) + 2), (2.0, 1)],
)
def test_a_silent_gateway_is_waited_for_by_seconds(
    monkeypatch: pytest.MonkeyPatch, timeout: float, most: float
) -> None:
    monkeypatch.setattr(patience, "PATIENCE", 1.5)
    with SmallServer(always(SILENCE)) as server, Client(server.url, timeout=timeout) as client:
        start = time.monotonic()
        with pytest.raises(ConnectionError, match=r"tried for \d+ seconds") as lost:
            client.wait("abc")
        assert time.monotonic() - start >= 1.5 - patience.POLL_SECONDS
        # On a slow machine the server reads a request after the client gave it up.
        until(lambda: server.requests)
        assert len(server.requests) <= most
    assert "'abc'" in str(lost.value)


def test_a_gateway_is_waited_for_half_a_minute() -> None:
    assert patience.PATIENCE == 30


def test_a_job_survives_a_restart_of_the_gateway(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = FakeHost()
    gateways = [Served(settings(tmp_path, comfyui_url=host.url)).connected()]
    port = int(gateways[0].url.rpartition(":")[2])
    monkeypatch.setattr(support_gateway, "free_port", lambda: port)
    refusals = []
    check = patience.Patience.check

    def restart_once(self: patience.Patience, error: patience.NoAnswer) -> None:
        """Start the gateway again after the first attempt that failed."""
        check(self, error)
        refusals.append(error)
        if len(refusals) == 1:
            gateways.append(Served(settings(tmp_path, comfyui_url=host.url)))
            host.release()

    monkeypatch.setattr(patience.Patience, "check", restart_once)

    def stop_once(status: JobStatus) -> None:
        if status.state == "processing" and len(gateways) == 1:
            gateways[0].__exit__()

    try:
        with Client(gateways[0].url) as client:
            edit = client.edit(PHOTO, "hold", mask=MASK, on_progress=stop_once)
        assert same_pixels(edit.image, PHOTO.read_bytes()) and refusals
    finally:
        gateways[-1].__exit__()


def test_a_proxy_before_a_gateway_that_restarts_is_waited_for() -> None:
    gateway_timeout = Reply(504, "<html></html>")
    replies = in_order(
        BAD_GATEWAY,
        CUT,
        Reply(503, ""),
        status_reply("done"),
        gateway_timeout,
        RESULT,
        BAD_GATEWAY,
        CANCELLED,
    )
    with SmallServer(replies) as server, Client(server.url) as client:
        assert client.wait("abc").image == PHOTO.read_bytes()
        assert client.cancel("abc")
    assert server.calls() == ["GET abc"] * 6 + ["POST abc"] * 2


def test_a_request_is_repeated_after_a_silence() -> None:
    async def run(url: str) -> bool:
        async with AsyncClient(url, timeout=0.25) as client:
            return await client.cancel("abc")

    # On a slow machine, answers that come too late are silences as well.
    replies = iter([SILENCE])
    with SmallServer(lambda method, path: next(replies, CANCELLED)) as server:
        with Client(server.url, timeout=0.25) as client:
            assert client.cancel("abc")
        assert len(server.requests) >= 2
        replies = iter([SILENCE])
        assert asyncio.run(run(server.url))
        assert len(server.requests) >= 4


@pytest.mark.parametrize("reply", [SILENCE, CUT, BAD_GATEWAY], ids=["silence", "cut", "proxy"])
def test_an_edit_is_sent_once_even_if_the_answer_is_lost(reply: Reply | None) -> None:
    with SmallServer(always(reply)) as server, Client(server.url, timeout=0.25) as client:
        with pytest.raises(ConnectionError, match="not sent again"):
            client.edit(PHOTO, "x")
        until(lambda: server.requests)
        assert server.calls() == ["POST async"]


def test_the_gateways_own_503_is_no_restart() -> None:
    failure = json_reply(
        503, detail="ComfyUI is off.", error_type="comfyui_unavailable", details={}
    )
    with SmallServer(always(failure)) as server, Client(server.url) as client:
        with pytest.raises(ArtMancerError, match="ComfyUI is off") as failed:
            client.wait("abc")
        assert failed.value.code == "comfyui_unavailable" and len(server.requests) == 1


def test_an_error_of_a_newer_gateway_keeps_its_sentence() -> None:
    failure = json_reply(507, detail="The disk is full.", error_type="new", details={"disk": "/x"})
    with (
        SmallServer(always(failure)) as server,
        Client(server.url) as client,
        pytest.raises(ArtMancerError, match="The disk is full") as failed,
    ):
        client.status("abc")
    assert failed.value.code == "generation_failed"
    assert failed.value.details == {"disk": "/x", "error_type": "new"}


# Addresses that are not a gateway's


def test_the_error_without_a_gateway_names_the_command_that_starts_it() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with Client(url) as client, pytest.raises(ConnectionError, match="artmancer serve") as refused:
        client.edit(PHOTO, "x")
    assert url in str(refused.value) and "queue" not in str(refused.value)


def test_a_request_that_is_not_answered_in_time_has_its_own_error() -> None:
    with (
        SmallServer(always(SILENCE)) as server,
        Client(server.url, timeout=0.25) as client,
        pytest.raises(ConnectionError, match=r"did not answer .* within 0.25 seconds"),
    ):
        client.status("abc")


@pytest.mark.parametrize(
    ("reply", "code", "words"),
    [
        (Reply(200, "<html>Welcome</html>"), "invalid_request", "200 OK (text/html)"),
        (Reply(404, "<html>Nothing</html>"), "invalid_request", "404 Not Found (text/html)"),
        (json_reply(status="healthy"), "invalid_request", "200 OK (application/json)"),
        (
            Reply(200, "[1]", "application/json"),
            "invalid_request",
            "expected the JSON of a gateway",
        ),
        (json_reply(404, detail="Not Found"), "invalid_request", "Pass the address of a gateway"),
        (Reply(401, "Who are you?"), "unauthorized", "check the proxy"),
        (Reply(413, "<html></html>"), "image_too_large", "413 Request Entity Too Large"),
        (Reply(500, "Oh", "text/plain"), "invalid_request", "500 Internal Server Error"),
    ],
)
def test_an_answer_that_is_not_a_gateways_has_its_own_error(
    reply: Reply, code: str, words: str
) -> None:
    with SmallServer(always(reply)) as server, Client(server.url) as client:
        for call in (client.wait, client.cancel, lambda _: client.edit(PHOTO, "x")):
            with pytest.raises(ArtMancerError, match=re.escape(words)) as refused:
                call("abc")
            assert refused.value.code == code and server.url in str(refused.value)


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("https://edit.example/api/generate/status/abc", "Pass https://edit.example to Client"),
        ("/login?next=secret", "/login; expected the JSON of a gateway. Pass a gateway's URL"),
    ],
)
def test_a_redirect_names_its_target(location: str, target: str) -> None:
    reply = Reply(307, "", headers={"Location": location})
    with SmallServer(always(reply)) as server, Client(server.url) as client:
        with pytest.raises(ArtMancerError, match=re.escape(target)) as refused:
            client.status("abc")
        assert refused.value.code == "invalid_request" and "secret" not in str(refused.value)


def test_the_address_of_a_comfyui_is_recognized() -> None:
    host = FakeHost()
    with Client(host.url) as client:
        for call in (client.status, lambda _: client.edit(PHOTO, "x")):
            with pytest.raises(ArtMancerError, match="ComfyUI itself") as refused:
                call("abc")
            assert refused.value.code == "invalid_request"
            assert f"artmancer serve --comfyui-url {host.url}" in str(refused.value)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    ("url", "advice"),
    [
        ("localhost:8003", "http://localhost:8003"),
        ("127.0.0.1:8003", "http://127.0.0.1:8003"),
        ("edit.example", "http://edit.example"),
        ("ftp://edit.example", "Correct it"),
        ("http://", "Correct it"),
        ("http://edit.example:port", "Correct it"),
        ("", "expected one such as"),
    ],
)
def test_a_url_without_http_is_refused(
    kind: type[Client] | type[AsyncClient], url: str, advice: str
) -> None:
    with pytest.raises(ArtMancerError, match=f"'{url}' is not the URL.*{advice}") as refused:
        kind(url)
    assert refused.value.code == "invalid_request"


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    "token", ["s3cret\n", "s3cret\r\nX: y", "s3cr\u00e9t", " s3cret", "s3cret\0"]
)
def test_a_token_that_no_header_can_hold_is_refused(
    kind: type[Client] | type[AsyncClient], token: str
) -> None:
    with pytest.raises(ArtMancerError, match="visible ASCII characters") as refused:
        kind("http://127.0.0.1:8003", token)
    assert refused.value.code == "invalid_request" and "s3cr" not in str(refused.value)


def test_a_password_in_the_url_is_not_shown() -> None:
    port = free_port()
    with (
        Client(f"http://me:s3cret@127.0.0.1:{port}") as client,
        pytest.raises(ConnectionError, match=f"127.0.0.1:{port} ") as refused,
    ):
        client.status("abc")
    assert "s3cret" not in str(refused.value)


def test_task_ids_are_quoted() -> None:
    with SmallServer(always(CANCELLED)) as server, Client(server.url) as client:
        client.cancel("a/../b?c#d e\u00e9\ud800")
        ((_, path, _),) = server.requests
    assert path == "/api/generate/async/cancel/a%2F..%2Fb%3Fc%23d%20e%C3%A9%3F"


# Bodies


def sent_body(**arguments: Any) -> dict[str, Any]:
    """Return the fields of the request that a client sends for an edit."""
    with SmallServer(always(QUEUED)) as server, Client(server.url) as client:
        assert client.submit(arguments.pop("image", b"photo"), "x", **arguments) == "abc"
        ((_, _, body),) = server.requests
    return dict(json.loads(body))


def sent_image(source: Any) -> bytes:
    return base64.b64decode(sent_body(image=source)["input_image"], validate=True)


def test_images_are_bytes_or_paths() -> None:
    data = PHOTO.read_bytes()
    for source in (data, bytearray(data), memoryview(data), str(PHOTO), PHOTO):
        assert sent_image(source) == data
    assert sent_image(memoryview(b"a-b-c")[::2]) == b"abc"
    body = sent_body(mask=bytearray(b"m"), reference=memoryview(b"r"), reference_mask=b"R")
    names = ("mask_image", "reference_image", "reference_mask_R")
    assert [base64.b64decode(body[name]) for name in names] == [b"m", b"r", b"R"]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I", "F"])
def test_pil_images_keep_their_pixels(mode: str) -> None:
    if mode in ("I;16", "I", "F"):
        values = np.linspace(0, 60000, 12).reshape(3, 4)
        kinds = {"I;16": np.uint16, "I": np.int32, "F": np.float32}
        image = Image.fromarray(values.astype(kinds[mode]))
    else:
        image = Image.open(PHOTO).resize((4, 3)).convert("RGBA").convert(mode)
    assert image.mode == mode
    with Image.open(io.BytesIO(sent_image(image))) as sent:
        assert np.array_equal(np.asarray(sent.convert(mode)), np.asarray(image))


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV"])
def test_pil_images_in_other_colors_become_rgb(mode: str) -> None:
    image = Image.open(PHOTO).convert("RGB").convert(mode)
    image.info["icc_profile"] = b"a profile of the old colors"
    with Image.open(io.BytesIO(sent_image(image))) as sent:
        assert sent.format == "PNG" and "icc_profile" not in sent.info
        assert np.array_equal(np.asarray(sent), np.asarray(image.convert("RGB")))


def test_a_pil_image_is_sent_upright() -> None:
    image = Image.open(PHOTO).convert("RGB").resize((40, 30))
    data = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    image.save(data, "JPEG", exif=exif, quality=100)
    from_file = images.decode(data.getvalue()).image
    from_pil = images.decode(sent_image(Image.open(io.BytesIO(data.getvalue())))).image
    assert from_pil.shape == (1, 40, 30, 3) and (from_pil == from_file).all()


@pytest.mark.parametrize("field", ["image", "mask", "reference", "reference_mask"])
@pytest.mark.parametrize("value", [5, np.zeros((2, 2, 3), np.uint8), io.BytesIO(b"x")])
def test_other_types_of_images_are_refused(field: str, value: Any) -> None:
    arguments = {"image": b"photo", field: value}
    with Client() as client, pytest.raises(ArtMancerError) as refused:
        client.submit(prompt="x", **arguments)
    words = f"{field} is of the type {type(value).__name__}; expected the bytes of an image file"
    assert refused.value.code == "invalid_request" and str(refused.value).startswith(words)


def test_a_broken_pil_image_is_refused() -> None:
    image = Image.open(io.BytesIO(PHOTO.read_bytes()[:2000]))
    with (
        Client() as client,
        pytest.raises(ArtMancerError, match=r"image is a PIL\.Image") as refused,
    ):
        client.submit(image, "x")
    assert refused.value.code == "invalid_image"


def test_values_of_numpy_and_images_are_parameters() -> None:
    body = sent_body(
        seed=np.int64(2**53 - 1),
        width=np.uint16(512),
        context=np.float32(1.5),
        true_cfg_scale=np.float64(4.5),
        enable_debug=np.True_,
        recipe=np.str_("image_edges"),
        conditional_images=[b"mask", Path(PHOTO)],
    )
    images_sent = [base64.b64decode(text) for text in body.pop("conditional_images")]
    assert images_sent == [b"mask", PHOTO.read_bytes()]
    del body["input_image"]
    assert body == {
        "prompt": "x",
        "seed": 2**53 - 1,
        "width": 512,
        "context": 1.5,
        "true_cfg_scale": 4.5,
        "enable_debug": True,
        "recipe": "image_edges",
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"context": float("nan")}, "context is nan; expected a finite number"),
        ({"true_cfg_scale": np.float32("-inf")}, "true_cfg_scale is -inf"),
        ({"a": [1, {"b": float("inf")}]}, "a.1.b is inf"),
        ({"prompt": "a\ud800b"}, r"prompt holds a lone surrogate, '\ud800', at position 1"),
        ({"a": ["\udcff"]}, r"a.0 holds a lone surrogate, '\udcff'"),
        ({"a\ud800": 1}, r"A name holds a lone surrogate, '\ud800', at position 1"),
        ({"seed": {1, 2}}, "seed is of the type set; expected a number"),
        ({"seed": 1j}, "seed is of the type complex"),
    ],
)
def test_values_that_json_cannot_hold_are_refused(arguments: dict[str, Any], words: str) -> None:
    with SmallServer(always(QUEUED)) as server, Client(server.url) as client:
        with pytest.raises(ArtMancerError, match=re.escape(words)) as refused:
            client.submit(b"photo", **{"prompt": "x", **arguments})
        assert refused.value.code == "invalid_request" and not server.requests
    str(refused.value).encode()


# Parameters


@pytest.mark.parametrize(
    ("name", "closest"),
    [("sed", "'seed'"), ("maks", "'mask'"), ("num_inference_step", "'num_inference_steps'")],
)
def test_a_misspelled_parameter_is_an_error(
    client: Client, served: Served, name: str, closest: str
) -> None:
    before = cancelled_jobs(served)
    with pytest.raises(ArtMancerError, match=f"'{name}'; expected {closest}") as refused:
        client.edit(PHOTO, "hold", mask=MASK, **{name: 1})
    assert refused.value.code == "invalid_request" and refused.value.details["field"] == name
    until(lambda: cancelled_jobs(served) > before)


def test_a_parameter_like_no_other_is_an_error(client: Client, served: Served) -> None:
    before = cancelled_jobs(served)
    with pytest.raises(ArtMancerError, match=r"'zzz'; expected one of .*\bseed\b"):
        client.edit(PHOTO, "hold", mask=MASK, zzz=1)
    # A job that ends later would be counted in the next test.
    until(lambda: cancelled_jobs(served) > before)


def test_a_parameter_that_has_no_effect_is_no_error(client: Client) -> None:
    edit = client.edit(PHOTO, "now", mask=MASK, angle=3, seed=4)
    assert edit.parameters["ignored"] == ["angle"]


def test_a_misspelled_parameter_is_an_error_behind_a_proxy_for_api_only() -> None:
    def respond(method: str, path: str) -> Reply:
        if path.startswith("/api/"):
            return (
                CANCELLED if "cancel" in path else json_reply(202, task_id="abc", ignored=["sed"])
            )
        return Reply(404, "<html></html>")

    with SmallServer(respond) as server, Client(server.url) as client:
        with pytest.raises(ArtMancerError, match="'sed'; expected a field of POST /api/generate"):
            client.edit(PHOTO, "x", sed=4)
        assert server.calls() == ["POST async", "GET openapi.json", "POST abc"]


# Cancelling


@pytest.mark.parametrize(
    "error",
    [KeyboardInterrupt(), SystemExit(3), ValueError("x"), BrokenPipeError(), StopIteration()],
)
def test_an_exception_of_on_progress_cancels_the_edit(
    client: Client, served: Served, error: BaseException
) -> None:
    before = cancelled_jobs(served)

    def stop(status: JobStatus) -> None:
        if status.state == "processing":
            raise error

    with pytest.raises(type(error)) as raised:
        client.edit(PHOTO, "hold", mask=MASK, on_progress=stop)
    assert raised.value is error
    until(lambda: cancelled_jobs(served) > before)


def test_an_exception_of_on_progress_is_raised_even_if_cancelling_fails() -> None:
    not_found = json_reply(404, detail="It is gone.", error_type="not_found", details={})
    replies = in_order(QUEUED, status_reply("processing"), not_found)

    def stop(status: JobStatus) -> None:
        raise ValueError("stop")

    with SmallServer(replies) as server, Client(server.url) as client:
        with pytest.raises(ValueError, match="stop"):
            client.edit(PHOTO, "x", on_progress=stop)
        assert server.calls() == ["POST async", "GET abc", "POST abc"]


def test_ctrl_c_cancels_the_edit(served: Served) -> None:
    before = cancelled_jobs(served)
    script = f"""
        import signal
        from artmancer.client import Client
        # A shell that runs the tests in the background lets them ignore the signal.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with Client({served.url!r}, "s3cret") as client:
            client.edit({str(PHOTO)!r}, "hold", mask={str(MASK)!r},
                        on_progress=lambda status: print(status.state, flush=True))
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    while process.stdout.readline() != "processing\n":
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=WAIT_TIMEOUT)
    assert "KeyboardInterrupt" in errors and process.returncode != 0
    until(lambda: cancelled_jobs(served) > before)


@pytest.mark.parametrize(
    ("interrupted_at", "reply", "last_call"),
    [
        ("/api/generate/async", json_reply(202, task_id="abc"), "POST abc"),
        ("/api/generate/async", CUT, "POST async"),
        ("/openapi.json", json_reply(202, task_id="abc", ignored=["sed"]), "POST abc"),
    ],
)
def test_ctrl_c_while_an_edit_is_sent_leaves_no_job(
    interrupted_at: str, reply: Reply, last_call: str
) -> None:
    arrived, interrupted = threading.Event(), threading.Event()

    def respond(method: str, path: str) -> Reply:
        if path == interrupted_at:
            arrived.set()
            assert interrupted.wait(WAIT_TIMEOUT)
        return CANCELLED if "cancel" in path else reply

    with SmallServer(respond) as server:
        script = f"""
            import signal
            from artmancer.client import Client
            def interrupt(*_):
                print("interrupted", flush=True)
                raise KeyboardInterrupt
            signal.signal(signal.SIGINT, interrupt)
            Client({server.url!r}).submit({str(PHOTO)!r}, "x")
        """
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert arrived.wait(WAIT_TIMEOUT)
        process.send_signal(signal.SIGINT)
        assert process.stdout and process.stdout.readline() == "interrupted\n"
        interrupted.set()
        _, errors = process.communicate(timeout=WAIT_TIMEOUT)
        assert errors.endswith("KeyboardInterrupt\n") and process.returncode != 0
        assert server.calls()[-1] == last_call


@pytest.mark.parametrize(("starts", "expected"), [(True, ["POST async", "POST abc"]), (False, [])])
def test_ctrl_c_while_the_sending_thread_starts_leaves_no_job(
    starts: bool, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arrived = threading.Event()

    def respond(method: str, path: str) -> Reply:
        arrived.set()
        return CANCELLED if "cancel" in path else json_reply(202, task_id="abc")

    with SmallServer(respond) as server, Client(server.url) as client:
        start = threading.Thread.start

        def interrupted_start(thread: threading.Thread) -> None:
            monkeypatch.undo()
            if starts:
                start(thread)
                assert arrived.wait(WAIT_TIMEOUT)
            raise KeyboardInterrupt

        monkeypatch.setattr(threading.Thread, "start", interrupted_start)
        with pytest.raises(KeyboardInterrupt):
            client.submit(PHOTO, "x")
        assert server.calls() == expected


def test_a_lost_gateway_does_not_cancel_the_edit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "PATIENCE", 0.0)
    with SmallServer(in_order(QUEUED, BAD_GATEWAY)) as server, Client(server.url) as client:
        with pytest.raises(ConnectionError, match=r"wait\('abc'\) returns its result"):
            client.edit(PHOTO, "x")
        assert server.calls() == ["POST async", "GET abc"]


# Saving


def response_with(image: Image.Image) -> EditResponse:
    data = io.BytesIO()
    image.save(data, "PNG")
    return EditResponse("abc", data.getvalue(), 1.0, "draft/removal", {}, {})


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".webp", ".bmp", ".tif", ".tiff"])
def test_an_edit_is_saved_in_the_format_of_the_suffix(tmp_path: Path, suffix: str) -> None:
    image = Image.open(PHOTO).convert("RGB")
    response_with(image).save(tmp_path / f"edit{suffix}")
    images.save(tmp_path / f"expected{suffix}", images.load(PHOTO).image)
    assert [path.name for path in tmp_path.glob(".*")] == []
    with (
        Image.open(tmp_path / f"edit{suffix}") as saved,
        Image.open(tmp_path / f"expected{suffix}") as expected,
    ):
        formats = {".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP"}
        assert saved.format == expected.format == formats.get(suffix.lower(), "TIFF")
        assert np.array_equal(np.asarray(saved), np.asarray(expected))


def test_a_png_is_saved_as_it_came(tmp_path: Path) -> None:
    response = response_with(Image.open(PHOTO))
    response.save(str(tmp_path / "edit.PNG"))
    assert (tmp_path / "edit.PNG").read_bytes() == response.image


def test_transparency_is_no_obstacle_to_jpeg(tmp_path: Path) -> None:
    response_with(Image.open(PHOTO).convert("RGBA")).save(tmp_path / "edit.jpg")
    with Image.open(tmp_path / "edit.jpg") as saved:
        assert (saved.format, saved.mode) == ("JPEG", "RGB")


@pytest.mark.parametrize(
    "name", ["edit.gif", "edit.heic", "edit", "edit.png.bak", "missing/edit.png"]
)
def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ArtMancerError) as refused:
        response_with(Image.new("RGB", (4, 4))).save(tmp_path / name)
    assert refused.value.code == ("not_found" if "missing" in name else "invalid_request")
    assert not list(tmp_path.iterdir())


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "edit.webp"
    path.write_bytes(b"an older edit")
    too_wide_for_webp = Image.new("RGB", (16384, 1))
    with pytest.raises(ArtMancerError, match="cannot be written") as refused:
        response_with(too_wide_for_webp).save(path)
    assert refused.value.code == "invalid_request"
    assert path.read_bytes() == b"an older edit" and list(tmp_path.iterdir()) == [path]


# AsyncClient


def test_both_clients_have_the_same_methods() -> None:
    def shape(kind: type) -> dict[str, list[tuple[str, Any, Any]]]:
        return {
            name: [
                (parameter.name, parameter.kind, parameter.default)
                for parameter in inspect.signature(method).parameters.values()
            ]
            for name, method in inspect.getmembers(kind, inspect.isfunction)
            if name == "__init__" or not name.startswith("_")
        }

    assert shape(AsyncClient) == shape(Client)
    methods = [getattr(AsyncClient, name) for name in shape(Client) if name != "__init__"]
    assert all(map(inspect.iscoroutinefunction, methods))


def test_an_async_client_edits_several_photos_at_once(served: Served) -> None:
    statuses: list[JobStatus] = []

    async def run() -> list[EditResponse]:
        async with AsyncClient(served.url, "s3cret") as client:
            edits = [
                client.edit(PHOTO, "now", mask=MASK, seed=seed, on_progress=statuses.append)
                for seed in range(8)
            ]
            return await asyncio.gather(*edits)

    edits = asyncio.run(run())
    assert [edit.parameters["seed"] for edit in edits] == list(range(8))
    assert all(same_pixels(edit.image, PHOTO.read_bytes()) for edit in edits)
    assert [status.state for status in statuses].count("done") == 8


def test_an_async_edit_step_by_step(served: Served) -> None:
    async def run() -> None:
        client = AsyncClient(served.url, "s3cret")
        job_id = await client.submit(PHOTO, "hold", mask=MASK)
        assert (await client.status(job_id)).state in ("queued", "processing")
        with pytest.raises(ArtMancerError) as early:
            await client.result(job_id)
        assert early.value.code == "not_finished"
        assert await client.cancel(job_id)
        with pytest.raises(ArtMancerError, match="cancelled"):
            await client.wait(job_id)
        with pytest.raises(ArtMancerError, match="'sed'; expected 'seed'"):
            await client.edit(PHOTO, "hold", mask=MASK, sed=4)
        await client.close()

    asyncio.run(run())


def test_cancelling_the_task_of_an_async_edit_cancels_the_job(served: Served) -> None:
    before = cancelled_jobs(served)

    async def run() -> None:
        running = asyncio.Event()

        def report(status: JobStatus) -> None:
            if status.state == "processing":
                running.set()

        async with AsyncClient(served.url, "s3cret") as client:
            edit = asyncio.create_task(client.edit(PHOTO, "hold", mask=MASK, on_progress=report))
            await running.wait()
            edit.cancel()
            with pytest.raises(asyncio.CancelledError):
                await edit

    asyncio.run(run())
    until(lambda: cancelled_jobs(served) > before)


@pytest.mark.parametrize("send", [AsyncClient.edit, AsyncClient.submit])
def test_an_async_edit_that_is_cancelled_while_it_is_sent_leaves_no_job(
    send: Callable[[AsyncClient, Path, str], Coroutine[Any, Any, object]],
) -> None:
    arrived, cancelled = threading.Event(), threading.Event()

    def respond(method: str, path: str) -> Reply:
        if "cancel" in path:
            return CANCELLED
        arrived.set()
        assert cancelled.wait(WAIT_TIMEOUT)
        return QUEUED

    async def run() -> None:
        async with AsyncClient(server.url) as client:
            edit = asyncio.create_task(send(client, PHOTO, "x"))
            await asyncio.to_thread(arrived.wait, WAIT_TIMEOUT)
            edit.cancel()
            asyncio.get_running_loop().call_soon(cancelled.set)
            with pytest.raises(asyncio.CancelledError):
                await edit

    with SmallServer(respond) as server:
        asyncio.run(run())
        assert server.calls() == ["POST async", "POST abc"]


@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(3), BrokenPipeError()])
def test_an_exception_of_on_progress_cancels_an_async_edit(error: BaseException) -> None:
    def stop(status: JobStatus) -> None:
        raise error

    async def run() -> None:
        async with AsyncClient(server.url) as client:
            with pytest.raises(type(error)) as raised:
                await client.edit(PHOTO, "x", on_progress=stop)
            assert raised.value is error

    with SmallServer(in_order(QUEUED, status_reply("processing"), CANCELLED)) as server:
        asyncio.run(run())
        assert server.calls() == ["POST async", "GET abc", "POST abc"]


def test_an_async_client_waits_for_a_gateway_as_long(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with AsyncClient(server.url) as client:
            assert (await client.wait("abc")).image == PHOTO.read_bytes()
            assert await client.cancel("abc")
            with pytest.raises(ConnectionError, match="not sent again"):
                await client.submit(PHOTO, "x")
        monkeypatch.setattr(patience, "PATIENCE", 0.5)
        async with AsyncClient(server.url, timeout=0.1) as client:
            with pytest.raises(ConnectionError, match=r"tried for \d+ seconds"):
                await client.wait("abc")

    replies = iter([BAD_GATEWAY, status_reply("done"), CUT, RESULT, BAD_GATEWAY, CANCELLED, CUT])
    with SmallServer(lambda method, path: next(replies, SILENCE)) as server:
        asyncio.run(run())


# Documentation and imports


def test_the_documented_examples_run(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An example is indented; it ends before the next line that is not.
    paragraphs = re.split(r"\n(?=\S)", (ROOT / "docs" / "api.md").read_text())
    examples = [text.partition("\n")[2] for text in paragraphs if "from artmancer.client" in text]
    assert len(examples) == 2
    monkeypatch.chdir(tmp_path)
    for room, mask in (("room", "lamp"), ("kitchen", "kitchen"), ("hall", "hall")):
        Image.open(PHOTO).convert("RGB").save(f"{room}.jpg")
        Path(f"{mask}-mask.png").write_bytes(MASK.read_bytes())
    for example in examples:
        code = textwrap.dedent(example).replace("http://127.0.0.1:8003", served.url)
        exec(code.replace("token=None", "token='s3cret'"), {})
    for name in ("result.png", "kitchen-result.jpg", "hall-result.jpg"):
        with Image.open(name) as result:
            assert result.size == Image.open(PHOTO).size


def test_the_client_imports_little() -> None:
    names = "torch", "numpy", "PIL", "pydantic", "fastapi"
    probe = f"import sys, artmancer.client; sys.exit(any(name in sys.modules for name in {names}))"
    assert subprocess.run([sys.executable, "-c", probe], check=False, cwd=ROOT).returncode == 0


# The command, the logs and the settings


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


def test_allowing_every_origin_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALLOWED_ORIGINS", "*")
    with pytest.raises(ValueError, match="would allow every web page"):
        Settings()
