"""ASGI middlewares: RequestGuard, HeadMiddleware, ErrorMiddleware, MetricsMiddleware."""

import asyncio
import hmac
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import ArtMancerError
from . import logs, metrics
from .jobs import unexpected_error

logger = logging.getLogger(__name__)

BODY_PAUSE_TIMEOUT = 20.0
"""Longest pause of a client within a body, in seconds."""

BODY_TIMEOUT = 120.0
"""Longest time for a whole body in seconds; each BYTES_PER_SECOND that came extend it."""

BYTES_PER_SECOND = 16 * 2**10
"""Slowest upload that may take longer than BODY_TIMEOUT."""

DISCARD_FACTOR = 4
"""Largest part of a refused body that is read and thrown away, in multiples of the largest body."""

DISCARD_TIMEOUT = 120.0
"""Longest time in seconds for which a refused body is read and thrown away."""

_PUBLIC_PATHS = ("/ping", "/")
"""Paths that need no token, beside the files of the page: it asks for the token itself."""

_PAGE_FILES = "/page/"
"""Prefix of the paths of the page's files."""

_SINGLE_HEADERS = (b"host", b"authorization", b"origin", b"content-length")
"""Headers that the checks read, and that may come once: of two, a proxy could check the one and
this gateway the other.
"""

ErrorResponse = Callable[[ArtMancerError], ASGIApp]
"""Makes the response to an error."""


class RequestGuard:
    """Refuses requests before they reach a route: token, host, origin, size and pace of the body.

    A body that is still being sent when its request is refused is read on, up to a limit: closing
    a connection with unread bytes resets it, and then many clients lose the response.

    Parameters
    ----------
    token : token that `Authorization: Bearer` has to carry on every path but /ping, / and the
        page's files; None: no token
    origins : origins of pages that may send requests, beside the gateway's own page
    allowed_hosts : host names it answers to; None: any. Otherwise a page elsewhere could point a
        name of its own at this machine (DNS rebinding)
    max_body : largest body in bytes; counted while it comes, so that no more is ever held
    error_response : makes the response to a refused request
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        token: str | None,
        origins: list[str],
        allowed_hosts: set[str] | None,
        max_body: int,
        error_response: ErrorResponse,
    ) -> None:
        self.app = app
        self.token = token
        self.origins = {origin.encode() for origin in origins}
        self.allowed_hosts = allowed_hosts
        self.max_body = max_body
        self.error_response = error_response

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = _Request(dict(scope["headers"]), receive, send, self.max_body)
        error = self._header_error(scope)
        if error is None:
            with suppress(_BodyRefused):
                await self.app(scope, request.receive, request.send_unless_refused)
            error = None if request.answered else request.error
        if error:
            await self.error_response(error)(scope, receive, request.send)

    def _header_error(self, scope: Scope) -> ArtMancerError | None:
        """Return why a request is refused by its headers alone."""
        names = [name for name, _ in scope["headers"]]
        for name in _SINGLE_HEADERS:
            if names.count(name) > 1:
                return ArtMancerError(
                    "invalid_request",
                    f"There are {names.count(name)} headers {name.decode()}; expected one. Send it "
                    "once.",
                )
        headers = dict(scope["headers"])
        if self.token and not _is_public(scope["path"]):
            value = headers.get(b"authorization", b"")
            if not hmac.compare_digest(value, b"Bearer " + self.token.encode()):
                return _token_error(value)
        host = headers.get(b"host", b"").decode("latin-1")
        if self.allowed_hosts and _host_name(host) not in self.allowed_hosts:
            return ArtMancerError(
                "unauthorized",
                f"This gateway does not answer to the host name '{host[:80]}'. Use the address it "
                "listens on.",
            )
        origin = headers.get(b"origin")
        is_own_page = origin and origin.partition(b"://")[2] == headers.get(b"host")
        if origin and origin not in self.origins and not is_own_page:
            # CORS keeps such a page from reading an answer, but not from sending a form.
            return ArtMancerError(
                "unauthorized", "This origin is not allowed. Add it to ALLOWED_ORIGINS."
            )
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.max_body:
            return _too_large(self.max_body)
        return None


def _host_name(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:  # half an IPv6 address
        return None


def _is_public(path: str) -> bool:
    """Return whether a path needs no token."""
    return path in _PUBLIC_PATHS or path.startswith(_PAGE_FILES)


def _token_error(value: bytes) -> ArtMancerError:
    """Return the error for a header Authorization without the gateway's token."""
    came = "it is not the token of this gateway" if value else "none came"
    return ArtMancerError(
        "unauthorized",
        f"A token is needed, and {came}. Send it as 'Authorization: Bearer TOKEN'.",
        {"field": "Authorization", "expected": "Bearer TOKEN"},
    )


class _Request:
    """A request whose body is limited in size and pace, and the response to it.

    Attributes
    ----------
    error : why the body was refused
    answered : whether a response was begun
    """

    def __init__(
        self, headers: dict[bytes, bytes], receive: Receive, send: Send, max_body: int
    ) -> None:
        self._receive = receive
        self._send = send
        self._max_body = max_body
        self._start = time.monotonic()
        self._received = 0
        self._has_body = (
            b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"
        )
        self._complete = False
        self._stalled = False
        self._cut_short = False
        self.error: ArtMancerError | None = None
        self.answered = False

    async def receive(self) -> Message:
        """Receive the next message of the app.

        Raises
        ------
        _BodyRefused : the body is too large or too slow
        """
        if self._complete:
            return await self._receive()
        try:
            message = await self._next(
                self._start + BODY_TIMEOUT + self._received / BYTES_PER_SECOND
            )
        except asyncio.TimeoutError:
            self._stalled = True
            self.error = ArtMancerError(
                "timeout", "The rest of the request did not come. Send it again."
            )
            raise _BodyRefused from None
        if self._received > self._max_body:
            self.error = _too_large(self._max_body)
            raise _BodyRefused
        return message

    async def send_unless_refused(self, message: Message) -> None:
        """Send a message of the app, but not its response to half a body."""
        if self.error is None:
            self.answered = True
            await self.send(message)

    async def send(self, message: Message) -> None:
        """Send a message. At the end of an error response, first discard the rest of the body."""
        if message["type"] == "http.response.start":
            self._cut_short = message["status"] >= 400 and self._has_body and not self._complete
            if self._cut_short:
                headers = [*message["headers"], (b"connection", b"close")]
                message = {**message, "headers": headers}
        elif self._cut_short and not message.get("more_body"):
            # The whole response goes out first: a client that reads while it sends can stop.
            await self._send({**message, "more_body": True})
            await self._discard()
            message = {"type": "http.response.body"}
        await self._send(message)

    async def _discard(self) -> None:
        """Read the rest of the body and throw it away, up to the limits."""
        deadline = time.monotonic() + DISCARD_TIMEOUT
        limit = DISCARD_FACTOR * self._max_body
        with suppress(asyncio.TimeoutError):
            while not self._complete and not self._stalled and self._received < limit:
                await self._next(deadline)

    async def _next(self, deadline: float) -> Message:
        """Receive a message.

        Raises
        ------
        asyncio.TimeoutError : the client pauses too long, or the deadline has passed
        """
        timeout = min(BODY_PAUSE_TIMEOUT, deadline - time.monotonic())
        message = await asyncio.wait_for(self._receive(), timeout)
        self._received += len(message.get("body", b""))
        self._complete = not message.get("more_body")
        return message


class _BodyRefused(Exception):
    """Ends the reading of a body."""


def _too_large(max_bytes: int) -> ArtMancerError:
    return ArtMancerError(
        "image_too_large",
        f"The request is over {max_bytes / 2**20:g} MB. Scale the images down, or save them as "
        "JPEG.",
    )


class HeadMiddleware:
    """Answers HEAD wherever GET is answered: with GET's status and headers, and no body."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return
        answered = asyncio.Event()

        async def receive_until_answered() -> Message:
            await answered.wait()
            return {"type": "http.disconnect"}

        async def send_without_body(message: Message) -> None:
            if message["type"] == "http.response.start":
                await send(message)
                await send({"type": "http.response.body"})
                answered.set()

        # With this version of ASGI, a stream ends when its client disconnects; with newer ones,
        # when sending fails.
        asgi = {**scope.get("asgi", {}), "spec_version": "2.3"}
        scope = {**scope, "method": "GET", "asgi": asgi}
        await self.app(scope, receive_until_answered, send_without_body)


class ErrorMiddleware:
    """Answers exceptions that nobody expected. It runs inside the CORS middleware, so
    that a page of an allowed origin can read the answer.
    """

    def __init__(self, app: ASGIApp, error_response: ErrorResponse) -> None:
        self.app = app
        self.error_response = error_response

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def send_and_note(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, send_and_note)
        except Exception:
            if started or scope["type"] != "http":
                raise
            logger.exception("a bug")
            await self.error_response(unexpected_error())(scope, receive, send)


class MetricsMiddleware:
    """Counts the responses by route, and logs them."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = time.perf_counter()

        async def send_and_count(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "other")
                metrics.REQUESTS.labels(route, message["status"]).inc()
                if route != "/ping":
                    logs.log_event(
                        logger,
                        "answered",
                        method=scope["method"],
                        route=route,
                        status=message["status"],
                        ms=round((time.perf_counter() - start) * 1000),
                    )
            await send(message)

        await self.app(scope, receive, send_and_count if scope["type"] == "http" else send)
