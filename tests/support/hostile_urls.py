"""URLs that a client could send to reach what it must not, or to hold the gateway up."""

import asyncio
from dataclasses import dataclass

from artmancer import images
from artmancer.errors import ArtMancerError
from artmancer.gateway.fetch import resolve

from .site import HOST, PUBLIC, Site, answers, site_fetcher

URL = f"http://{HOST}/coffee.png"


@dataclass(frozen=True)
class Hostile:
    """A hostile URL.

    Attributes
    ----------
    name : what is hostile
    url : the URL
    rounds : addresses that its host's name resolves to, for each time; None: the system resolves
    hosts : listed in addition to HOST
    code : error code of the answer; "fetched" where the public address answers with an image
    """

    name: str
    url: str
    rounds: tuple[list[str], ...] | None = ([PUBLIC],)
    hosts: tuple[str, ...] = ()
    code: str = "invalid_request"


def _addresses(**named: str) -> list[Hostile]:
    return [
        Hostile(f"{name.replace('_', ' ')}: {address}", URL, ([address],))
        for name, addresses in named.items()
        for address in addresses.split()
    ]


def _literals(**named: str) -> list[Hostile]:
    """Return literal addresses whose operator lists even them; the system resolves them."""
    return [
        Hostile(
            f"{name.replace('_', ' ')}: {host}",
            f"http://{host}/coffee.png",
            None,
            (f"http://{host}",),
        )
        for name, hosts in named.items()
        for host in hosts.split()
    ]


def _redirects(**named: str) -> list[Hostile]:
    return [
        Hostile(f"redirect to {name.replace('_', ' ')}", f"http://{HOST}/redirect?to={target}")
        for name, target in named.items()
    ]


def _bodies(code: str = "invalid_image", **named: str) -> list[Hostile]:
    return [
        Hostile(name.replace("_", " "), f"http://{HOST}/{path}", code=code)
        for name, path in named.items()
    ]


HOSTILE = [
    *_addresses(
        loopback="127.0.0.1 127.255.0.1 ::1",
        private="10.0.0.1 172.16.0.1 172.31.255.255 192.168.1.1 fc00::1 fd12::1",
        metadata_of_a_cloud="169.254.169.254 fd00:ec2::254",
        link_local="169.254.0.1 fe80::1",
        this_host="0.0.0.0 ::",
        carrier_grade_NAT="100.64.0.1 100.127.255.255",
        multicast="224.0.0.1 ff02::1",
        broadcast="255.255.255.255",
        reserved="240.0.0.1 192.0.0.170 198.18.0.1",
        documentation="192.0.2.1 203.0.113.9 2001:db8::1 3fff::1",
        site_local="fec0::1",
        IPv4_mapped="::ffff:127.0.0.1 ::ffff:93.184.215.14",
        IPv4_compatible="::127.0.0.1",
        in_6to4="2002:7f00:1::1 192.88.99.1",
        in_NAT64="64:ff9b::7f00:1 64:ff9b:1::7f00:1",
        in_Teredo="2001:0:5ef5:79fd:0:59b:a0ff:fffe",
    ),
    Hostile("one private address of two", URL, ([PUBLIC, "10.0.0.1"],)),
    *_literals(
        decimal_number="2130706433",
        octal="017700000001",
        hexadecimal="0x7f000001 0x7f.0.0.1",
        short="127.1 0",
        IPv6_literal="[::1] [::ffff:7f00:1] [0:0:0:0:0:ffff:127.0.0.1]",
        name_of_this_machine="localhost",
    ),
    Hostile("octal: 0177.0.0.1", "http://0177.0.0.1/coffee.png", None),
    Hostile("host that is not listed", "http://other.example/coffee.png"),
    Hostile("literal that is not listed", f"http://{PUBLIC}/coffee.png"),
    Hostile("listed host as a part of another", f"http://{HOST}.other.example/coffee.png"),
    Hostile("listed host in front of @", f"http://{HOST}@127.0.0.1/coffee.png"),
    Hostile("user name and password", f"http://user:password@{HOST}/coffee.png"),
    Hostile("backslash before @", f"http://{HOST}\\@127.0.0.1/coffee.png"),
    Hostile("encoded slash before @", f"http://{HOST}%2f@127.0.0.1/coffee.png"),
    Hostile("line break", f"http://{HOST}/\r\nHost: 127.0.0.1\r\n\r\n"),
    Hostile("another port", f"http://{HOST}:6379/coffee.png"),
    Hostile("port 0", f"http://{HOST}:0/coffee.png"),
    Hostile("trailing dot", f"http://{HOST}./coffee.png"),
    Hostile("scheme file", "file:///etc/passwd"),
    Hostile("scheme gopher", f"gopher://{HOST}:80/_GET"),
    Hostile("scheme data", "data:image/png;base64,AAAA"),
    Hostile("scheme ftp", f"ftp://{HOST}/coffee.png"),
    Hostile("no scheme", f"//{HOST}/coffee.png"),
    Hostile(
        "http where https is listed", "http://secure.example/coffee.png", hosts=("secure.example",)
    ),
    Hostile("URL of 100,000 characters", f"http://{HOST}/{'a' * 100_000}"),
    Hostile("DNS that changes after the check", URL, ([PUBLIC], ["127.0.0.1"]), code="fetched"),
    Hostile(
        "DNS that changes before a redirect",
        f"http://{HOST}/redirect?to=/coffee.png",
        ([PUBLIC], ["127.0.0.1"]),
    ),
    *_redirects(
        a_literal_address="http://127.0.0.1/coffee.png",
        another_host="http://other.example/coffee.png",
        another_port=f"http://{HOST}:22/",
        a_file="file:///etc/passwd",
        a_URL_with_a_password=f"http://user:password@{HOST}/coffee.png",
        a_host_without_a_scheme="//127.0.0.1/coffee.png",
    ),
    Hostile("redirect without end", f"http://{HOST}/loop", code="invalid_image"),
    *_bodies(
        compressed_body="gzip",
        slow_body="slow",
        slow_headers="drip",
        no_answer="silent",
        not_HTTP="broken",
        status_404="nothing",
        text_named_as_an_image="text",
        empty_body="empty",
    ),
    *_bodies("image_too_large", huge_body="huge", endless_body="endless"),
]
"""Hostile URLs. Those with a public address reach the listed host, which is hostile itself."""


def outcome(hostile: Hostile, public: Site, private: Site) -> str:
    """Fetch a hostile URL, and return the error's code; "fetched" without one.

    Parameters
    ----------
    public : answers at the public address
    private : answers at all others
    """
    hosts = (f"http://{HOST}", HOST, *hostile.hosts)
    resolver = resolve if hostile.rounds is None else answers(*hostile.rounds)

    async def fetch() -> None:
        fetcher = site_fetcher(public, private, hosts, resolver=resolver)
        images.inspect(await fetcher.get(hostile.url, "input_image"))

    try:
        asyncio.run(fetch())
    except ArtMancerError as error:
        return error.code
    return "fetched"
