"""A job on its way from a gateway to a worker and back, also when one of them dies."""

import base64
import io
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from PIL import Image
from support import tiny_lama
from support.comfyui import CUSTOM_NODES
from support.fake_modal import FakeModal
from support.gateway import Served, encoded, error, removal, settings, until
from support.paths import EXAMPLES, ROOT

from artmancer.folders import comfyui_folder
from artmancer.gateway import comfy_process
from artmancer.hosting import container, model_volume


@pytest.mark.slow
def test_every_container_of_the_gateway_knows_every_job(modal: FakeModal, tmp_path: Path) -> None:
    with modal.gateway(tmp_path / "a") as first, modal.gateway(tmp_path / "b") as second:
        job_id = first.submit(prompt="slow 0.5")
        with second.http.stream("GET", f"/api/generate/stream/{job_id}") as stream:
            events = [json.loads(line[6:]) for line in stream.iter_lines() if line]
        assert events[-1]["status"] == "done" and events[-1]["result"]
        result = first.http.get(f"/api/generate/result/{job_id}").json()
        assert result["image"] == events[-1]["result"]
        held_job = second.submit(prompt="hold")
        until(lambda: second.status(held_job)["status"] == "processing")
        assert first.http.post(f"/api/generate/async/cancel/{held_job}").json()["success"]
        assert second.status(held_job)["status"] == "cancelled"
        assert second.http.get(f"/api/generate/result/{held_job}").status_code == 409


@pytest.mark.slow
def test_a_job_outlives_the_container_that_accepted_it(modal: FakeModal, tmp_path: Path) -> None:
    with modal.gateway(tmp_path / "a") as first:
        job_id = first.submit(prompt="slow 1")
    with modal.gateway(tmp_path / "b") as second:
        assert second.ended(job_id)["status"] == "done"


@pytest.mark.slow
def test_a_key_gets_one_job_from_all_containers(modal: FakeModal, tmp_path: Path) -> None:
    with modal.gateway(tmp_path / "a") as first, modal.gateway(tmp_path / "b") as second:

        def send(index: int) -> str:
            served = (first, second)[index % 2]
            headers = {"Idempotency-Key": "all containers"}
            answer = served.http.post("/api/generate/async", json=removal(), headers=headers)
            return str(answer.json()["task_id"])

        with ThreadPoolExecutor(6) as pool:
            (job_id,) = set(pool.map(send, range(6)))
        assert second.ended(job_id)["status"] == "done"
        headers = {"Idempotency-Key": "all containers"}
        other = second.http.post("/api/generate/async", json=removal(seed=8), headers=headers)
        assert error(other) == (409, "idempotency_conflict")


def test_an_upload_is_known_in_every_container(modal: FakeModal, tmp_path: Path) -> None:
    with modal.gateway(tmp_path / "a") as first, modal.gateway(tmp_path / "b") as second:
        click = {"image": encoded("coffee"), "points": [[300, 200]]}
        answer = first.http.post("/api/smart-mask", json=click).json()
        body = {"image_id": answer["image_id"], "points": [[310, 210]]}
        assert second.http.post("/api/smart-mask", json=body).json()["success"]


@pytest.mark.slow
def test_a_large_result_goes_to_the_volume(modal: FakeModal, tmp_path: Path) -> None:
    noise = Image.effect_noise((2200, 2200), 100).convert("RGB")
    saved = io.BytesIO()
    noise.save(saved, "PNG")
    assert len(saved.getvalue()) > 4 * 2**20
    with modal.gateway(tmp_path) as gateway:
        job_id = gateway.submit(input_image=base64.b64encode(saved.getvalue()).decode())
        assert gateway.ended(job_id)["status"] == "done"
        assert gateway.http.get(f"/api/generate/result-image/{job_id}").content == saved.getvalue()
        assert (modal.results / job_id / "image-0.png").is_file()
    shutil.rmtree(modal.results / job_id)
    with modal.gateway(tmp_path / "other") as other:
        status = other.status(job_id)
        assert status["status"] == "error" and "not kept any more" in status["error"]
        (line,) = other.http.get(f"/api/jobs/{job_id}/stream").text.strip().splitlines()
        assert json.loads(line.removeprefix("data: ")) == status


@pytest.mark.slow
def test_a_job_whose_worker_dies_runs_again(tmp_path: Path) -> None:
    with (
        FakeModal(tmp_path / "modal") as modal,
        modal.gateway(tmp_path / "gateway") as gateway,
    ):
        for _ in range(4):
            job_ids = [gateway.submit(prompt="slow 0.6", seed=seed) for seed in range(2)]
            until(lambda job_ids=job_ids: gateway.status(job_ids[0])["status"] == "processing")
            modal.kill("heavy")
            for job_id in job_ids:
                assert gateway.ended(job_id)["status"] == "done"


@pytest.mark.slow
def test_a_job_that_kills_two_workers_fails_with_the_reason(tmp_path: Path) -> None:
    with (
        FakeModal(tmp_path / "modal") as modal,
        modal.gateway(tmp_path / "gateway") as gateway,
    ):
        job_id = gateway.submit(prompt="hold")
        for attempt in (1, 2):
            until(lambda attempt=attempt: modal.board.get(f"attempts:{job_id}") == attempt)
            modal.kill("heavy")
        status = gateway.ended(job_id)
        assert status["status"] == "error" and "stopped 2 times" in status["error"]


@pytest.mark.slow
def test_a_worker_whose_comfyui_dies_is_replaced(tmp_path: Path) -> None:
    with (
        FakeModal(tmp_path / "modal") as modal,
        modal.gateway(tmp_path / "gateway") as gateway,
    ):
        job_id = gateway.submit(prompt="slow 1")
        until(lambda: gateway.status(job_id)["status"] == "processing")
        worker = modal.workers["heavy"]
        (comfyui,) = psutil.Process(worker.pid).children()
        comfyui.kill()
        assert gateway.ended(job_id)["status"] == "done"
        until(lambda: modal.workers["heavy"].pid != worker.pid)


@pytest.mark.slow
def test_a_job_ends_at_its_timeout(tmp_path: Path) -> None:
    with (
        FakeModal(tmp_path / "modal", timeouts={"heavy": 1, "light": 300}) as modal,
        modal.gateway(tmp_path / "gateway", heavy_timeout=1) as gateway,
    ):
        answer = gateway.http.post("/api/generate", json=removal(prompt="hold"))
        assert (answer.status_code, answer.json()["error_type"]) == (504, "timeout")


def test_an_answer_before_modals_limit_names_the_job_of_the_result(
    modal: FakeModal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("artmancer.hosting.modal_jobs.WAIT_SECONDS", 0.5)
    with modal.gateway(tmp_path) as gateway:
        answer = gateway.http.post("/api/generate", json=removal(prompt="slow 1.5"))
        body = answer.json()
        assert (answer.status_code, body["error_type"]) == (504, "timeout")
        assert gateway.ended(body["details"]["task_id"])["status"] == "done"


def test_the_limit_of_jobs_per_client_holds(modal: FakeModal, tmp_path: Path) -> None:
    with modal.gateway(tmp_path, max_per_client=2) as gateway:
        job_ids = [gateway.submit(prompt="hold", seed=seed) for seed in range(2)]
        answer = gateway.http.post("/api/generate/async", json=removal())
        assert (answer.status_code, answer.json()["error_type"]) == (429, "queue_full")
        for job_id in job_ids:
            gateway.http.post(f"/api/generate/async/cancel/{job_id}")
        gateway.ended(gateway.submit())


def test_each_web_function_serves_the_gateway_of_its_role(
    modal: FakeModal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import modal_comfy

    monkeypatch.setattr(modal_comfy, "ModalRemote", lambda *_: modal.remote())
    monkeypatch.setattr(modal_comfy, "CHECKPOINTS", str(tmp_path))
    monkeypatch.setenv("ARTMANCER_API_TOKEN", "s3cret")
    for role, function in (
        ("heavy", modal_comfy.fastapi_app_heavy),
        ("light", modal_comfy.fastapi_app_light),
    ):
        monkeypatch.setenv("ARTMANCER_ROLE", role)
        with Served(settings(tmp_path / role), function.local()) as gateway:
            assert gateway.http.get("/ping").json() == {"status": "healthy"}
            assert gateway.http.get("/api/health").status_code == 401
            gateway.http.headers["authorization"] = "Bearer s3cret"
            assert gateway.http.get("/api/health").json()["device_info"]["missing"]
            edit = gateway.http.post("/api/generate", json=removal())
            click = gateway.http.post(
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
    (base / "custom_nodes" / "small_lama.py").symlink_to(CUSTOM_NODES / "small_lama.py")
    checkpoints = tmp_path / "gateway" / "checkpoints"
    (checkpoints / model_volume.LAMA).mkdir(parents=True)
    files = {"unet": "edit.safetensors", "clip": "qwen.safetensors", "vae": "vae.safetensors"}
    (checkpoints / "home.json").write_text(json.dumps(files))
    for folder, kind in (("diffusion_models", "unet"), ("text_encoders", "clip")):
        (checkpoints / folder).mkdir()
        (checkpoints / folder / files[kind]).touch()
    tiny_lama.save(checkpoints / model_volume.LAMA / "big-lama.pt")
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
        modal.gateway(tmp_path / "gateway") as gateway,
    ):
        listed = gateway.http.get("/api/health").json()["device_info"]
        assert "home" in listed["editors"]
        edit = gateway.http.post("/api/generate", json=removal()).json()
        assert edit["model_used"] == "draft/removal"
        image = Image.open(io.BytesIO(base64.b64decode(edit["image"])))
        assert image.size == Image.open(EXAMPLES / "coffee.png").size
        body = removal(editor="lama", recipe="background_mask_fill", frame="crop", context=2)
        edit = gateway.http.post("/api/generate", json=body).json()
        used = edit["parameters_used"]
        assert edit["model_used"] == "lama/removal"
        assert (used["recipe"], used["frame"], used["context"]) == (
            "background_mask_fill",
            "crop",
            2,
        )
        assert used["recipe_settings"]["frame"] == "photo"
        click = {"image": encoded("coffee"), "points": [[300, 200]], "model_type": "draft"}
        assert gateway.http.post("/api/smart-mask", json=click).json()["success"]
        until(lambda: gateway.http.get("/api/health").json()["device_info"].get("comfyui_version"))
        remote = modal.remote()
        pack = remote.board.get("status:light")["info"]["pack"]
        answer = gateway.http.post("/api/generate", json=removal(editor="home"))
        assert error(answer) == (503, "checkpoint_missing")
        assert "The model set 'home' needs 'vae.safetensors' in models/vae" in answer.text
        answer = gateway.http.post("/api/generate", json=removal(editor="another"))
        assert error(answer) == (422, "invalid_request")
        # The worker's ComfyUI finds the same set, and lacks the same file.
        (entry,) = remote.board.get("status:heavy")["info"]["pack"]["model_sets"]
        assert listed["model_sets"] == [entry] and not entry["complete"]
        # ComfyUI finds this file through extra_model_paths.
        assert pack["segmenters"] == ["FastSAM-s.pt"]
        assert pack["lama"] is True
