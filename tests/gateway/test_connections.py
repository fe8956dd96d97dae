"""Connections as clients treat them badly: half-open, slow, or with a body that is too large."""

import http.client
import json
import select
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from support.gateway import WAIT_TIMEOUT, FakeHost, Served, free_port, removal, settings, until

from artmancer.gateway.app import create_app
from artmancer.gateway.serve import HEADER_TIMEOUT, server_options

MIDDLEWARE = "artmancer.gateway.middleware"

SHORT = 0.2
"""A timeout in seconds that a test waits for."""

PING = b"GET /ping HTTP/1.1\r\nHost: 127.0.0.1\r\n"
"""A request whose headers have not ended yet."""

SENT_BYTES = 60 * 2**20
"""Size of a body that is over the default limit."""


class Listening(Served):
    """A gateway with the server's options of `artmancer serve`.

    Parameters
    ----------
    header_timeout : seconds
    more : settings
    """

    def __init__(self, data: Path, header_timeout: float = HEADER_TIMEOUT, **more: Any) -> None:
        self.settings = settings(data, port=free_port(), **more)
        self.url = f"http://127.0.0.1:{self.settings.port}"
        self.app = create_app(self.settings)
        options = server_options(self.settings, header_timeout)
        # No test below may pass because an idle connection is closed.
        options |= {"timeout_keep_alive": 3600, "timeout_graceful_shutdown": 1}
        self.server = uvicorn.Server(uvicorn.Config(self.app, **options))
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        self.http = httpx.Client(
            base_url=self.url, timeout=WAIT_TIMEOUT, trust_env=False, verify=False
        )
        until(self._is_up)

    def _is_up(self) -> bool:
        try:
            return self.http.get("/ping").is_success
        except httpx.TransportError:
            # It does not listen yet, or this machine needed longer than the timeout for a request.
            return False


@contextmanager
def connected(served: Served) -> Iterator[socket.socket]:
    """Open a connection to a gateway."""
    address = ("127.0.0.1", served.settings.port)
    with socket.create_connection(address, timeout=WAIT_TIMEOUT) as connection:
        yield connection


@contextmanager
def answered(served: Served, request: bytes = PING + b"\r\n") -> Iterator[socket.socket]:
    """Open a connection whose first request has been answered.

    On a slow machine the gateway may have closed it before the request came; then it is opened
    once more.
    """
    while True:
        with connected(served) as connection:
            connection.sendall(request)
            answer = http.client.HTTPResponse(connection)
            try:
                answer.begin()
            except (http.client.RemoteDisconnected, ConnectionError):
                continue
            assert answer.status == 200
            answer.read()
            yield connection
            return


def answer_on(connection: socket.socket) -> tuple[int, dict[str, Any]]:
    """Read a JSON answer; return its status and content."""
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    return answer.status, json.loads(answer.read())


def is_closed(connection: socket.socket) -> bool:
    """Wait until the gateway has sent something; return whether that was the end."""
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def trickle(connection: socket.socket) -> None:
    """Send a byte again and again until the gateway sends something, or closes."""
    end = time.monotonic() + WAIT_TIMEOUT
    try:
        while not select.select([connection], [], [], SHORT / 10)[0]:
            assert time.monotonic() < end, "the connection stays open"
            connection.sendall(b"x")
    except ConnectionError:
        pass


def post(path: str, *headers: str, length: int | None = None) -> bytes:
    """Return the head of a POST.

    Parameters
    ----------
    length : bytes of the body; None: it comes in chunks
    """
    size = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json"]
    return "\r\n".join([*lines, size, *headers, "", ""]).encode()


@pytest.mark.parametrize("start", [b"", b"GET /pi", PING, PING + b"X-Long: abc"])
def test_a_connection_whose_headers_do_not_end_is_closed(tmp_path: Path, start: bytes) -> None:
    with Listening(tmp_path, SHORT) as served, connected(served) as connection:
        connection.sendall(start)
        assert is_closed(connection)


def test_headers_that_come_byte_by_byte_without_an_end_are_cut(tmp_path: Path) -> None:
    with Listening(tmp_path, SHORT) as served, connected(served) as connection:
        connection.sendall(PING + b"X-Long: ")
        trickle(connection)
        assert is_closed(connection)


@pytest.mark.parametrize("start", [b"\r\n", b"GET /pi", PING])
def test_a_further_request_on_a_connection_has_to_end_its_headers(
    tmp_path: Path, start: bytes
) -> None:
    with Listening(tmp_path, SHORT) as served, answered(served) as connection:
        connection.sendall(start)
        assert is_closed(connection)


def test_a_body_that_no_route_reads_does_not_hold_a_connection_open(tmp_path: Path) -> None:
    request = PING + b"Content-Length: 1000000\r\n\r\n"
    with Listening(tmp_path, SHORT) as served, answered(served, request) as connection:
        trickle(connection)
        assert is_closed(connection)


@pytest.mark.parametrize("path", ["/api/generate", "/api/nothing"])
def test_a_body_that_does_not_come_is_answered_and_the_connection_closed(
    tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{MIDDLEWARE}.BODY_PAUSE_TIMEOUT", SHORT)
    with Listening(tmp_path) as served, connected(served) as connection:
        connection.sendall(post(path, length=100) + b'{"prompt": ')
        status, body = answer_on(connection)
        expected = (504, "timeout") if path == "/api/generate" else (404, "not_found")
        assert (status, body["error_type"]) == expected
        assert is_closed(connection)


def test_a_slow_but_steady_upload_is_accepted(
    fake: FakeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{MIDDLEWARE}.BODY_TIMEOUT", SHORT)
    # JSON may begin with spaces. Each piece extends the limit by 32 seconds.
    pieces = [b" " * 2**19] * 5 + [json.dumps(removal()).encode()]
    length = sum(map(len, pieces))
    with Listening(tmp_path, SHORT, comfyui_url=fake.url) as served:
        served.connected()
        with answered(served) as connection:
            connection.sendall(post("/api/generate", length=length) + pieces[0])
            for piece in pieces[1:]:
                time.sleep(SHORT)
                connection.sendall(piece)
            status, body = answer_on(connection)
    assert (status, body.get("success")) == (200, True)


def test_a_client_may_wait_for_a_long_answer(fake: FakeHost, tmp_path: Path) -> None:
    with Listening(tmp_path, SHORT, comfyui_url=fake.url) as served:
        served.connected()
        body = json.dumps(removal(prompt="hold")).encode()
        with answered(served) as blocking, answered(served) as stream:
            blocking.sendall(post("/api/generate", length=len(body)) + body)
            job_id = served.submit(prompt="hold")
            path = f"GET /api/generate/stream/{job_id} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
            stream.sendall(path.encode())
            events = http.client.HTTPResponse(stream)
            events.begin()
            until(lambda: fake.fake.running)
            time.sleep(5 * SHORT)
            fake.release()
            status, answer = answer_on(blocking)
            last = [line for line in events.read().split(b"\n") if line][-1]
    assert (status, answer["success"]) == (200, True)
    assert json.loads(last.removeprefix(b"data: "))["status"] == "done"


def urllib_post(url: str, body: Any) -> tuple[int, str]:
    """POST with urllib, which reads nothing before it has sent everything; return the status and
    the error code.
    """
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with pytest.raises(urllib.error.HTTPError) as error:
        opener.open(request, timeout=WAIT_TIMEOUT)
    return error.value.code, json.loads(error.value.read())["error_type"]


def mebibytes() -> Iterator[bytes]:
    """Yield SENT_BYTES in pieces."""
    for _ in range(SENT_BYTES // 2**20):
        yield b" " * 2**20


@pytest.mark.parametrize("body", [lambda: b" " * SENT_BYTES, mebibytes], ids=["length", "chunked"])
def test_urllib_gets_the_answer_to_a_body_that_is_too_large(
    tmp_path: Path, body: Callable[[], Any]
) -> None:
    with Listening(tmp_path) as served:
        answer = urllib_post(f"{served.url}/api/generate", body())
        assert answer == (413, "image_too_large")


@pytest.mark.parametrize(
    ("path", "expected"),
    [("/api/nothing", (404, "not_found")), ("/api/health", (405, "invalid_request"))],
)
def test_urllib_gets_other_refusals_of_a_large_body(
    tmp_path: Path, path: str, expected: tuple[int, str]
) -> None:
    with Listening(tmp_path) as served:
        assert urllib_post(f"{served.url}{path}", b" " * 30 * 2**20) == expected


def test_urllib_gets_the_refusal_of_a_large_body_without_a_token(tmp_path: Path) -> None:
    with Listening(tmp_path, api_token="s3cret") as served:
        answer = urllib_post(f"{served.url}/api/generate", b" " * SENT_BYTES)
        assert answer == (401, "unauthorized")


@pytest.mark.parametrize("is_chunked", [False, True])
@pytest.mark.parametrize("keeps_alive", [False, True])
def test_a_client_that_sends_all_before_it_reads_gets_the_answer(
    tmp_path: Path, is_chunked: bool, keeps_alive: bool
) -> None:
    headers = () if keeps_alive else ("Connection: close",)
    with Listening(tmp_path) as served, connected(served) as connection:
        connection.sendall(
            post("/api/generate", *headers, length=None if is_chunked else SENT_BYTES)
        )
        for piece in mebibytes():
            connection.sendall(b"%x\r\n%s\r\n" % (len(piece), piece) if is_chunked else piece)
        if is_chunked:
            connection.sendall(b"0\r\n\r\n")
        status, body = answer_on(connection)
        assert (status, body["error_type"]) == (413, "image_too_large")
        assert is_closed(connection)


def test_a_client_that_reads_while_it_sends_gets_the_answer_at_once(tmp_path: Path) -> None:
    with Listening(tmp_path) as served, connected(served) as connection:
        connection.sendall(post("/api/generate", length=SENT_BYTES))
        status, body = answer_on(connection)
        assert (status, body["error_type"]) == (413, "image_too_large")


def test_an_endless_body_is_cut_after_four_times_the_largest_size(tmp_path: Path) -> None:
    piece = b"%x\r\n%s\r\n" % (2**20, b" " * 2**20)
    with Listening(tmp_path, max_body=2**20) as served, connected(served) as connection:
        connection.sendall(post("/api/generate"))
        # Far more than the buffers of the two sockets hold.
        with pytest.raises(ConnectionError):
            for _ in range(1000):
                connection.sendall(piece)


def test_a_refused_body_is_read_for_a_limited_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{MIDDLEWARE}.DISCARD_TIMEOUT", SHORT)
    with Listening(tmp_path) as served, connected(served) as connection:
        connection.sendall(post("/api/generate", length=SENT_BYTES))
        assert answer_on(connection)[0] == 413
        trickle(connection)
        assert is_closed(connection)
