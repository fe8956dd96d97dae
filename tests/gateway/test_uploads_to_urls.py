"""Results that are sent to the URL of their request."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.gateway import FakeHost, Served, error, removal, settings, until
from support.site import HOST, Site, site_fetcher

from artmancer.gateway import url_upload
from artmancer.gateway.app import create_app
from artmancer.gateway.service import local_gateway

URL = f"http://{HOST}/bucket/result?X-Amz-Signature=abc%2Fdef&X-Amz-Expires=900"


@pytest.fixture
def site() -> Site:
    return Site()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(url_upload, "_PAUSES", (0.0, 0.05, 0.1))


def gateway(data: Path, fake: FakeHost, site: Site) -> Served:
    own = settings(data, comfyui_url=fake.url)
    app = create_app(own, lambda own: local_gateway(own, fetcher=site_fetcher(site)))
    return Served(own, app).connected()


@pytest.fixture
def served(fake: FakeHost, site: Site, tmp_path: Path) -> Iterator[Served]:
    with gateway(tmp_path / "data", fake, site) as served:
        yield served


@pytest.mark.parametrize("output_format", [None, "webp"])
def test_the_result_is_put_to_the_url(
    served: Served, site: Site, output_format: str | None
) -> None:
    body = removal(upload_url=URL, output_format=output_format)
    answer = served.http.post("/api/generate", json=body).json()
    assert (answer["uploaded"], answer["upload_error"], answer["image"]) == (True, None, "")
    (put,) = site.received
    assert (put.method, put.path) == ("PUT", URL.removeprefix(f"http://{HOST}"))
    assert put.headers["content-type"] == f"image/{output_format or 'png'}"
    plain = removal(output_format=output_format)
    expected = served.http.post("/api/generate", json=plain).json()
    assert put.body == base64.b64decode(expected["image"])
    assert expected["uploaded"] is None
    job_id = answer["request_id"]
    assert served.http.get(f"/api/generate/result/{job_id}").json()["image"] == ""
    assert served.http.get(f"/api/generate/result-image/{job_id}").content == put.body
    last = served.http.get(f"/api/generate/stream/{job_id}").text.rpartition("data: ")[2]
    assert (json.loads(last)["uploaded"], json.loads(last)["result"]) == (True, "")


def test_a_put_that_fails_is_sent_again(served: Served, site: Site) -> None:
    site.statuses = [503, 403, 200]
    answer = served.http.post("/api/generate", json=removal(upload_url=URL)).json()
    assert answer["uploaded"] and len(site.received) == 3
    assert len({put.body for put in site.received}) == 1


@pytest.mark.parametrize("status", [403, 302])
def test_an_edit_that_nobody_takes_is_in_the_answer(
    served: Served, site: Site, status: int
) -> None:
    site.statuses = [status]
    answer = served.http.post("/api/generate", json=removal(upload_url=URL)).json()
    assert answer["uploaded"] is False and str(status) in answer["upload_error"]
    assert base64.b64decode(answer["image"]) == site.received[0].body
    assert {put.path for put in site.received} == {URL.removeprefix(f"http://{HOST}")}


@pytest.mark.slow
def test_a_host_that_hangs_holds_up_no_other_edit(served: Served, site: Site) -> None:
    site.statuses = [0]
    hanging = [served.submit(upload_url=URL, seed=seed) for seed in range(5)]
    assert served.http.post("/api/generate", json=removal(seed=9)).status_code == 200
    for job_id in hanging:
        assert served.ended(job_id)["status"] == "done"


def test_an_upload_is_made_after_a_restart(fake: FakeHost, site: Site, tmp_path: Path) -> None:
    site.statuses = [0]
    with gateway(tmp_path / "data", fake, site) as served:
        job_id = served.submit(upload_url=URL)
        until(lambda: site.received)
    site.statuses = [200]
    with gateway(tmp_path / "data", fake, site) as served:
        assert served.ended(job_id)["status"] == "done"
        assert served.http.get(f"/api/generate/result/{job_id}").json()["uploaded"] is True


def test_a_url_of_another_host_is_refused(served: Served) -> None:
    body = removal(upload_url="http://169.254.169.254/latest")
    answer = served.http.post("/api/generate", json=body)
    assert error(answer) == (422, "invalid_request")
    assert answer.json()["details"]["field"] == "upload_url"
