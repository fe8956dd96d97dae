"""FastAPI dependencies of the routes, and a route class with a fast JSON parser."""

import json
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from pydantic_core import from_json

from ..request_errors import not_json
from ..service import Gateway

# FastAPI runs a dependency that is a plain function in a thread. These are coroutines, which
# it calls directly.


async def _gateway(request: Request) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway


async def _client_address(request: Request) -> str:
    return request.client.host if request.client else "local"


GatewayDependency = Annotated[Gateway, Depends(_gateway)]
"""The gateway that the app was built with."""

ClientAddress = Annotated[str, Depends(_client_address)]
"""The address a request came from. It stands for the client in the queue and its limits."""


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
