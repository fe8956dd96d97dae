"""What stands before every route: the bearer token, and the limits of a request's body."""

import asyncio
import hmac
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from ..errors import ArtMancerError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

CHUNK_SECONDS, BODY_SECONDS = 20.0, 120.0
"""How long a client may fall silent in the middle of a body,
and how long the whole of it may take.
"""


class Guard:
    """ASGI middleware.

    Parameters
    ----------
    token : what `Authorization: Bearer` has to say on every path but /ping; None: nothing
    origins : whose pages may send requests, besides the gateway's own page; a browser names the
        page's origin
    hosts : names it may be asked for under; None: any. A page elsewhere can point a name of its own
        at this machine
    max_body : bytes; counted while they come, so that no more of them is ever held
    refuse : makes the answer to a request that is refused
    """

    def __init__(
        self,
        app: App,
        *,
        token: str | None,
        origins: list[str],
        hosts: set[str] | None,
        max_body: int,
        refuse: Callable[[ArtMancerError], App],
    ) -> None:
        self.app = app
        self.token = token
        self.origins = {origin.encode() for origin in origins}
        self.hosts = hosts
        self.max_body = max_body
        self.refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refused = self._refusal(scope)
        if refused is None:
            body, answered = _Body(receive, self.max_body), False

            async def give(message: Message) -> None:
                nonlocal answered
                # What the app makes of a body that broke off is not what the client should hear.
                if body.refused is None:
                    answered = True
                    await send(message)

            with suppress(_Refused):
                await self.app(scope, body.take, give)
            refused = None if answered else body.refused
        if refused:
            await self.refuse(refused)(scope, receive, send)

    def _refusal(self, scope: Scope) -> ArtMancerError | None:
        """Why a request is refused by its headers alone."""
        headers = dict(scope["headers"])
        if self.token and scope["path"] != "/ping":
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, b"Bearer " + self.token.encode()):
                return ArtMancerError(
                    "unauthorized", "A token is needed. Send it as 'Authorization: Bearer TOKEN'."
                )
        host = headers.get(b"host", b"").decode("latin-1")
        if self.hosts and _name(host) not in self.hosts:
            return ArtMancerError(
                "unauthorized", f"It is not known as '{host[:80]}'. Ask it under its own address."
            )
        origin = headers.get(b"origin")
        if (
            origin
            and origin not in self.origins
            and origin.partition(b"://")[2] != headers.get(b"host")
        ):
            # CORS keeps such a page from reading an answer, but not from sending a form.
            return ArtMancerError(
                "unauthorized", "Pages of this origin may not use it. Add it to ALLOWED_ORIGINS."
            )
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.max_body:
            return _too_large(self.max_body)
        return None


def _name(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:  # half an IPv6 address
        return None


class _Body:
    """A request's body as it comes; `refused` says why it was broken off."""

    def __init__(self, receive: Receive, most: int) -> None:
        self.receive = receive
        self.most = most
        self.taken = 0
        self.ended = False
        self.deadline = time.monotonic() + BODY_SECONDS
        self.refused: ArtMancerError | None = None

    async def take(self) -> Message:
        if self.ended:
            return await self.receive()
        patience = min(CHUNK_SECONDS, self.deadline - time.monotonic())
        try:
            message = await asyncio.wait_for(self.receive(), patience)
        except asyncio.TimeoutError:
            self.refused = ArtMancerError(
                "timeout", "The rest of the request did not come. Send it again."
            )
            raise _Refused from None
        self.taken += len(message.get("body", b""))
        if self.taken > self.most:
            self.refused = _too_large(self.most)
            raise _Refused
        self.ended = not message.get("more_body")
        return message


def _too_large(most: int) -> ArtMancerError:
    return ArtMancerError(
        "image_too_large",
        f"The request is over {most / 2**20:g} MB. Scale the pictures down, or save them as JPEG.",
    )


class _Refused(Exception):
    """Ends the reading of a body."""
