"""Requests to addresses that clients choose: only to hosts that the operator lists, and only to
public addresses.

Without these checks a client could reach what the gateway's machine reaches, such as the metadata
service of a cloud (server-side request forgery). A host is resolved once; every address is
checked, and the connection goes to the checked address and not to the name, so that DNS which
changes in between has no effect. TLS still verifies the certificate for the name. A redirect is
checked like a new URL.
"""

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from ipaddress import IPv6Address, ip_address, ip_network

import httpx

from ..errors import ArtMancerError
from .request_errors import invalid
from .waiting import within

Origin = tuple[str, str, int]
"""Scheme, host in lower case, and port of a URL."""

Resolver = Callable[[str, int], Awaitable[list[str]]]
"""Returns the IP addresses of a host. Raises OSError where it has none."""

TIMEOUT = 30.0
"""Seconds for a whole request by default."""

_CONNECT_TIMEOUT = 10.0
"""Seconds for a connection, and longest pause within an answer."""

_MAX_REDIRECTS = 3

_MAX_URL = 8192
"""Longest URL in characters: a presigned URL has up to about 3,000."""

_MAX_ADDRESSES = 3
"""Addresses of a host that are tried, one after the other."""

_AT_A_TIME = 8
"""Requests that run at the same time, so that their bodies fit in memory."""

_PORTS = {"https": 443, "http": 80}
"""Default port by scheme."""

_HOST = re.compile(r"[a-z0-9._:-]+")
"""Names and addresses of hosts, in ASCII."""

_AUTHORITY = re.compile(r"[^:/?#]*://([^/?#]*)")

_NOT_PUBLIC_V4 = tuple(
    ip_network(network)
    for network in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # carrier-grade NAT
        "127.0.0.0/8",  # loopback
        "169.254.0.0/16",  # link-local, with the metadata services of clouds
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # AMT
        "192.88.99.0/24",  # relays of 6to4
        "192.168.0.0/16",  # private
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
    )
)
"""IANA's special-purpose IPv4 addresses. The standard library's `is_global` differs between the
versions of Python.
"""

_PUBLIC_V6 = ip_network("2000::/3")
"""The only IPv6 addresses that are assigned to hosts of the internet. Outside of it are loopback,
link-local and private addresses, multicast, and IPv4 addresses in IPv6 form (mapped, NAT64).
"""

_NOT_PUBLIC_V6 = tuple(
    ip_network(network)
    for network in (
        "2001::/23",  # protocol assignments, with Teredo
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: holds an IPv4 address
        "2620:4f:8000::/48",  # AS112
        "3fff::/20",  # documentation
    )
)
"""IANA's special-purpose addresses within _PUBLIC_V6."""


def parse_host(text: str) -> Origin:
    """Parse an entry of the list of allowed hosts: a host, with a port if it is not 443, and with
    http:// in front if it is to be reached without TLS.

    Raises
    ------
    ValueError : it is none
    """
    expected = "expected a host name such as images.example.com, with a port if it is not 443"
    try:
        url = httpx.URL(text if "://" in text else f"https://{text}")
        origin = _origin(url)
    except (httpx.InvalidURL, ValueError) as error:
        raise ValueError(f"'{text}': {expected} ({error})") from None
    is_bare = url.path == "/" and not (url.query or url.fragment or url.userinfo)
    if not is_bare or not _HOST.fullmatch(origin[1]):
        raise ValueError(f"'{text}': {expected}")
    return origin


def is_public(address: str) -> bool:
    """Tell whether an IP address belongs to a host of the public internet."""
    ip = ip_address(address)
    if isinstance(ip, IPv6Address):
        return ip in _PUBLIC_V6 and not any(ip in network for network in _NOT_PUBLIC_V6)
    return not any(ip in network for network in _NOT_PUBLIC_V4)


async def resolve(host: str, port: int) -> list[str]:
    """Return the addresses of a host, as the system resolves it."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[4][0]) for address in found))


class Fetcher:
    """Requests to the hosts that the operator lists.

    Parameters
    ----------
    hosts : entries for `parse_host`; empty: every request is refused
    max_bytes : largest answer
    resolver : resolves the names of hosts
    transport : sends a request to the IP address in its URL; default: httpx's
    timeout : seconds for a whole request, with its redirects and its body
    """

    def __init__(
        self,
        hosts: Iterable[str],
        max_bytes: int,
        resolver: Resolver = resolve,
        transport: httpx.AsyncBaseTransport | None = None,
        timeout: float = TIMEOUT,
    ) -> None:
        self._origins = {parse_host(host) for host in hosts}
        self._max_bytes = max_bytes
        self._resolve = resolver
        self._transport = transport
        self._timeout = timeout
        self._slots = asyncio.Semaphore(_AT_A_TIME)

    def check(self, text: str, field: str) -> httpx.URL:
        """Return a URL that may be requested. Its host is not resolved yet.

        Parameters
        ----------
        field : what a message calls the URL

        Raises
        ------
        ArtMancerError : invalid_request
        """
        if not self._origins:
            raise invalid(field, "expected no URL: this gateway lists no hosts for them", "a URL")
        expected = "expected a URL of an allowed host"
        if len(text) > _MAX_URL:
            raise invalid(field, f"{expected} in {_MAX_URL:,} characters", f"{len(text):,}")
        authority = _AUTHORITY.match(text)
        # Parsers differ in what they make of a backslash, a space or a control character.
        if authority is None or re.search(r"[\\\x00-\x20\x7f]", text):
            raise invalid(field, expected, "a text that is no URL")
        if "@" in authority[1]:
            raise invalid(field, expected, "a URL with a user name or a password")
        try:
            url = httpx.URL(text)
            origin = _origin(url)
        except (httpx.InvalidURL, ValueError):
            raise invalid(field, expected, "a text that is no URL") from None
        if origin not in self._origins:
            scheme, host, port = origin
            raise invalid(field, expected, f"{scheme} to {host[:200]!r}, port {port}")
        return url

    async def get(self, text: str, field: str) -> bytes:
        """Fetch a file.

        Raises
        ------
        ArtMancerError : invalid_request where the URL is refused; image_too_large; invalid_image
            where the host does not answer with a file, or not in time
        """
        url = self.check(text, field)
        async with self._slots:
            try:
                return await within(self._get(url, field), self._timeout)
            except asyncio.TimeoutError:
                raise _no_file(field, f"it did not come within {self._timeout:g} s") from None

    async def send(
        self, method: str, text: str, field: str, content: bytes, headers: Mapping[str, str]
    ) -> int:
        """Send a body to a URL, and return the HTTP status of the answer. A redirect is not
        followed.

        Raises
        ------
        ArtMancerError : invalid_request where the URL is refused
        ConnectionError : there is no answer, or not in time
        """
        url = self.check(text, field)

        async def answer() -> int:
            response = await self._open(method, url, field, content, headers)
            async with aclosing(response):
                return response.status_code

        try:
            return await within(answer(), self._timeout)
        except asyncio.TimeoutError:
            raise ConnectionError(f"no answer within {self._timeout:g} s") from None
        except httpx.HTTPError as error:
            raise ConnectionError(_reason(error)) from None

    async def _get(self, url: httpx.URL, field: str) -> bytes:
        for _ in range(_MAX_REDIRECTS + 1):
            try:
                async with aclosing(await self._open("GET", url, field)) as response:
                    if not response.has_redirect_location:
                        return await self._body(response, field)
                    location = response.headers["Location"]
                    url = self.check(str(url.join(location)), field)
            except (httpx.HTTPError, httpx.InvalidURL, ConnectionError) as error:
                raise _no_file(field, _reason(error)) from None
        raise _no_file(field, f"it was redirected more than {_MAX_REDIRECTS} times")

    async def _body(self, response: httpx.Response, field: str) -> bytes:
        """Read the file that a host answers with, as far as it is not too large."""
        if response.status_code != 200:
            raise _no_file(field, f"the host answered with status {response.status_code}")
        # A small compressed body could become a very large one.
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise _no_file(field, "the host sent it compressed, although that was not accepted")
        length = response.headers.get("Content-Length", "0")
        data = bytearray()
        if not length.isdigit() or int(length) <= self._max_bytes:
            async for part in response.aiter_raw():
                data += part
                if len(data) > self._max_bytes:
                    break
            else:
                return bytes(data)
        raise ArtMancerError(
            "image_too_large",
            f"{field}: the file at the URL is over {self._max_bytes / 2**20:g} MB. Scale the image "
            "down, or save it as JPEG.",
        )

    async def _open(
        self,
        method: str,
        url: httpx.URL,
        field: str,
        content: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """Send a request to a checked address of the URL's host, and return the answer, whose body
        is not read yet; the caller closes it.
        """
        addresses = await self._public_addresses(url, field)
        if self._transport is None:
            # Connections are not kept: the next request to the same address may be for another
            # name, for which the certificate was not verified.
            limits = httpx.Limits(max_keepalive_connections=0)
            self._transport = httpx.AsyncHTTPTransport(trust_env=False, limits=limits)
        while True:
            request = httpx.Request(
                method,
                url.copy_with(host=addresses.pop(0), fragment=None),
                headers={
                    "Host": url.netloc.decode("ascii"),
                    "User-Agent": "ArtMancer",
                    "Accept-Encoding": "identity",
                    **(headers or {}),
                },
                content=content,
                extensions={
                    "sni_hostname": url.raw_host.decode("ascii"),
                    "timeout": httpx.Timeout(_CONNECT_TIMEOUT).as_dict(),
                },
            )
            try:
                return await self._transport.handle_async_request(request)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                if not addresses:
                    raise

    async def _public_addresses(self, url: httpx.URL, field: str) -> list[str]:
        """Return the addresses of a URL's host. All have to be public: no honest host has others
        beside.

        Raises
        ------
        ArtMancerError : invalid_request
        ConnectionError : it has none
        """
        _, host, port = _origin(url)
        try:
            addresses = await self._resolve(host, port)
        # UnicodeError: a label of the name is empty or too long.
        except (OSError, UnicodeError):
            raise ConnectionError("the host's name has no address") from None
        if not addresses or not all(map(is_public, addresses)):
            raise invalid(
                field, "expected a URL of a host with a public address", f"'{host[:200]}'"
            )
        return addresses[:_MAX_ADDRESSES]


def _origin(url: httpx.URL) -> Origin:
    """Return the origin of a URL.

    Raises
    ------
    ValueError : its scheme is neither https nor http
    """
    if url.scheme not in _PORTS:
        raise ValueError(f"the scheme '{url.scheme}' is neither https nor http")
    port = _PORTS[url.scheme] if url.port is None else url.port
    return url.scheme, url.raw_host.decode("ascii").lower(), port


def _no_file(field: str, reason: str) -> ArtMancerError:
    return ArtMancerError(
        "invalid_image",
        f"{field}: the file at the URL could not be fetched: {reason}. Check the URL.",
    )


def _reason(error: Exception) -> str:
    """Return why a request failed, without addresses."""
    if isinstance(error, httpx.ConnectError):
        is_tls = "certificate" in str(error).lower() or "ssl" in str(error).lower()
        return "its certificate is not valid" if is_tls else "the host does not take connections"
    if isinstance(error, httpx.TimeoutException):
        return "the host does not answer"
    if isinstance(error, ConnectionError):
        return str(error)
    return "the host's answer is broken"
