"""The state of a ComfyUI that the gateway cannot reach."""

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import pytest
from support.comfyui import free_port
from support.gateway import FakeHost

from artmancer.gateway.comfy_runner import ComfyRunner
from artmancer.gateway.runner import ComfyStatus

NOTHING_LISTENS = "ComfyUI does not answer: nothing listens at its address."
STARTING = ComfyStatus(False, "ComfyUI is starting.", starting=True)
"""The state of a ComfyUI that the gateway starts."""

REFUSING = (socket.AF_INET, "127.0.0.1")
UNREACHABLE = (socket.AF_INET6, "ff02::1")
"""An address of many machines, to which no connection can be opened."""


def reason_that_follows(
    earlier: str,
    url: str,
    absence: Callable[[], ComfyStatus] | None = None,
    on_connect: Callable[[], None] | None = None,
) -> str | None:
    """Return the first reason, after an earlier one, why the ComfyUI at a URL accepts no runs.

    Parameters
    ----------
    on_connect : called when it has answered; None: it does not answer
    """

    async def follow() -> str | None:
        runner = ComfyRunner(url, "test", absence)
        connecting = asyncio.create_task(runner.connect())
        if on_connect:
            await runner.ready()
            await asyncio.to_thread(on_connect)
        while runner.status().reason in (None, earlier):
            await asyncio.sleep(0.02)
        reason = runner.status().reason
        connecting.cancel()
        await asyncio.gather(connecting, return_exceptions=True)
        return reason

    return asyncio.run(asyncio.wait_for(follow(), 20))


@pytest.fixture
def resolve(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let every host name have these addresses; none: it is unknown."""

    def resolve_to(*addresses: tuple[socket.AddressFamily, str]) -> None:
        def getaddrinfo(host: str, port: int, *_: object, **__: object) -> list[Any]:
            if not addresses:
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            return [
                (family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port))
                if family == socket.AF_INET
                else (family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port, 0, 0))
                for family, address in addresses
            ]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    return resolve_to


@pytest.mark.parametrize(
    "addresses",
    [[REFUSING], [REFUSING, (socket.AF_INET, "127.0.0.2")], [UNREACHABLE, REFUSING]],
    ids=["one address", "two addresses", "two addresses, one of them unreachable"],
)
def test_a_refused_connection_is_said_to_have_no_listener(
    resolve: Callable[..., None], addresses: list[Any]
) -> None:
    resolve(*addresses)
    url = f"http://comfyui.example:{free_port()}"
    assert reason_that_follows("ComfyUI has not answered yet.", url) == NOTHING_LISTENS


def test_an_unknown_name_is_not_said_to_have_no_listener(resolve: Callable[..., None]) -> None:
    resolve()
    reason = reason_that_follows(
        str(STARTING.reason), "http://comfyui.example:8188", lambda: STARTING
    )
    assert reason == "ComfyUI does not answer (ClientConnectorDNSError)."


def test_a_server_without_tls_is_not_said_to_have_no_listener(fake: FakeHost) -> None:
    url = fake.url.replace("http:", "https:")
    reason = reason_that_follows(str(STARTING.reason), url, lambda: STARTING)
    assert reason == "ComfyUI does not answer (ClientConnectorSSLError)."


def test_a_comfyui_that_stopped_answering_is_not_said_to_be_starting() -> None:
    host = FakeHost()
    reason = reason_that_follows(
        "ComfyUI closed the connection.", host.url, lambda: STARTING, host.die
    )
    assert reason and reason.startswith("ComfyUI stopped answering, and is restarted when it exits")
