"""Faults of the machine under a gateway: its disk, its clock, lost files, a ComfyUI that hangs."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.fake_comfyui import HELD_STEPS
from support.gateway import GRAPHS, FakeHost, Served, encoded, error, removal, settings, until
from support.small_disk import Filler, remount, small_disk

from artmancer.gateway import comfy_runner, local_jobs, upload_store


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a small disk of its own."""
    with small_disk(tmp_path / "disk") as folder:
        yield folder


def health(served: Served) -> dict[str, Any]:
    """Return the gateway's health."""
    return dict(served.http.get("/api/health").json())


def test_a_full_disk_is_named_and_no_job_stays_without_an_end(
    fake: FakeHost, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_jobs, "_WRITE_RETRY_SECONDS", 0)
    filler = Filler(disk)
    gateway_settings = settings(disk / "data", comfyui_url=fake.url)
    with Served(gateway_settings) as served:
        job_id = served.connected().submit(prompt="hold")
        until(lambda: served.status(job_id)["current_step"] == HELD_STEPS)
        filler.fill()
        answer = served.http.post(
            "/api/generate/async", json=removal(input_image=encoded("chelsea"))
        )
        assert error(answer) == (507, "storage_full")
        assert str(disk) in answer.json()["detail"]
        assert health(served)["status"] == "degraded" and "full" in health(served)["reason"]
        assert served.http.get("/api/system/health").json()["status"] == "degraded"
        fake.release()
        ended = served.ended(job_id)
        assert ended["status"] == "error" and "is full" in ended["error"]
        filler.free()
        assert served.ended(served.submit(seed=2))["status"] == "done"
        assert health(served)["status"] == "healthy"
    with Served(gateway_settings) as served:
        assert served.status(job_id)["status"] == "error", "its end was stored when there was room"


def test_a_gateway_starts_on_a_full_disk_and_serves_what_it_has(fake: FakeHost, disk: Path) -> None:
    gateway_settings = settings(disk / "data", comfyui_url=fake.url)
    with Served(gateway_settings) as served:
        job_id = served.connected().submit()
        assert served.ended(job_id)["status"] == "done"
    Filler(disk).fill()
    with Served(gateway_settings) as served:
        assert served.http.get(f"/api/generate/result/{job_id}").status_code == 200
        assert health(served)["status"] == "degraded" and "full" in health(served)["reason"]


@pytest.mark.slow
def test_an_edit_is_kept_while_the_disk_is_full_for_a_moment(fake: FakeHost, disk: Path) -> None:
    filler = Filler(disk)
    with Served(settings(disk / "data", comfyui_url=fake.url)) as served:
        job_id = served.connected().submit(prompt="hold")
        until(lambda: served.status(job_id)["current_step"] == HELD_STEPS)
        filler.fill()
        fake.release()
        until(lambda: not fake.fake.running)
        time.sleep(1.5)
        assert served.status(job_id)["status"] == "processing"
        filler.free()
        assert served.ended(job_id)["status"] == "done"
        assert served.http.get(f"/api/generate/result-image/{job_id}").status_code == 200


@pytest.mark.slow
def test_a_full_disk_takes_no_time_from_the_job(
    fake: FakeHost, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filler = Filler(disk)
    with Served(settings(disk / "data", comfyui_url=fake.url, heavy_timeout=5)) as served:
        job_id = served.connected().submit(prompt="hold")
        until(lambda: served.status(job_id)["current_step"] == HELD_STEPS)
        filler.fill()
        fake.release()
        until(lambda: not fake.fake.running)
        time.sleep(6)
        filler.free()
        assert served.ended(job_id)["status"] == "done"


def test_a_data_folder_that_was_removed_is_named(fake: FakeHost, quick: Served) -> None:
    shutil.rmtree(quick.settings.data)
    assert health(quick)["status"] == "degraded"
    answer = quick.http.post("/api/generate/async", json=removal())
    assert error(answer) == (500, "generation_failed")
    assert str(quick.settings.data) in answer.json()["detail"]


def test_a_data_folder_that_was_made_anew_is_named_and_takes_no_job(
    fake: FakeHost, quick: Served
) -> None:
    """Expect that no job is accepted which a restart would lose."""
    shutil.rmtree(quick.settings.data)
    quick.settings.data.mkdir()
    for _ in range(2):  # The first request makes folders in it.
        assert health(quick)["status"] == "degraded"
        assert "Restart the gateway" in health(quick)["reason"]
        answer = quick.http.post("/api/generate/async", json=removal())
        assert error(answer) == (500, "generation_failed")
        assert "Restart the gateway" in answer.json()["detail"]


@pytest.mark.parametrize("replacement", ["a copy", "a link to itself"])
def test_a_job_database_that_was_replaced_is_named_and_takes_no_job(
    fake: FakeHost, quick: Served, replacement: str
) -> None:
    """Expect that no job is accepted which a restart would lose."""
    database = quick.settings.data / "jobs.sqlite"
    if replacement == "a copy":
        copy = shutil.copy(database, database.with_name("copy"))
        os.replace(copy, database)
    else:
        database.unlink()
        database.symlink_to(database)
    assert health(quick)["status"] == "degraded"
    answer = quick.http.post("/api/generate/async", json=removal())
    assert error(answer) == (500, "generation_failed")
    for sentence in (health(quick)["reason"], answer.json()["detail"]):
        assert str(database) in sentence and "Restart the gateway" in sentence


def test_a_folder_that_cannot_be_written_is_named(fake: FakeHost, quick: Served) -> None:
    pictures = quick.settings.data / "pictures"
    shutil.move(pictures, pictures.with_name("moved"))
    pictures.write_text("a file in the place of the folder")
    answer = quick.http.post("/api/generate/async", json=removal())
    assert error(answer) == (500, "generation_failed")
    assert str(pictures) in answer.json()["detail"]
    assert health(quick)["status"] == "degraded" and str(pictures) in health(quick)["reason"]
    pictures.unlink()
    shutil.move(pictures.with_name("moved"), pictures)
    assert quick.ended(quick.submit())["status"] == "done"
    assert health(quick)["status"] == "healthy"


@pytest.mark.slow
def test_starting_in_a_folder_that_cannot_be_written_ends_in_one_sentence(disk: Path) -> None:
    assert remount(disk, "ro")
    for folder in (disk, disk / "data", Path("/proc/artmancer/data")):
        started = subprocess.run(
            [sys.executable, "-m", "artmancer", "serve", "--port", "0"],
            env={**os.environ, "ARTMANCER_DATA": str(folder)},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert started.returncode
        assert str(folder) in started.stderr and "ARTMANCER_DATA" in started.stderr
        assert "Traceback" not in started.stderr


def test_result_files_that_are_gone_are_named(quick: Served) -> None:
    job_id = quick.submit()
    assert quick.ended(job_id)["status"] == "done"
    shutil.rmtree(quick.settings.data / "results" / job_id)
    for path in ("generate/result", "generate/result-image"):
        answer = quick.http.get(f"/api/{path}/{job_id}")
        assert error(answer) == (404, "not_found")
        assert "not kept any more" in answer.json()["detail"]
    assert error(quick.http.get(f"/api/jobs/{job_id}/result")) == (404, "not_found")
    for stream, status in (
        (f"generate/stream/{job_id}", f"generate/status/{job_id}"),
        (f"jobs/{job_id}/stream", f"jobs/{job_id}"),
    ):
        (line,) = quick.http.get(f"/api/{stream}").text.strip().splitlines()
        event = json.loads(line.removeprefix("data: "))
        assert event["status"] == "error" and "not kept any more" in event["error"]
        assert quick.http.get(f"/api/{status}").json() == event


def test_an_image_that_is_gone_is_not_called_an_image_id(fake: FakeHost, quick: Served) -> None:
    held = [quick.submit(prompt="hold", seed=seed) for seed in range(local_jobs.IN_FLIGHT)]
    until(lambda: len(fake.fake.waiting) == local_jobs.IN_FLIGHT - 1)
    waiting = quick.submit(seed=9)
    for file in (quick.settings.data / "pictures").iterdir():
        file.unlink()
    fake.release()
    assert all(quick.ended(job_id)["status"] == "done" for job_id in held)
    ended = quick.ended(waiting)
    assert ended["status"] == "error"
    assert "input_image" in ended["error"] and "image_id" not in ended["error"].lower()
    assert "Image ID" not in ended["error"]


class WallClock:
    """The wall clock of this process, which can be set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.offset = 0.0
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() + self.offset)


@pytest.fixture
def wall_clock(monkeypatch: pytest.MonkeyPatch) -> WallClock:
    return WallClock(monkeypatch)


@pytest.mark.parametrize("hours", [1, -48])
def test_a_clock_that_is_set_ends_no_job_and_spoils_no_duration(
    wall_clock: WallClock, fake: FakeHost, quick: Served, hours: float
) -> None:
    start = time.monotonic()
    job_ids = [quick.submit(prompt="hold", seed=seed) for seed in range(4)]
    until(lambda: quick.status(job_ids[0])["current_step"] == HELD_STEPS)
    wall_clock.offset = hours * 3600
    job_ids.append(quick.submit(seed=4))
    time.sleep(1.5)  # timeouts are looked for once a second
    assert [quick.status(job_id)["error"] for job_id in job_ids] == [None] * 5
    fake.release()
    assert [quick.ended(job_id)["status"] for job_id in job_ids] == ["done"] * 5
    for job_id in job_ids:
        answer = quick.http.get(f"/api/generate/result/{job_id}").json()
        assert 0 <= answer["generation_time"] <= time.monotonic() - start


@pytest.mark.parametrize("days", [-30, 30])
@pytest.mark.parametrize("restarted", [False, True])
def test_what_came_while_the_clock_was_wrong_is_kept(
    fake: FakeHost,
    tmp_path: Path,
    wall_clock: WallClock,
    monkeypatch: pytest.MonkeyPatch,
    days: float,
    restarted: bool,
) -> None:
    monkeypatch.setattr(local_jobs, "_TIDY_SECONDS", 0.1)
    monkeypatch.setattr(upload_store, "_GRACE_SECONDS", 0)
    gateway_settings = settings(tmp_path, comfyui_url=fake.url)
    wall_clock.offset = days * 86400
    with Served(gateway_settings) as served:
        job_id = served.connected().submit()
        assert served.ended(job_id)["status"] == "done"
        if not restarted:
            wall_clock.offset = 0
            time.sleep(0.5)
            check_kept(served, job_id)
    wall_clock.offset = 0
    with Served(gateway_settings) as served:
        time.sleep(0.5)
        check_kept(served, job_id)


def check_kept(served: Served, job_id: str) -> None:
    """Check that a job, its result and its images are there."""
    answer = served.http.get(f"/api/generate/result/{job_id}").json()
    assert 0 <= answer["generation_time"] < 60
    assert len(list((served.settings.data / "pictures").iterdir())) == 2


def test_what_is_too_old_is_removed(
    fake: FakeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_jobs, "_TIDY_SECONDS", 0.1)
    monkeypatch.setattr(upload_store, "_GRACE_SECONDS", 0)
    hours = 1 / 3600
    gateway_settings = settings(
        tmp_path, comfyui_url=fake.url, result_hours=hours, picture_hours=hours
    )
    with Served(gateway_settings) as served:
        job_id = served.connected().submit()
        until(lambda: served.http.get(f"/api/jobs/{job_id}").status_code == 404)
        until(lambda: not list((tmp_path / "pictures").iterdir()))
        assert not list((tmp_path / "results").iterdir())


@pytest.fixture
def hang(fake: FakeHost) -> Iterator[Callable[[], threading.Event]]:
    """Make the fake ComfyUI hang: its event loop waits until the returned event is set."""
    events = []

    def start() -> threading.Event:
        events.append(threading.Event())
        fake.loop.call_soon_threadsafe(events[-1].wait)
        return events[-1]

    yield start
    for event in events:
        event.set()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let gateways notice a ComfyUI that hangs in half a second instead of 9."""
    assert 2 * comfy_runner._CHECK_SECONDS < comfy_runner._SILENT_SECONDS < 10
    monkeypatch.setattr(comfy_runner, "_CHECK_SECONDS", 0.1)
    monkeypatch.setattr(comfy_runner, "_SILENT_SECONDS", 0.5)


@pytest.mark.usefixtures("impatient")
def test_a_comfyui_that_hangs_is_noticed_and_loses_no_job(
    fake: FakeHost, quick: Served, hang: Callable[[], threading.Event]
) -> None:
    job_id = quick.submit(prompt="hold")
    until(lambda: quick.status(job_id)["current_step"] == HELD_STEPS)
    posted = len(fake.fake.posted)
    wakes = hang()
    until(lambda: health(quick)["status"] == "degraded")
    assert "answered nothing" in health(quick)["reason"]
    answer = quick.http.post("/api/generate/async", json=removal())
    assert error(answer) == (503, "comfyui_unavailable")
    wakes.set()
    until(lambda: health(quick)["status"] == "healthy")
    fake.release()
    assert quick.ended(job_id)["status"] == "done"
    assert len(fake.fake.posted) == posted, "a ComfyUI that was only busy gets no job twice"


def test_a_graph_that_is_replaced_by_one_of_the_same_size_and_time_is_read(
    fake: FakeHost, tmp_path: Path
) -> None:
    folder = tmp_path / "graphs"
    folder.mkdir()
    file = folder / "tool.json"
    text = (GRAPHS / "white-balance.json").read_text()
    file.write_text(text)
    with Served(settings(tmp_path / "data", comfyui_url=fake.url, workflows=folder)) as served:
        assert served.connected().http.get("/api/workflows").json()["workflows"][0]["served"]
        times = file.stat()
        copy = tmp_path / "copy.json"
        copy.write_text(text.replace('"temperature"', '"temperaturE"', 1))
        os.utime(copy, ns=(times.st_atime_ns, times.st_mtime_ns))
        copy.replace(file)
        assert file.stat().st_size == times.st_size
        (workflow,) = served.http.get("/api/workflows").json()["workflows"]
        assert "temperaturE" in workflow["schema"]["properties"]


def test_health_says_that_the_graph_of_edits_is_gone(fake: FakeHost, tmp_path: Path) -> None:
    folder = tmp_path / "graphs"
    shutil.copytree(GRAPHS, folder)
    with Served(settings(tmp_path / "data", comfyui_url=fake.url, workflows=folder)) as served:
        assert health(served.connected())["status"] == "healthy"
        (folder / "generate.json").unlink()
        assert health(served)["status"] == "degraded" and "generate" in health(served)["reason"]
