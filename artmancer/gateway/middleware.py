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
"""Longest time for a whole body, in seconds."""

_SINGLE_HEADERS = (b"host", b"authorization", b"origin", b"content-length")
"""Headers that the checks read, and that may come once: of two, a proxy could check the one and
this gateway the other.
"""

ErrorResponse = Callable[[ArtMancerError], ASGIApp]
"""Makes the response to an error."""


class RequestGuard:
    """Refuses requests before they reach a route: token, host, origin, size and pace of the body.

    Parameters
    ----------
    token : token that `Authorization: Bearer` has to carry on every path but /ping; None: no token
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
        error = self._header_error(scope)
        if error is None:
            body, answered = _Body(receive, self.max_body), False

            async def send_unless_refused(message: Message) -> None:
                nonlocal answered
                # The app's response to half a body must not reach the client.
                if body.error is None:
                    answered = True
                    await send(message)

            with suppress(_BodyRefused):
                await self.app(scope, body.receive, send_unless_refused)
            error = None if answered else body.error
        if error:
            await self.error_response(error)(scope, receive, send)

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
        if self.token and scope["path"] != "/ping":
            value = headers.get(b"authorization", b"")
            if not hmac.compare_digest(value, b"Bearer " + self.token.encode()):
                return ArtMancerError(
                    "unauthorized", "A token is needed. Send it as 'Authorization: Bearer TOKEN'."
                )
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


class _Body:
    """A request's body as it comes.

    Attributes
    ----------
    error : why it was refused
    """

    def __init__(self, receive: Receive, max_bytes: int) -> None:
        self._receive = receive
        self._max_bytes = max_bytes
        self._received = 0
        self._complete = False
        self._deadline = time.monotonic() + BODY_TIMEOUT
        self.error: ArtMancerError | None = None

    async def receive(self) -> Message:
        if self._complete:
            return await self._receive()
        timeout = min(BODY_PAUSE_TIMEOUT, self._deadline - time.monotonic())
        try:
            message = await asyncio.wait_for(self._receive(), timeout)
        except asyncio.TimeoutError:
            self.error = ArtMancerError(
                "timeout", "The rest of the request did not come. Send it again."
            )
            raise _BodyRefused from None
        self._received += len(message.get("body", b""))
        if self._received > self._max_bytes:
            self.error = _too_large(self._max_bytes)
            raise _BodyRefused
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
