"""Images that clients send as URLs: hostile URLs reach nothing, and those of listed hosts work."""

import asyncio
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError
from support.gateway import FakeHost, Served, decoded, encoded, error, removal, settings
from support.hostile_urls import HOSTILE, URL, Hostile, outcome
from support.paths import EXAMPLES
from support.site import HOST, PUBLIC, Reroute, Site, answers, site_fetcher

from artmancer.errors import ArtMancerError
from artmancer.gateway import fetch
from artmancer.gateway.app import create_app
from artmancer.gateway.service import local_gateway

PICTURE = (EXAMPLES / "coffee.png").read_bytes()


@pytest.fixture(scope="module")
def public() -> Site:
    return Site()


@pytest.fixture(scope="module")
def private() -> Site:
    return Site()


@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda hostile: hostile.name)
def test_no_hostile_url_reaches_anything(hostile: Hostile, public: Site, private: Site) -> None:
    assert outcome(hostile, public, private) == hostile.code
    assert private.connections == 0


def test_the_table_is_long_enough() -> None:
    assert len(HOSTILE) >= 30


def test_without_the_check_of_addresses_the_private_site_would_be_reached(
    public: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "is_public", lambda address: True)
    reached = Site()
    rows = [row for row in HOSTILE if row.rounds and row.rounds[0][0] != PUBLIC]
    assert len(rows) > 25
    for hostile in rows:
        assert outcome(hostile, public, reached) == "fetched"
    assert reached.connections == len(rows)


def test_dns_that_changes_after_the_check_changes_nothing(public: Site, private: Site) -> None:
    transport = Reroute(public, private)
    resolver = answers([PUBLIC], ["127.0.0.1"])
    fetcher = site_fetcher(public, private, resolver=resolver, transport=transport)
    assert asyncio.run(fetcher.get(URL, "image")) == PICTURE
    assert transport.dialed == [PUBLIC] and private.connections == 0


def test_a_redirect_to_a_listed_host_is_followed_and_the_host_header_is_the_name(
    public: Site,
) -> None:
    url = f"http://{HOST}/redirect?to=/coffee.png"
    assert asyncio.run(site_fetcher(public).get(url, "image")) == PICTURE
    assert [request.path for request in public.received[-2:]][1] == "/coffee.png"
    assert public.received[-1].headers["host"] == HOST
    assert "cookie" not in public.received[-1].headers


def test_the_next_address_is_tried_where_one_takes_no_connections(public: Site) -> None:
    class FirstIsDown(Reroute):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            if request.url.host != PUBLIC:
                raise httpx.ConnectError("down")
            return await super().handle_async_request(request)

    transport = FirstIsDown(public, public)
    fetcher = site_fetcher(public, resolver=answers(["1.1.1.1", PUBLIC]), transport=transport)
    assert asyncio.run(fetcher.get(URL, "image")) == PICTURE


@pytest.mark.parametrize("name", [HOST, "other.example"])
def test_the_certificate_is_verified_for_the_name_and_not_for_the_address(
    name: str, tmp_path: Path
) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"]
    try:
        subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, timeout=60)
    except FileNotFoundError:
        pytest.skip("there is no openssl to make a certificate with")
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(certificate, key)
    client_side = ssl.create_default_context(cafile=str(certificate))

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await writer.drain()
        writer.close()

    async def get() -> bytes:
        async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=server_side) as server:
            port = server.sockets[0].getsockname()[1]

            class ToServer(httpx.AsyncHTTPTransport):
                async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
                    request.url = request.url.copy_with(host="127.0.0.1", port=port)
                    return await super().handle_async_request(request)

            transport = ToServer(verify=client_side, trust_env=False)
            fetcher = fetch.Fetcher([HOST], 100, answers([PUBLIC]), transport)
            return await fetcher.get(f"https://{HOST}/", "image")

    if name == HOST:
        assert asyncio.run(get()) == b"ok"
    else:
        with pytest.raises(ArtMancerError, match="certificate is not valid"):
            asyncio.run(get())


@pytest.mark.parametrize(
    "host", ["*", "*.example.com", "ftp://a.example", "a.example/path", "user@a.example", "a b", ""]
)
def test_a_wrong_entry_of_the_list_stops_the_start(host: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="expected a host name"):
        settings(tmp_path, fetch_hosts=[host])


def test_the_list_is_read_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARTMANCER_FETCH_HOSTS", "a.example, http://b.example:8080")
    hosts = settings(tmp_path).fetch_hosts
    assert hosts == ["a.example", "http://b.example:8080"]


@pytest.fixture(scope="module")
def served(
    public: Site, running_fake: FakeHost, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """A gateway for which HOST is the public site."""
    data = tmp_path_factory.mktemp("gateway")
    app = create_app(
        settings(data, comfyui_url=running_fake.url),
        build=lambda own: local_gateway(own, fetcher=site_fetcher(public)),
    )
    with Served(settings(data), app) as gateway:
        yield gateway.connected()


def image(path: str) -> dict[str, str]:
    return {"url": f"http://{HOST}/{path}"}


@pytest.mark.parametrize(
    ("route", "body", "result"),
    [
        (
            "/api/generate",
            {"input_image": image("coffee.png"), "mask_image": image("coffee_mask.png")},
            "image",
        ),
        ("/api/smart-mask", {"image": image("coffee.png")}, "mask_base64"),
        ("/api/image-utils/remove-background", {"image": image("coffee.png")}, "image"),
        (
            "/api/image-utils/extract-object",
            {"image": image("coffee.png"), "mask": image("coffee_mask.png")},
            "extracted_image",
        ),
    ],
)
def test_an_image_by_its_url_is_edited_like_its_base64(
    served: Served, route: str, body: dict[str, Any], result: str
) -> None:
    body = {"prompt": "remove", "seed": 7, **body} if route == "/api/generate" else body
    by_url = served.http.post(route, json=body)
    assert by_url.status_code == 200, by_url.text
    names = {"coffee.png": "coffee", "coffee_mask.png": "coffee_mask"}
    inline = {
        key: encoded(names[value["url"].rpartition("/")[2]]) if isinstance(value, dict) else value
        for key, value in body.items()
    }
    by_base64 = served.http.post(route, json=inline).json()
    assert by_url.json()[result] == by_base64[result]


def test_a_request_that_is_sent_again_fetches_nothing(served: Served, public: Site) -> None:
    body = removal(input_image=image("coffee.png"), seed=11)
    headers = {"Idempotency-Key": "fetched"}
    first = served.http.post("/api/generate", json=body, headers=headers).json()
    before = public.connections
    assert served.http.post("/api/generate", json=body, headers=headers).json() == first
    assert public.connections == before


def test_a_workflow_and_a_list_take_urls_too(served: Served) -> None:
    answer = served.http.post("/api/workflows/white-balance", json={"image": image("coffee.png")})
    assert decoded(answer.json()["outputs"]["image"]).size == (600, 400)
    body = removal(conditional_images=[image("coffee_mask.png")], mask_image=None)
    assert served.http.post("/api/generate", json=body).status_code == 200


@pytest.mark.parametrize(
    ("value", "expected", "field"),
    [
        (image("nothing.png"), (400, "invalid_image"), None),
        ({"url": "http://127.0.0.1/"}, (422, "invalid_request"), "input_image"),
        ({"url": 5}, (422, "invalid_request"), "input_image.url"),
        ({"link": "x"}, (422, "invalid_request"), "input_image.url"),
        (5, (422, "invalid_request"), "input_image"),
    ],
)
def test_a_refused_image_names_its_field(
    served: Served, value: Any, expected: tuple[int, str], field: str | None
) -> None:
    answer = served.http.post("/api/generate", json=removal(input_image=value))
    assert error(answer) == expected
    assert answer.json()["details"].get("field") == field


def test_without_listed_hosts_a_url_is_refused(quick: Served) -> None:
    answer = quick.http.post("/api/generate", json=removal(input_image=image("coffee.png")))
    assert error(answer) == (422, "invalid_request")
    assert "lists no hosts" in answer.json()["detail"]
