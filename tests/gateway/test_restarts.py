"""Restarts and crashes of the gateway and of ComfyUI."""

from pathlib import Path

import pytest
from support.fake_comfyui import HELD_STEPS
from support.gateway import FakeHost, Served, settings, until

from artmancer.gateway.local_jobs import IN_FLIGHT


def test_a_restarted_gateway_knows_every_job(fake: FakeHost, tmp_path: Path) -> None:
    gateway_settings = settings(tmp_path, comfyui_url=fake.url)
    with Served(gateway_settings) as served:
        done = served.connected().submit(seed=1)
        served.ended(done)
        failed = served.submit(prompt="fail mask_empty")
        served.ended(failed)
        job_ids = [served.submit(prompt="hold", seed=seed) for seed in range(2, 7)]
        until(lambda: len(fake.fake.waiting) == IN_FLIGHT - 1)
    submitted = len(fake.fake.posted)
    with Served(gateway_settings) as served:
        served.connected()
        assert served.status(done)["status"] == "done"
        assert served.http.get(f"/api/generate/result/{done}").json()["success"]
        assert served.status(failed)["status"] == "error"
        fake.release()
        assert all(served.ended(job_id)["status"] == "done" for job_id in job_ids)
    assert len(fake.fake.posted) - submitted == len(job_ids) - IN_FLIGHT, (
        "jobs that ComfyUI has must not be submitted again"
    )


def test_a_job_runs_once_more_when_comfyui_dies(tmp_path: Path) -> None:
    host = FakeHost()
    with Served(settings(tmp_path, comfyui_url=host.url)) as served:
        served.connected()

        def restart_when_held(job_id: str) -> None:
            until(lambda: served.status(job_id)["current_step"] == HELD_STEPS)
            host.die()
            until(lambda: served.http.get("/api/health").json()["status"] == "degraded")
            assert served.status(job_id)["status"] == "queued"
            host.start()

        job_ids = [served.submit(prompt="hold", seed=seed) for seed in range(3)]
        restart_when_held(job_ids[0])
        host.release()
        assert [served.ended(job_id)["status"] for job_id in job_ids] == ["done"] * 3
        host.fake.released.clear()
        job_id = served.submit(prompt="hold", seed=9)
        for _ in range(2):
            restart_when_held(job_id)
        assert served.ended(job_id)["status"] == "error"
        assert "stopped 2 times" in served.status(job_id)["error"]
    host.die()


def test_a_job_whose_result_comfyui_lost_runs_once_more(fake: FakeHost, quick: Served) -> None:
    fake.fake.vanishing = 1
    assert quick.ended(quick.submit(seed=8))["status"] == "done"
    fake.fake.vanishing = 2
    assert quick.ended(quick.submit(seed=9))["status"] == "error"


def test_the_end_of_a_run_without_an_event_is_noticed(
    fake: FakeHost, quick: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("artmancer.gateway.comfy_runner._CHECK_SECONDS", 0.2)
    with Served(settings(quick.settings.data / "more", comfyui_url=fake.url)) as served:
        job_id = served.connected().submit(prompt="hold")
        until(lambda: served.status(job_id)["status"] == "processing")
        # ComfyUI sends no events if a client's old connection closes after its new one has opened.
        fake.fake.sockets.clear()
        fake.release()
        assert served.ended(job_id)["status"] == "done"


def test_a_job_that_a_user_removed_from_comfyuis_queue_is_submitted_again(
    fake: FakeHost, quick: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("artmancer.gateway.comfy_runner._CHECK_SECONDS", 0.2)
    with Served(settings(quick.settings.data / "more", comfyui_url=fake.url)) as served:
        served.connected()
        job_ids = [served.submit(prompt="hold", seed=seed) for seed in range(3)]
        until(lambda: len(fake.fake.waiting) == len(job_ids) - 1)
        fake.fake.waiting.clear()
        fake.release()
        for job_id in job_ids:
            assert served.ended(job_id)["status"] == "done"


def test_a_second_gateway_cannot_use_the_same_data_folder(fake: FakeHost, quick: Served) -> None:
    from artmancer.errors import ArtMancerError
    from artmancer.gateway.job_store import JobStore

    with pytest.raises(ArtMancerError, match="Stop the gateway that uses it"):
        JobStore(quick.settings.data)


@pytest.mark.slow
def test_old_results_and_images_are_removed(
    fake: FakeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("artmancer.gateway.local_jobs._TIDY_SECONDS", 0.1)
    monkeypatch.setattr("artmancer.gateway.upload_store._GRACE_SECONDS", 5)
    gateway_settings = settings(
        tmp_path, comfyui_url=fake.url, result_hours=1 / 3600, picture_gigabytes=0
    )
    with Served(gateway_settings) as served:
        job_id = served.connected().submit(prompt="now")
        until(lambda: served.http.get(f"/api/jobs/{job_id}").status_code == 404)
        assert job_id in fake.fake.history, "the job was removed before its end"
        until(lambda: not list((tmp_path / "pictures").iterdir()))
        until(lambda: not list((tmp_path / "results").iterdir()))
