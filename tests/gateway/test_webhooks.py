"""Webhooks: every end of a job reaches its receiver, however often that fails before."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from support.gateway import FakeHost, Served, error, removal, settings, until
from support.site import HOST, Received, Site, site_fetcher

from artmancer.gateway import webhooks
from artmancer.gateway.app import create_app
from artmancer.gateway.service import local_gateway

KEY = bytes(range(32))
SECRET = f"whsec_{base64.b64encode(KEY).decode()}"
URL = f"http://{HOST}/hook"


@pytest.fixture
def site() -> Site:
    return Site()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "PAUSES", (0.05, 0.1))


def gateway(data: Path, fake: FakeHost, site: Site, **more: Any) -> Served:
    """Return a gateway for which HOST is the site."""
    own = settings(data, comfyui_url=fake.url, webhook_secret=SECRET, **more)
    app = create_app(own, lambda own: local_gateway(own, fetcher=site_fetcher(site)))
    return Served(own, app).connected()


@pytest.fixture
def served(fake: FakeHost, site: Site, tmp_path: Path) -> Iterator[Served]:
    with gateway(tmp_path / "data", fake, site, public_url="https://edit.example/a/") as served:
        yield served


def event(received: Received) -> dict[str, Any]:
    return dict(json.loads(received.body))


def signed_well(received: Received) -> bool:
    """Check a signature as the specification says, without the library that made it."""
    headers = received.headers
    assert abs(time.time() - int(headers["webhook-timestamp"])) < 300
    text = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + received.body
    digest = hmac.new(KEY, text, hashlib.sha256).digest()
    return headers["webhook-signature"] == f"v1,{base64.b64encode(digest).decode()}"


def test_the_end_of_a_job_is_posted_and_signed(served: Served, site: Site) -> None:
    job_id = served.submit(webhook_url=URL)
    until(lambda: site.received)
    (received,) = site.received
    assert (received.method, received.path) == ("POST", "/hook")
    assert received.headers["content-type"] == "application/json"
    assert received.headers["host"] == HOST
    assert signed_well(received)
    body = event(received)
    assert body["type"] == "job.done" and body["timestamp"].endswith("+00:00")
    result = f"https://edit.example/a/api/generate/result/{job_id}"
    # A finished job's last step is not kept.
    steps = {name: body["data"].pop(name) for name in ("current_step", "total_steps")}
    expected = {**served.status(job_id), "result_url": result}
    assert {**body["data"], **steps}.keys() == expected.keys()
    assert body["data"] == {name: expected[name] for name in body["data"]}


def test_failed_and_cancelled_jobs_are_told_too(served: Served, site: Site) -> None:
    failed = served.submit(prompt="fail mask_empty", webhook_url=URL)
    until(lambda: len(site.received) == 1)
    held = served.submit(prompt="hold", webhook_url=URL)
    until(lambda: served.status(held)["status"] == "processing")
    served.http.post(f"/api/generate/async/cancel/{held}")
    until(lambda: len(site.received) == 2)
    first, second = map(event, site.received)
    assert (first["type"], first["data"]["task_id"]) == ("job.failed", failed)
    assert first["data"]["error"] and first["data"]["result_url"] is None
    assert (second["type"], second["data"]["task_id"]) == ("job.cancelled", held)


@pytest.mark.parametrize("statuses", [[500, 503, 302, 404, 204]])
def test_a_receiver_that_fails_gets_it_again_and_then_no_more(
    served: Served, site: Site, statuses: list[int]
) -> None:
    site.statuses = list(statuses)
    served.submit(webhook_url=URL)
    until(lambda: len(site.received) == len(statuses))
    second = served.submit(webhook_url=URL, seed=8)
    until(lambda: event(site.received[-1])["data"]["task_id"] == second)
    assert len(site.received) == len(statuses) + 1
    tries = site.received[:-1]
    assert len({request.headers["webhook-id"] for request in tries}) == 1
    assert len({request.body for request in tries}) == 1
    assert all(map(signed_well, tries)) and {request.path for request in tries} == {"/hook"}


def test_a_receiver_that_wants_no_more_gets_no_more(served: Served, site: Site) -> None:
    site.statuses = [410, 200]
    served.submit(webhook_url=URL)
    until(lambda: site.received)
    second = served.submit(webhook_url=URL, seed=8)
    until(lambda: event(site.received[-1])["data"]["task_id"] == second)
    assert len(site.received) == 2


def test_a_receiver_that_hangs_holds_up_neither_edits_nor_other_webhooks(
    served: Served, site: Site
) -> None:
    site.statuses = [0]
    job_ids = [served.submit(webhook_url=URL, seed=seed) for seed in range(6)]
    for job_id in job_ids:
        assert served.ended(job_id)["status"] == "done"
    assert served.http.post("/api/generate", json=removal(seed=9)).status_code == 200
    site.statuses = [200]
    until(lambda: {event(request)["data"]["task_id"] for request in site.received} == {*job_ids})


def test_a_webhook_outlives_restarts(fake: FakeHost, site: Site, tmp_path: Path) -> None:
    site.statuses = [500]
    with gateway(tmp_path / "data", fake, site) as served:
        job_id = served.submit(webhook_url=URL)
        until(lambda: site.received)
    for statuses in ([0], [200]):
        site.statuses = statuses
        before = len(site.received)
        with gateway(tmp_path / "data", fake, site):
            until(lambda: len(site.received) > before)  # noqa: B023  # it is called in this turn
    assert {event(request)["data"]["task_id"] for request in site.received} == {job_id}
    assert all(map(signed_well, site.received))
    path = f"/api/generate/result/{job_id}"
    assert event(site.received[0])["data"]["result_url"] == path
    count = len(site.received)
    with gateway(tmp_path / "data", fake, site) as served:
        second = served.submit(webhook_url=URL, seed=8)
        until(lambda: event(site.received[-1])["data"]["task_id"] == second)
    assert len(site.received) == count + 1


def test_a_webhook_that_nobody_takes_is_given_up(
    served: Served, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert webhooks.GIVE_UP_SECONDS == 24 * 3600
    monkeypatch.setattr(webhooks, "GIVE_UP_SECONDS", -1.0)
    site.statuses = [500, 200]
    served.submit(webhook_url=URL)
    until(lambda: site.received)
    second = served.submit(webhook_url=URL, seed=8)
    until(lambda: event(site.received[-1])["data"]["task_id"] == second)
    assert len(site.received) == 2


@pytest.mark.parametrize("url", ["http://127.0.0.1/hook", "https://other.example/", "x", ""])
def test_a_url_of_another_host_is_refused(served: Served, url: str) -> None:
    answer = served.http.post("/api/generate/async", json=removal(webhook_url=url))
    assert error(answer) == (422, "invalid_request")
    assert answer.json()["details"]["field"] == "webhook_url"


def test_without_a_secret_a_webhook_is_refused(fake: FakeHost, site: Site, tmp_path: Path) -> None:
    own = settings(tmp_path / "data", comfyui_url=fake.url)
    app = create_app(own, lambda own: local_gateway(own, fetcher=site_fetcher(site)))
    with Served(own, app) as served:
        answer = served.http.post("/api/generate/async", json=removal(webhook_url=URL))
    assert error(answer) == (422, "invalid_request")
    assert "ARTMANCER_WEBHOOK_SECRET" in answer.json()["detail"]


@pytest.mark.parametrize("secret", ["secret", "whsec_", "whsec_c2hvcnQ=", "whsec_?", f"x{SECRET}"])
def test_a_wrong_secret_stops_the_start(secret: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="24 to 64 bytes"):
        settings(tmp_path, webhook_secret=secret)
