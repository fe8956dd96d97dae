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
        headers = dict(scope["headers"])
        if self.token and scope["path"] != "/ping":
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, b"Bearer " + self.token.encode()):
                error = ArtMancerError(
                    "unauthorized", "A token is needed. Send it as 'Authorization: Bearer TOKEN'."
                )
                await self.refuse(error)(scope, receive, send)
                return
        host = headers.get(b"host", b"").decode("latin-1")
        if self.hosts and urlsplit(f"//{host}").hostname not in self.hosts:
            error = ArtMancerError(
                "unauthorized", f"It is not known as '{host[:80]}'. Ask it under its own address."
            )
            await self.refuse(error)(scope, receive, send)
            return
        origin = headers.get(b"origin")
        if (
            origin
            and origin not in self.origins
            and origin.partition(b"://")[2] != headers.get(b"host")
        ):
            # CORS keeps such a page from reading an answer, but not from sending a form.
            error = ArtMancerError(
                "unauthorized", "Pages of this origin may not use it. Add it to ALLOWED_ORIGINS."
            )
            await self.refuse(error)(scope, receive, send)
            return
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.max_body:
            await self.refuse(self._too_large())(scope, receive, send)
            return
        taken, answered, refused = 0, False, None

        async def take() -> Message:
            nonlocal taken, refused
            patience = min(CHUNK_SECONDS, deadline - time.monotonic())
            try:
                message = await (asyncio.wait_for(receive(), patience) if reading else receive())
            except asyncio.TimeoutError:
                refused = ArtMancerError(
                    "timeout", "The rest of the request did not come. Send it again."
                )
                raise _Refused from None
            taken += len(message.get("body", b""))
            if taken > self.max_body:
                refused = self._too_large()
                raise _Refused
            if not message.get("more_body"):
                done()
            return message

        reading = True
        deadline = time.monotonic() + BODY_SECONDS

        def done() -> None:
            nonlocal reading
            reading = False

        async def give(message: Message) -> None:
            nonlocal answered
            # What the app makes of the body that broke off is not what the client should hear.
            if refused is None:
                answered = True
                await send(message)

        with suppress(_Refused):
            await self.app(scope, take, give)
        if refused and not answered:
            await self.refuse(refused)(scope, receive, send)

    def _too_large(self) -> ArtMancerError:
        return ArtMancerError(
            "image_too_large",
            f"The request is over {self.max_body / 2**20:g} MB. Scale the pictures down, or save "
            "them as JPEG.",
        )


class _Refused(Exception):
    """Ends the reading of a body."""
