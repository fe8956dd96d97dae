"""A web site for tests of requests that the gateway sends: it counts its connections, and answers
as badly as asked for.
"""

import asyncio
import gzip
import threading
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import parse_qs, unquote, urlsplit

import httpx

from artmancer.gateway.fetch import Fetcher, Resolver

from .paths import EXAMPLES

PUBLIC = "93.184.215.14"
"""A public address. No connection to it leaves this machine: `Reroute` sends it to a Site."""

HOST = "pictures.example"
"""A host that is listed for `site_fetcher`."""


@dataclass(frozen=True)
class Received:
    """A request that came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Site:
    """A web site that listens, in a thread.

    Attributes
    ----------
    connections : accepted so far
    received : requests so far
    statuses : answers to the next requests with a body, the last one from then on; 0: none comes
    """

    def __init__(self) -> None:
        self.connections = 0
        self.received: list[Received] = []
        self.statuses = [200]
        self.port = 0
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        asyncio.run_coroutine_threadsafe(self._listen(), self.loop).result()

    async def _listen(self) -> None:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *lines = head.strip().split("\r\n")
            headers = {
                name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)
            }
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            method, target, _ = first.split(" ")
            self.received.append(Received(method, target, headers, body))
            await (self._take(writer) if body else self._answer(writer, target))
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _take(self, writer: asyncio.StreamWriter) -> None:
        """Answer a request with a body."""
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        while status == 0:
            writer.write(b"")
            await asyncio.sleep(0.05)
            status = self.statuses[0]
        location = f"Location: http://{HOST}/elsewhere\r\n" if 300 <= status < 400 else ""
        writer.write(f"HTTP/1.1 {status} Status\r\n{location}Content-Length: 0\r\n\r\n".encode())
        await writer.drain()

    async def _answer(self, writer: asyncio.StreamWriter, target: str) -> None:
        parts = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        writer.write(_HEADS.get(parts.path, lambda _: b"HTTP/1.1 404 No\r\n\r\n")(query))
        part, pause = _PARTS.get(parts.path, (b"", 0.0))
        while part:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause)
        while parts.path == "/silent" and not writer.transport.is_closing():
            await asyncio.sleep(0.05)
        await writer.drain()


def _file(data: bytes, *headers: str) -> bytes:
    lines = ["HTTP/1.1 200 OK", f"Content-Length: {len(data)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + data


_OK = b"HTTP/1.1 200 OK\r\n"
_HEADS: dict[str, Callable[[dict[str, str]], bytes]] = {
    "/coffee.png": lambda _: _file((EXAMPLES / "coffee.png").read_bytes()),
    "/coffee_mask.png": lambda _: _file((EXAMPLES / "coffee_mask.png").read_bytes()),
    "/redirect": lambda query: (
        f"HTTP/1.1 302 Found\r\nLocation: {unquote(query['to'])}\r\n\r\n".encode()
    ),
    "/loop": lambda _: b"HTTP/1.1 302 Found\r\nLocation: /loop\r\n\r\n",
    "/text": lambda _: _file(b"ssh-rsa AAAA", "Content-Type: image/png"),
    "/empty": lambda _: _file(b""),
    "/gzip": lambda _: _file(gzip.compress(bytes(2**24)), "Content-Encoding: gzip"),
    "/huge": lambda _: _OK + b"Content-Length: 1000000000000\r\n\r\n",
    "/endless": lambda _: _OK + b"Transfer-Encoding: chunked\r\n\r\n",
    "/slow": lambda _: _OK + b"Content-Length: 1000000\r\n\r\n",
    "/drip": lambda _: _OK,
    "/silent": lambda _: b"",
    "/broken": lambda _: b"\x00\x01\x02 no HTTP\r\n\r\n",
}
"""Beginnings of the answers by path."""

_PARTS = {
    "/endless": (b"1000\r\n" + b"x" * 4096 + b"\r\n", 0.0),
    "/slow": (b"x", 0.02),
    "/drip": (b"A: b\r\n", 0.02),
}
"""A part that is sent again and again after that, and a pause in seconds, by path."""


class Reroute(httpx.AsyncBaseTransport):
    """Sends requests for the public address to one Site, and all others to another.

    Attributes
    ----------
    dialed : addresses that would have been connected to
    """

    def __init__(self, public: Site, private: Site) -> None:
        self.public, self.private = public, private
        self.dialed: list[str] = []
        limits = httpx.Limits(max_keepalive_connections=0)
        self._transport = httpx.AsyncHTTPTransport(trust_env=False, limits=limits)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.dialed.append(request.url.host)
        site = self.public if request.url.host == PUBLIC else self.private
        request.url = httpx.URL(f"http://127.0.0.1:{site.port}", raw_path=request.url.raw_path)
        return await self._transport.handle_async_request(request)


def answers(*rounds: list[str]) -> Resolver:
    """Return a resolver that answers with these addresses, the last ones from then on."""
    left = list(rounds)

    async def resolver(host: str, port: int) -> list[str]:
        return left.pop(0) if len(left) > 1 else left[0]

    return resolver


def site_fetcher(
    site: Site,
    private: Site | None = None,
    hosts: tuple[str, ...] = (f"http://{HOST}", HOST),
    **more: object,
) -> Fetcher:
    """Return a fetcher for which HOST has the public address, where `site` answers."""
    options: dict[str, object] = {
        "max_bytes": 2**20,
        "resolver": answers([PUBLIC]),
        "transport": Reroute(site, private or site),
        "timeout": 1.0,
        **more,
    }
    return Fetcher(hosts, **options)  # type: ignore[arg-type]  # a dict of its own options
