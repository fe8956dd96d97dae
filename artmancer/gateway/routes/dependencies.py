"""FastAPI dependencies of the routes, and a route class with a fast JSON parser."""

import json
from collections.abc import Callable, Coroutine
from hashlib import sha256
from typing import Annotated, Any

from fastapi import Depends, Header, Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from pydantic_core import from_json

from ..jobs import Claim
from ..request_errors import not_json
from ..service import Gateway, Sender

IDEMPOTENCY_KEY = "Idempotency-Key"
"""Header with which a request that is sent again gets the job of the first."""

_MAX_KEY = 255
"""Longest key in characters."""

_KEY_DESCRIPTION = (
    "A new UUID for each new request. Within a day, the same key with the same body gets the same "
    "job, so that a request that was not answered can be sent again."
)

KEY_PARAMETER = {
    "name": IDEMPOTENCY_KEY,
    "in": "header",
    "required": False,
    "description": _KEY_DESCRIPTION,
    "schema": {"type": "string", "minLength": 1, "maxLength": _MAX_KEY},
}
"""The header in an OpenAPI document."""

# FastAPI runs a dependency that is a plain function in a thread. These are coroutines, which
# it calls directly.


async def _gateway(request: Request) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway


async def _sender(
    request: Request,
    idempotency_key: Annotated[
        str | None,
        Header(
            alias=IDEMPOTENCY_KEY,
            min_length=1,
            max_length=_MAX_KEY,
            description=_KEY_DESCRIPTION,
        ),
    ] = None,
) -> Sender:
    claim = None
    if idempotency_key is not None:
        key = sha256(idempotency_key.encode()).hexdigest()
        claim = Claim(key, await _fingerprint(request))
    return Sender(request.client.host if request.client else "local", claim)


async def _fingerprint(request: Request) -> str:
    """Return a hash of a request's path and body."""
    content = sha256(request.url.path.encode())
    if request.headers.get("content-type", "").startswith("multipart/form-data"):
        # Its fields: the text between them is another one each time. FastAPI has parsed the form.
        for name, value in (await request.form()).multi_items():
            part = value.encode() if isinstance(value, str) else await value.read()
            if not isinstance(value, str):
                await value.seek(0)
            content.update(sha256(name.encode()).digest() + sha256(part).digest())
    else:
        content.update(await request.body())
    return content.hexdigest()


GatewayDependency = Annotated[Gateway, Depends(_gateway)]
"""The gateway that the app was built with."""

SenderDependency = Annotated[Sender, Depends(_sender)]
"""Who sent a request: the address it came from, and its Idempotency-Key."""


class _FastJsonRequest(Request):
    async def json(self) -> Any:
        body = await self.body()
        try:
            return from_json(body)
        except ValueError as error:
            raise json.JSONDecodeError(not_json(body, str(error)), "", 0) from None


class FastJsonRoute(APIRoute):
    """A route that parses JSON with pydantic's parser.

    Requests hold images, which are megabytes of base64. Pydantic's parser needs a tenth of the time
    of Python's json module for them.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_with_fast_json(request: Request) -> Response:
            return await handle(_FastJsonRequest(request.scope, request.receive))

        return handle_with_fast_json
