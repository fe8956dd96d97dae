"""The path of a job from a gateway to a worker and back, and what happens when one of them dies."""

import base64
import io
import json
import shutil
from pathlib import Path

import psutil
import pytest
from PIL import Image
from support.fake_modal import FakeModal
from support.gateway import Served, encoded, removal, settings, until
from support.paths import EXAMPLES, ROOT

from artmancer.folders import comfyui_folder
from artmancer.gateway import comfy_process
from artmancer.hosting import container, model_volume


def test_whichever_container_is_asked_answers(modal: FakeModal, tmp_path: Path) -> None:
    with modal.gateway(tmp_path / "a") as one, modal.gateway(tmp_path / "b") as other:
        task = one.submit(prompt="slow 0.5")
        assert other.status(task)["status"] in ("queued", "processing")
        with other.http.stream("GET", f"/api/generate/stream/{task}") as stream:
            events = [json.loads(line[6:]) for line in stream.iter_lines() if line]
        assert events[-1]["status"] == "done" and events[-1]["result"]
        assert one.http.get(f"/api/generate/result/{task}").json()["image"] == events[-1]["result"]
        last = other.submit(prompt="hold")
        until(lambda: other.status(last)["status"] == "processing")
        assert one.http.post(f"/api/generate/async/cancel/{last}").json()["success"]
        assert other.status(last)["status"] == "cancelled"
        assert other.http.get(f"/api/generate/result/{last}").status_code == 409


def test_a_container_that_goes_takes_no_job_along(modal: FakeModal, tmp_path: Path) -> None:
    with modal.gateway(tmp_path / "a") as one:
        task = one.submit(prompt="slow 1")
    with modal.gateway(tmp_path / "b") as other:
        assert other.ended(task)["status"] == "done"


def test_a_picture_is_known_everywhere(modal: FakeModal, tmp_path: Path) -> None:
    with modal.gateway(tmp_path / "a") as one, modal.gateway(tmp_path / "b") as other:
        first = one.http.post(
            "/api/smart-mask", json={"image": encoded("coffee"), "points": [[300, 200]]}
        ).json()
        body = {"image_id": first["image_id"], "points": [[310, 210]]}
        assert other.http.post("/api/smart-mask", json=body).json()["success"]


def test_a_large_result_goes_by_the_volume(modal: FakeModal, tmp_path: Path) -> None:
    noise = Image.effect_noise((2200, 2200), 100).convert("RGB")
    saved = io.BytesIO()
    noise.save(saved, "PNG")
    assert len(saved.getvalue()) > 4 * 2**20
    with modal.gateway(tmp_path) as one:
        task = one.submit(input_image=base64.b64encode(saved.getvalue()).decode())
        assert one.ended(task)["status"] == "done"
        assert one.http.get(f"/api/generate/result-image/{task}").content == saved.getvalue()
        assert (modal.results / task / "image-0.png").is_file()


def test_a_worker_that_dies_in_mid_job_costs_nothing_but_time(tmp_path: Path) -> None:
    with (
        FakeModal(tmp_path / "modal") as modal,
        modal.gateway(tmp_path / "gateway") as one,
    ):
        for _ in range(4):
            tasks = [one.submit(prompt="slow 0.6", seed=seed) for seed in range(2)]
            until(lambda tasks=tasks: one.status(tasks[0])["status"] == "processing")
            modal.kill("heavy")
            for task in tasks:
                assert one.ended(task)["status"] == "done"


def test_a_job_that_kills_its_workers_fails_with_the_reason(tmp_path: Path) -> None:
    with (
        FakeModal(tmp_path / "modal") as modal,
        modal.gateway(tmp_path / "gateway") as one,
    ):
        task = one.submit(prompt="hold")
        for attempt in (1, 2):
            until(lambda attempt=attempt: modal.board.get(f"attempts:{task}") == attempt)
            modal.kill("heavy")
        said = one.ended(task)
        assert said["status"] == "error" and "stopped twice" in said["error"]


def test_a_comfyui_that_dies_takes_its_worker_out(tmp_path: Path) -> None:
    with (
        FakeModal(tmp_path / "modal") as modal,
        modal.gateway(tmp_path / "gateway") as one,
    ):
        task = one.submit(prompt="slow 1")
        until(lambda: one.status(task)["status"] == "processing")
        first = modal.workers["heavy"]
        (comfyui,) = psutil.Process(first.pid).children()
        comfyui.kill()
        assert one.ended(task)["status"] == "done"
        until(lambda: modal.workers["heavy"].pid != first.pid)


def test_what_takes_too_long_is_ended(tmp_path: Path) -> None:
    with (
        FakeModal(tmp_path / "modal", timeouts={"heavy": 1, "light": 300}) as modal,
        modal.gateway(tmp_path / "gateway", heavy_timeout=1) as one,
    ):
        answer = one.http.post("/api/generate", json=removal(prompt="hold"))
        assert (answer.status_code, answer.json()["error_type"]) == (504, "timeout")


def test_an_answer_that_modal_would_cut_off_says_where_the_result_will_be(
    modal: FakeModal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("artmancer.hosting.modal_jobs.WAIT_SECONDS", 0.5)
    with modal.gateway(tmp_path) as one:
        answer = one.http.post("/api/generate", json=removal(prompt="slow 1.5"))
        said = answer.json()
        assert (answer.status_code, said["error_type"]) == (504, "timeout")
        assert one.ended(said["details"]["task_id"])["status"] == "done"


def test_the_limits_hold(modal: FakeModal, tmp_path: Path) -> None:
    with modal.gateway(tmp_path, max_per_client=2) as one:
        tasks = [one.submit(prompt="hold", seed=seed) for seed in range(2)]
        answer = one.http.post("/api/generate/async", json=removal())
        assert (answer.status_code, answer.json()["error_type"]) == (429, "queue_full")
        for task in tasks:
            one.http.post(f"/api/generate/async/cancel/{task}")
        one.ended(one.submit())


def test_the_apps_of_the_file_are_the_gateway_of_their_role(
    modal: FakeModal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import modal_comfy

    monkeypatch.setattr(modal_comfy, "ModalRemote", modal.remote)
    monkeypatch.setattr(modal_comfy, "CHECKPOINTS", str(tmp_path))
    monkeypatch.setenv("ARTMANCER_API_TOKEN", "s3cret")
    for role, function in (
        ("heavy", modal_comfy.fastapi_app_heavy),
        ("light", modal_comfy.fastapi_app_light),
    ):
        monkeypatch.setenv("ARTMANCER_ROLE", role)
        with Served(settings(tmp_path / role), function.local()) as one:
            assert one.http.get("/ping").json() == {"status": "healthy"}
            assert one.http.get("/api/health").status_code == 401
            one.http.headers["authorization"] = "Bearer s3cret"
            assert one.http.get("/api/health").json()["device_info"]["missing"]
            edit = one.http.post("/api/generate", json=removal())
            click = one.http.post(
                "/api/smart-mask", json={"image": encoded("coffee"), "points": [[300, 200]]}
            )
            statuses = (edit.status_code, click.status_code)
            assert statuses == ((200, 404) if role == "heavy" else (404, 200))


@pytest.mark.comfyui
def test_an_edit_and_a_click_go_through_real_workers(tmp_path: Path) -> None:
    if not (comfyui_folder() / "main.py").is_file():
        pytest.skip(
            f"no ComfyUI in {comfyui_folder()}, and none could be installed (set COMFYUI_PATH)"
        )
    base = tmp_path / "base"
    (base / "custom_nodes").mkdir(parents=True)
    (base / "custom_nodes" / "artmancer").symlink_to(ROOT)
    checkpoints = tmp_path / "checkpoints"
    (checkpoints / "fastsam").mkdir(parents=True)
    shutil.copy(
        ROOT / "tests" / "assets" / "tiny_fastsam.pt", checkpoints / "fastsam" / "FastSAM-s.pt"
    )
    paths = tmp_path / "extra_model_paths.yaml"
    paths.write_text(model_volume.PATHS.format(root=checkpoints))
    start = comfy_process.command(1, tmp_path / "comfyui", base=base, cpu=True)
    start[start.index("1")] = "{port}"
    start[start.index(str(tmp_path / "comfyui"))] = "{folder}/comfyui"
    command = [*start, "--extra-model-paths-config", str(paths), *container.COMFYUI_ARGUMENTS]
    with (
        FakeModal(tmp_path / "modal", command, prepare=True) as modal,
        modal.gateway(tmp_path / "gateway") as one,
    ):
        edited = one.http.post("/api/generate", json=removal()).json()
        assert edited["model_used"] == "draft/removal"
        picture = Image.open(io.BytesIO(base64.b64decode(edited["image"])))
        assert picture.size == Image.open(EXAMPLES / "coffee.png").size
        click = {"image": encoded("coffee"), "points": [[300, 200]], "model_type": "draft"}
        assert one.http.post("/api/smart-mask", json=click).json()["success"]
        about = until(
            lambda: one.http.get("/api/health").json()["device_info"].get("comfyui_version")
        )
        assert about
        remote = modal.remote()
        pack = remote.board.get("status:light")["info"]["pack"]
        assert pack["segmenters"] == ["FastSAM-s.pt"]  # found by way of extra_model_paths
