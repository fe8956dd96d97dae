"""Webhooks and uploads of a deployment on Modal."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from support.comfyui import free_port
from support.fake_modal import RUN_FAKE_COMFYUI, Board, FakeModal, NoFailures, StandIn, gateway_app
from support.gateway import Served, settings
from support.site import HOST, Site, site_fetcher

from artmancer.gateway import url_upload, webhooks
from artmancer.hosting import container
from artmancer.hosting.delivery import deliver
from artmancer.hosting.worker import Worker

SECRET = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
HOOK = f"http://{HOST}/hook"


@pytest.fixture
def site() -> Site:
    return Site()


@pytest.fixture(autouse=True)
def reachable(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let gateways take the site for HOST, and shorten all pauses."""
    monkeypatch.setattr(webhooks, "PAUSES", (0.02, 0.05))
    monkeypatch.setattr(url_upload, "_PAUSES", (0.0, 0.02))
    monkeypatch.setattr("artmancer.hosting.web.make_fetcher", lambda _: site_fetcher(site))


@pytest.fixture
def gateway(modal: FakeModal, tmp_path: Path) -> Iterator[Served]:
    """A container of the gateway."""
    with modal.gateway(tmp_path / "gateway", NoFailures(), webhook_secret=SECRET) as gateway:
        yield gateway


def delivery(modal: FakeModal, site: Site, folder: Path, job_id: str, call: str) -> Any:
    """Return the work of a call that sends a webhook."""
    own = settings(folder, webhook_secret=SECRET, public_url="https://edit.example")
    return deliver(job_id, call, modal.remote(NoFailures()), own, site_fetcher(site))


@pytest.mark.parametrize(
    ("prompt", "kind"), [("now", "job.done"), ("fail mask_empty", "job.failed")]
)
def test_the_end_of_a_job_is_posted_once_and_again_until_it_is_taken(
    modal: FakeModal, gateway: Served, site: Site, tmp_path: Path, prompt: str, kind: str
) -> None:
    site.statuses = [503, 500, 200]
    job_id = gateway.submit(prompt=prompt, webhook_url=HOOK)
    announced, call = modal.board.announced[-1]
    assert announced == job_id

    async def run_both() -> None:
        first = delivery(modal, site, tmp_path, job_id, call)
        lost = delivery(modal, site, tmp_path, job_id, "the call whose answer was lost")
        await asyncio.gather(first, lost)

    asyncio.run(run_both())
    assert len(site.received) == 3
    assert len({received.headers["webhook-id"] for received in site.received}) == 1
    body = json.loads(site.received[-1].body)
    assert (body["type"], body["data"]["task_id"]) == (kind, job_id)
    url = f"https://edit.example/api/generate/result/{job_id}" if kind == "job.done" else None
    assert body["data"]["result_url"] == url


def test_a_webhook_comes_although_its_container_stops(
    modal: FakeModal, gateway: Served, site: Site, tmp_path: Path
) -> None:
    site.statuses = [503]
    job_id = gateway.submit(webhook_url=HOOK)
    _, call = modal.board.announced[-1]

    async def stop_after_a_try() -> None:
        task = asyncio.create_task(delivery(modal, site, tmp_path, job_id, call))
        while not site.received:
            await asyncio.sleep(0.01)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    asyncio.run(stop_after_a_try())
    site.statuses = [200]
    # Modal runs the call again.
    asyncio.run(delivery(modal, site, tmp_path, job_id, call))
    assert json.loads(site.received[-1].body)["type"] == "job.done"


def test_a_cancelled_job_is_posted(
    modal: FakeModal, gateway: Served, site: Site, tmp_path: Path
) -> None:
    job_id = gateway.submit(prompt="hold", webhook_url=HOOK)
    _, call = modal.board.announced[-1]
    assert gateway.http.post(f"/api/generate/async/cancel/{job_id}").json()["success"]
    asyncio.run(delivery(modal, site, tmp_path, job_id, call))
    assert json.loads(site.received[-1].body)["type"] == "job.cancelled"


def test_the_deployed_function_sends_it(
    modal: FakeModal,
    gateway: Served,
    site: Site,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import modal_comfy

    monkeypatch.setattr(modal_comfy, "ModalRemote", lambda _: modal.remote(NoFailures()))
    monkeypatch.setattr(container, "DATA", tmp_path / "deliver")
    monkeypatch.setattr("artmancer.gateway.service.make_fetcher", lambda _: site_fetcher(site))
    monkeypatch.setenv("ARTMANCER_WEBHOOK_SECRET", SECRET)
    job_id = gateway.submit(webhook_url=HOOK)
    asyncio.run(modal_comfy.deliver.local(job_id))
    (received,) = site.received
    assert json.loads(received.body)["data"]["task_id"] == job_id


def test_a_job_without_a_webhook_announces_none(modal: FakeModal, gateway: Served) -> None:
    before = list(modal.board.announced)
    gateway.ended(gateway.submit())
    assert modal.board.announced == before


async def nothing() -> None:
    pass


@pytest.mark.parametrize("status", [200, 403])
def test_a_worker_sends_the_result_to_the_url_of_the_request(
    site: Site, tmp_path: Path, status: int
) -> None:
    site.statuses = [status]
    board = Board({"heavy": 600})
    remote = StandIn(board, tmp_path / "results")
    port, folder = free_port(), tmp_path / "worker"
    command = [part.format(port=port, folder=folder) for part in RUN_FAKE_COMFYUI]
    worker = Worker(
        *("heavy", remote, command, port, folder, tmp_path / "results"),
        fetcher=site_fetcher(site),
        sync=nothing,
        on_dead=nothing,
    )

    async def run_order(order: dict[str, Any], call: str) -> dict[str, Any]:
        await worker.start()
        try:
            return await worker.run(order, call)
        finally:
            await worker.stop()

    own = settings(tmp_path / "gateway")
    with Served(own, gateway_app(remote, own)) as served:
        job_id = served.submit(upload_url=f"http://{HOST}/bucket/result", output_format="webp")
        ((call_id, call),) = board.calls.items()
        board.take("heavy", "worker", 1)
        board.finish(call_id, "worker", asyncio.run(run_order(call.order, call_id)))
        assert served.ended(job_id)["status"] == "done"
        answer = served.http.get(f"/api/generate/result/{job_id}").json()
    assert answer["uploaded"] is (status == 200)
    assert (answer["image"] == "") is (status == 200)
    assert status == 200 or "status 403" in answer["upload_error"]
    put = site.received[-1]
    assert (put.method, put.headers["content-type"]) == ("PUT", "image/webp")
