"""Requests to Modal that fail, and gateways that stop, at each step of a job."""

import asyncio
import base64
import io
import os
import random
import time
import uuid
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
from modal.exception import ServiceError
from PIL import Image
from support.fake_modal import Board, FakeModal, NoFailures, RandomFailures, StandIn
from support.gateway import GRAPHS, removal, settings, until

from artmancer.errors import ArtMancerError
from artmancer.gateway.debug_sessions import DebugSessions
from artmancer.gateway.jobs import HEAVY, LIGHT, Job, JobRecord
from artmancer.gateway.runner import ComfyStatus
from artmancer.gateway.service import Gateway, Sender, make_fetcher
from artmancer.gateway.workflows import WorkflowFolder
from artmancer.hosting.modal_jobs import ModalJobs
from artmancer.hosting.remote import Unavailable
from artmancer.hosting.shared import SharedUploadStore

STEPS = ("the record is stored", "the call is spawned", "the call is stored")
"""Requests of a gateway that accepts a job, in order."""

MOMENTS = [(step, after) for step in range(len(STEPS)) for after in (False, True)]
"""Requests before or after which a gateway stops."""


class Killed(BaseException):
    """The process of the gateway ends here."""


class KilledAt:
    """Kills a gateway before or after a request."""

    def __init__(self, step: int, after: bool) -> None:
        self._step = step
        self._after = after
        self._requests = 0

    def before(self) -> None:
        if self._requests == self._step and not self._after:
            raise Killed
        self._requests += 1

    def after(self) -> None:
        if self._requests == self._step + 1 and self._after:
            raise Killed


class Outage:
    """Lets all requests fail from one on, which has its effect or not, until `over` is set."""

    def __init__(self, step: int = 0, after: bool = False) -> None:
        self.over = False
        self._step = step
        self._after = after
        self._requests = 0

    def before(self) -> None:
        if not self.over and self._requests >= self._step + self._after:
            raise ServiceError("Modal is down")
        self._requests += 1

    def after(self) -> None:
        if not self.over and self._requests > self._step:
            raise ServiceError("Modal is down")


def make_gateway(
    modal: FakeModal, folder: Path, failures: KilledAt | Outage | NoFailures
) -> Gateway:
    """Make a gateway without its HTTP server."""
    remote = StandIn(modal.board, modal.results, failures)
    folder.mkdir(parents=True)
    gateway_settings = settings(folder, workflows=GRAPHS)
    uploads = SharedUploadStore(folder / "pictures", remote)
    expected = {HEAVY: ComfyStatus(True), LIGHT: ComfyStatus(True)}
    jobs = ModalJobs(gateway_settings, uploads, remote, expected)
    sessions = DebugSessions(folder / "debug")
    workflows, fetcher = WorkflowFolder(GRAPHS), make_fetcher(gateway_settings)
    return Gateway(gateway_settings, workflows, uploads, sessions, jobs, fetcher)


def unique_image(number: int) -> bytes:
    """Return a PNG like no other number's."""
    buffer = io.BytesIO()
    Image.new("RGB", (48, 32), (number % 256, number // 256, 7)).save(buffer, "PNG")
    return buffer.getvalue()


async def ended(gateway: Gateway, job_id: str) -> Job:
    """Wait until a job has ended."""
    end = time.monotonic() + 300
    while not (job := await gateway.jobs.get(job_id)).ended:
        assert time.monotonic() < end, "the job does not end"
        await asyncio.sleep(0.1)
    return job


def events(modal: FakeModal, event: str) -> Counter[str]:
    """Count the events of each job in the workers' ComfyUIs: "began" or "completed"."""
    lines = [
        line.split()
        for log in modal.folder.glob("*/events.log")
        for line in log.open("r").readlines()
    ]
    return Counter(job_id for name, job_id in lines if name == event)


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the waits of the gateways in this process."""
    monkeypatch.setattr("artmancer.hosting.remote._TRIES", 2)
    monkeypatch.setattr("artmancer.hosting.calls.STORE_SECONDS", 1.0)
    monkeypatch.setattr("artmancer.hosting.modal_jobs._OBSERVE_SECONDS", 0.05)
    monkeypatch.setattr("artmancer.hosting.modal_jobs._SILENCE_SECONDS", 1.0)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_retries")
def test_a_gateway_that_is_killed_while_it_accepts_a_job_leaves_no_gpu_at_work(
    tmp_path: Path,
) -> None:
    async def act(modal: FakeModal) -> None:
        healthy = make_gateway(modal, tmp_path / "healthy", NoFailures())
        image = await healthy.uploads.keep(unique_image(0), "image")
        job_ids = {}
        for step, after in MOMENTS:
            job_id = job_ids[step, after] = str(uuid.uuid4())
            gateway = make_gateway(modal, tmp_path / job_id, KilledAt(step, after))
            with pytest.raises(Killed):
                await gateway.submit(
                    "generate", {"input_image": image}, sender=Sender("a"), job_id=job_id
                )
        with pytest.raises(ArtMancerError) as unknown:
            await healthy.jobs.get(job_ids.pop((0, False)))
        assert unknown.value.code == "not_found"
        ran = set()
        for moment, job_id in job_ids.items():
            job = await ended(healthy, job_id)
            # A call that was stored belongs to a job that others can ask for.
            stored = modal.board.shared[f"call:{job_id}"] in modal.board.calls
            assert not stored or moment == (2, True)
            assert job.state == ("done" if stored else "error"), moment
            if stored:
                ran.add(job_id)
            else:
                assert job.error and "Send it again" in job.error["detail"]
        calls = modal.board.calls.values()
        await asyncio.to_thread(until, lambda: all(call.ended.is_set() for call in calls))
        assert set(events(modal, "began")) == ran

    with FakeModal(tmp_path / "modal", store_seconds=1.0) as modal:
        asyncio.run(act(modal))


@pytest.mark.slow
@pytest.mark.usefixtures("quick_retries")
def test_a_job_that_was_refused_because_modal_does_not_answer_does_not_run_later(
    tmp_path: Path,
) -> None:
    async def act(modal: FakeModal) -> None:
        healthy = make_gateway(modal, tmp_path / "healthy", NoFailures())
        image = await healthy.uploads.keep(unique_image(0), "image")
        inputs = {"input_image": image, "prompt": "hold"}
        for step, after in MOMENTS:
            job_id = str(uuid.uuid4())
            outage = Outage(step, after)
            gateway = make_gateway(modal, tmp_path / job_id, outage)
            with pytest.raises(Unavailable):
                await gateway.submit("generate", inputs, sender=Sender("a"), job_id=job_id)
            outage.over = True
            working = asyncio.create_task(gateway.jobs.run())
            if (step, after) != (0, False):
                job = await ended(healthy, job_id)
                assert job.state in ("cancelled", "error"), (step, after)
            calls = modal.board.calls.values()
            await asyncio.to_thread(until, lambda calls=calls: all(c.ended.is_set() for c in calls))
            working.cancel()
            with suppress(asyncio.CancelledError):
                await working
            # Only where the call had been stored could a worker begin; then it was cancelled.
            assert (step, after) == (2, True) or not events(modal, "began")[job_id]
        assert not events(modal, "completed")

    with FakeModal(tmp_path / "modal", store_seconds=1.0) as modal:
        asyncio.run(act(modal))


@pytest.mark.slow
def test_a_call_whose_id_was_lost_does_not_run_its_job_a_second_time(tmp_path: Path) -> None:
    class LoseFirstSpawn(NoFailures):
        requests = 0

        def after(self) -> None:
            self.requests += 1
            if self.requests == 2:
                raise ServiceError("the answer was lost")

    async def act(modal: FakeModal) -> None:
        gateway = make_gateway(modal, tmp_path / "gateway", NoFailures())
        image = await gateway.uploads.keep(unique_image(0), "image")
        losing = make_gateway(modal, tmp_path / "losing", LoseFirstSpawn())
        job = await losing.submit("generate", {"input_image": image}, sender=Sender("a"))
        assert (await losing.finish(job)).state == "done"
        calls = list(modal.board.calls.values())
        assert len(calls) == 2
        await asyncio.to_thread(until, lambda: all(call.ended.is_set() for call in calls))
        assert events(modal, "began") == {job.id: 1}

    with FakeModal(tmp_path / "modal") as modal:
        asyncio.run(act(modal))


@pytest.mark.slow
@pytest.mark.usefixtures("quick_retries")
def test_a_gateway_outlives_an_outage_of_modal_and_says_so(tmp_path: Path) -> None:
    outage = Outage()
    outage.over = True
    with (
        FakeModal(tmp_path / "modal") as modal,
        modal.gateway(tmp_path / "gateway", outage) as gateway,
    ):

        def health() -> dict[str, str]:
            return dict(gateway.http.get("/api/health").json())

        until(lambda: health()["status"] == "healthy")
        job_id = gateway.submit(prompt="slow 0.5")
        with gateway.http.stream("GET", f"/api/generate/stream/{job_id}") as stream:
            lines = stream.iter_lines()
            next(lines)
            outage.over = False
            until(lambda: health()["status"] == "degraded")
            assert "Modal has not answered" in health()["reason"]
            assert gateway.http.get("/ping").status_code == 200
            answer = gateway.http.post("/api/generate/async", json=removal())
            assert (answer.status_code, answer.json()["error_type"]) == (503, "comfyui_unavailable")
            assert "Modal does not answer" in answer.json()["detail"]
            outage.over = True
            assert '"status":"done"' in [line for line in lines if line][-1]
        until(lambda: health()["status"] == "healthy")
        assert gateway.ended(job_id)["status"] == "done"
        assert gateway.ended(gateway.submit())["status"] == "done"


@pytest.mark.slow
@pytest.mark.parametrize("kills", [0, 3])
def test_every_job_has_one_end_and_its_own_result_while_requests_fail(
    tmp_path: Path, kills: int
) -> None:
    seed = int(os.environ.get("FAILURE_SEED", "0")) or random.randrange(10**6)
    chance = random.Random(seed)
    accepted: dict[str, str] = {}
    cancelled: set[str] = set()
    with (
        FakeModal(tmp_path / "modal", share=0.1, seed=seed) as modal,
        modal.gateway(tmp_path / "a") as first,
        modal.gateway(tmp_path / "b") as second,
    ):
        for number in range(60):
            image = base64.b64encode(unique_image(number)).decode()
            prompt = chance.choice(["now", "slow 0.1", "slow 0.2"])
            job_id = chance.choice([first, second]).submit(prompt=prompt, input_image=image)
            accepted[job_id] = image
            if chance.random() < 0.1:
                gateway = chance.choice([first, second])
                if gateway.http.post(f"/api/jobs/{job_id}/cancel").json()["success"]:
                    cancelled.add(job_id)
            if kills and number % 15 == 14 and number // 15 < kills:
                modal.kill("heavy")
        assert len(accepted) == 60
        for job_id, image in accepted.items():
            status = chance.choice([first, second]).ended(job_id)
            if job_id in cancelled:
                assert status["status"] == "cancelled", f"seed {seed}"
            elif kills and status["status"] == "error":
                assert "stopped 2 times" in status["error"], f"seed {seed}"
            else:
                assert status["status"] == "done", f"seed {seed}: {status}"
                for gateway in (first, second):
                    result = gateway.http.get(f"/api/generate/result/{job_id}").json()
                    assert result["image"] == image, f"seed {seed}"
        assert sum(failures.failed for failures in modal.failures) > 0
        completed = events(modal, "completed")
    if not kills:
        assert completed.keys() >= accepted.keys() - cancelled
        assert set(completed.values()) == {1}, f"seed {seed}"


def test_a_result_file_that_may_be_sent_is_not_written_again(tmp_path: Path) -> None:
    contents = [b"first", b"second"]
    is_sent = asyncio.Event()

    class TwoFetches(StandIn):
        async def fetch(self, name: str) -> bytes:
            content = contents.pop(0)
            if not contents:
                await is_sent.wait()
            return content

    async def act() -> None:
        remote = TwoFetches(Board({}), tmp_path)
        uploads = SharedUploadStore(tmp_path / "pictures", remote)
        status = {HEAVY: ComfyStatus(True), LIGHT: ComfyStatus(True)}
        jobs = ModalJobs(settings(tmp_path), uploads, remote, status)
        record = JobRecord("a", "tool", LIGHT, "client", {}, [], {}, {}, time.time())
        job = Job(record=record, outputs={"image": {"pictures": ["image-0.png"]}})
        first, second = (asyncio.create_task(jobs.result_paths(job, "image")) for _ in range(2))
        (path,) = await first
        is_sent.set()
        assert await second == [path] and path.read_bytes() == b"first"

    asyncio.run(act())


def test_failures_come_at_their_share_before_and_after_the_effect() -> None:
    failures = RandomFailures(0.1, 7)
    before = after = 0
    # The failures are of many classes, as Modal's are.
    for _ in range(10_000):
        try:
            failures.before()
        except Exception:  # noqa: BLE001
            before += 1
            continue
        try:
            failures.after()
        except Exception:  # noqa: BLE001
            after += 1
    assert 400 < before < 600 and 400 < after < 600
