"""Hosting on Modal: what `modal deploy` would set up, and the path from a request
to a worker and back.
"""

import base64
import importlib.metadata
import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from support.fake_modal import FakeModal
from support.gateway import Served, encoded, removal, settings, until
from support.modal_server import ModalServer
from support.paths import EXAMPLES, FAKE_COMFYUI, ROOT

from artmancer.folders import comfyui_folder
from artmancer.gateway import comfy_process
from artmancer.hosting import container, model_volume, preload, smoke
from artmancer.hosting.web import web_app

FAKE = [
    sys.executable,
    str(FAKE_COMFYUI),
    "{port}",
    "{folder}/told.log",
]


async def nothing() -> None:
    pass


class Deployed:
    """What one `modal deploy` sent."""

    def __init__(self, **environment: str) -> None:
        self.server = ModalServer()
        self.said = self.server.modal("deploy", "modal_comfy.py", **environment)
        assert self.said.returncode == 0, self.said.stdout + self.said.stderr
        self.functions = {
            asked.function.function_name.removesuffix(".*"): asked.function
            for asked in self.server.asked["FunctionCreate"]
        }

    def commands(self) -> list[str]:
        """The image's steps, without Modal's own base."""
        layers = [
            asked.image.dockerfile_commands for asked in self.server.asked["ImageGetOrCreate"]
        ]
        return [line for layer in layers if layer[0] == "FROM base" for line in layer[1:]]

    def files(self) -> set[str]:
        asked = self.server.asked["MountBatchedCheckExistence"]
        mounts = self.server.asked["MountGetOrCreate"]
        assert asked
        return {file.filename for mount in mounts for file in mount.files}


@pytest.fixture(scope="module")
def deployed() -> Deployed:
    return Deployed()


class TestDeployment:
    def test_the_workers_are_what_was_asked_for(self, deployed: Deployed) -> None:
        for name, gpu, timeout, at_once in (
            ("Heavy", "A100-80GB", 600, 3),
            ("Light", "T4", 300, 20),
        ):
            worker = deployed.functions[name]
            assert (
                worker.resources.gpu_config.gpu_type == gpu
                and worker.resources.gpu_config.count == 1
            )
            assert (worker.timeout_secs, worker.max_concurrent_inputs) == (timeout, at_once)
            assert worker.checkpointing_enabled and worker.retry_policy.retries == 3
            assert {mount.mount_path for mount in worker.volume_mounts} == {
                "/checkpoints",
                "/results",
            }
            assert set(worker.method_definitions) == {"run", "free"}
            assert not worker.webhook_config.type and not worker.secret_ids[1:]
            assert (
                worker.autoscaler_settings.min_containers == 0
                and worker.autoscaler_settings.max_containers == 4
            )

    def test_the_gateways_are_cheap_and_public(self, deployed: Deployed) -> None:
        for name in ("fastapi_app_heavy", "fastapi_app_light"):
            gateway = deployed.functions[name]
            assert gateway.webhook_config.type and not gateway.webhook_config.requires_proxy_auth
            assert not gateway.resources.gpu_config.gpu_type and gateway.resources.milli_cpu == 500
            assert gateway.max_concurrent_inputs == 100 and not gateway.checkpointing_enabled
        named = [asked.deployment_name for asked in deployed.server.asked["SecretGetOrCreate"]]
        assert "artmancer" in named
        roles = [
            dict(asked.env_dict).get("ARTMANCER_ROLE")
            for asked in deployed.server.asked["SecretGetOrCreate"]
        ]
        assert {"heavy", "light"} <= set(roles)
        volumes = {asked.deployment_name for asked in deployed.server.asked["VolumeGetOrCreate"]}
        assert volumes == {"artmancer-checkpoints", "artmancer-results"}

    def test_settings_of_the_environment_count(self) -> None:
        changed = Deployed(
            ARTMANCER_HEAVY_MIN="1",
            ARTMANCER_HEAVY_MAX="9",
            ARTMANCER_LIGHT_WINDOW="600",
            ARTMANCER_PROXY_AUTH="1",
            ARTMANCER_GPU_SNAPSHOT="1",
            ALLOWED_ORIGINS="https://a.example",
        )
        heavy, light = changed.functions["Heavy"], changed.functions["Light"]
        assert (
            heavy.autoscaler_settings.min_containers,
            heavy.autoscaler_settings.max_containers,
        ) == (1, 9)
        assert light.autoscaler_settings.scaledown_window == 600
        assert heavy.experimental_options["enable_gpu_snapshot"] == "True"
        assert changed.functions["fastapi_app_light"].webhook_config.requires_proxy_auth
        sent = [dict(asked.env_dict) for asked in changed.server.asked["SecretGetOrCreate"]]
        assert {"ARTMANCER_ROLE": "light", "ALLOWED_ORIGINS": "https://a.example"} in sent

    def test_the_image_is_pinned_and_what_changes_least_comes_first(
        self, deployed: Deployed
    ) -> None:
        commands = "\n".join(deployed.commands())
        steps = [
            "apt-get install -y git",
            "requirements.txt",
            container.INSTALL,
            f"ENV COMFYUI_PATH={container.FOLDER}",
        ]
        places = [commands.index(step) for step in steps]
        assert places == sorted(places)
        assert f"uv:{container.UV}" in commands and "--no-deps" in commands
        assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[^ ;]+", line) for line in pins())

    def test_it_is_built_the_same_twice(self, deployed: Deployed) -> None:
        assert Deployed().commands() == deployed.commands()

    def test_the_pack_travels_without_weights_tests_or_secrets(self, deployed: Deployed) -> None:
        files = deployed.files()
        pack = {name for name in files if name.startswith(f"{container.PACK}/")}
        assert {f"{container.PACK}/__init__.py", f"{container.PACK}/nodes/__init__.py"} <= pack
        assert {"/root/modal_comfy.py", "/root/artmancer/gateway/page/index.html"} <= files
        assert "/root/workflows/api/generate.json" in files
        for name in files:
            relative = name.removeprefix(f"{container.PACK}/")
            assert not relative.startswith(
                ("tests/", "build/", ".git/", ".venv/", "benchmarks/")
            ), name
            assert not name.endswith((".safetensors", ".pt", ".onnx", ".env")), name

    def test_reading_the_file_costs_nothing_and_needs_no_token(self) -> None:
        probe = (
            "import sys, modal_comfy; sys.exit(bool({'torch', 'fastapi', 'pydantic', "
            "'aiohttp.web', 'numpy'} & set(sys.modules)))"
        )
        env = {
            **os.environ,
            "MODAL_CONFIG_PATH": os.devnull,
            "MODAL_SERVER_URL": "http://127.0.0.1:1",
        }
        assert (
            subprocess.run([sys.executable, "-c", probe], cwd=ROOT, env=env, check=False).returncode
            == 0
        )

    def test_the_dockerfile_has_the_same_steps(self) -> None:
        text = (ROOT / "Dockerfile").read_text().replace("\\\n    ", "")
        assert f"FROM python:{container.PYTHON}-slim" in text
        assert f"pip install --no-cache-dir uv=={container.UV} " in text
        assert f"RUN {container.INSTALL}\n" in text
        assert "--no-deps --requirements /tmp/requirements.txt" in text
        for name, value in container.ENVIRONMENT.items():
            assert f"ENV {name}={value}\n" in text
        assert f"COPY . {container.PACK}\n" in text

    def test_a_status_is_told_without_a_deployment(self) -> None:
        said = ModalServer().modal("run", "modal_comfy.py::status")
        assert said.returncode == 0
        assert "wb_cp.safetensors: modal run modal_comfy.py::upload" in said.stdout


def pins() -> list[str]:
    return container.REQUIREMENTS.read_text().split("\n")[:-1]


class TestPins:
    def test_they_agree_with_those_of_development(self) -> None:
        ours = dict(line.split("==") for line in pins())
        developed: dict[str, set[str]] = {}
        for line in (ROOT / "requirements-dev.txt").read_text().splitlines():
            name, _, version = line.partition(";")[0].strip().partition("==")
            developed.setdefault(name, set()).add(version)
        both = ours.keys() & developed.keys()
        assert {"torch", "diffusers", "fastapi", "aiohttp", "rembg", "ultralytics"} <= both
        assert {name for name in both if ours[name] not in developed[name]} == set()

    def test_they_are_on_the_index(self, tmp_path: Path) -> None:
        uv = Path(sys.executable).parent / "uv"
        command = [
            uv,
            "pip",
            "install",
            "--dry-run",
            "--no-deps",
            "--requirements",
            container.REQUIREMENTS,
        ]
        target = [
            "--python-version",
            "3.12",
            "--python-platform",
            "x86_64-unknown-linux-gnu",
            "--target",
            tmp_path,
        ]
        said = subprocess.run([*command, *target], capture_output=True, text=True, check=False)
        if "error sending request" in said.stderr or "dns error" in said.stderr:
            pytest.skip("no package index answers")
        assert said.returncode == 0, said.stderr

    def test_everything_the_pack_asks_for_is_among_them(self) -> None:
        ours = {line.split("==")[0] for line in pins()}
        for requirement in importlib.metadata.requires("artmancer") or []:
            name = re.match(r"[A-Za-z0-9._-]+", requirement)
            assert name
            extra = re.search(r"extra == ['\"](\w+)", requirement)
            if "win32'" in requirement and "sys_platform == " in requirement:
                continue
            if not extra or extra[1] in ("gateway", "fastsam", "rembg"):
                assert name[0].lower().replace("_", "-") in ours, requirement


@pytest.fixture(scope="module")
def modal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeModal]:
    with FakeModal(tmp_path_factory.mktemp("modal"), FAKE) as made:
        yield made


def served(modal: FakeModal, folder: Path, **more: Any) -> Served:
    """A container of the gateway's."""
    made = settings(folder, **more)
    return Served(
        made, web_app(modal.remote(), folder / "checkpoints", modal.results, nothing, nothing, made)
    )


class TestContainers:
    def test_whichever_container_is_asked_answers(self, modal: FakeModal, tmp_path: Path) -> None:
        with served(modal, tmp_path / "a") as one, served(modal, tmp_path / "b") as other:
            task = one.submit(prompt="slow 0.5")
            assert other.status(task)["status"] in ("queued", "processing")
            with other.http.stream("GET", f"/api/generate/stream/{task}") as stream:
                events = [json.loads(line[6:]) for line in stream.iter_lines() if line]
            assert events[-1]["status"] == "done" and events[-1]["result"]
            assert (
                one.http.get(f"/api/generate/result/{task}").json()["image"] == events[-1]["result"]
            )
            last = other.submit(prompt="slow 20")
            until(lambda: other.status(last)["status"] == "processing")
            assert one.http.post(f"/api/generate/async/cancel/{last}").json()["success"]
            assert other.status(last)["status"] == "cancelled"
            assert other.http.get(f"/api/generate/result/{last}").status_code == 409

    def test_a_container_that_goes_takes_no_job_along(
        self, modal: FakeModal, tmp_path: Path
    ) -> None:
        with served(modal, tmp_path / "a") as one:
            task = one.submit(prompt="slow 1")
        with served(modal, tmp_path / "b") as other:
            assert other.ended(task)["status"] == "done"

    def test_a_picture_is_known_everywhere(self, modal: FakeModal, tmp_path: Path) -> None:
        with served(modal, tmp_path / "a") as one, served(modal, tmp_path / "b") as other:
            first = one.http.post(
                "/api/smart-mask", json={"image": encoded("coffee"), "points": [[300, 200]]}
            ).json()
            body = {"image_id": first["image_id"], "points": [[310, 210]]}
            assert other.http.post("/api/smart-mask", json=body).json()["success"]

    def test_a_large_result_goes_by_the_volume(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        noise = Image.effect_noise((2200, 2200), 100).convert("RGB")
        saved = io.BytesIO()
        noise.save(saved, "PNG")
        assert len(saved.getvalue()) > 4 * 2**20
        with (
            FakeModal(tmp_path / "modal", FAKE) as large,
            served(large, tmp_path / "gateway") as one,
        ):
            task = one.submit(input_image=base64.b64encode(saved.getvalue()).decode())
            assert one.ended(task)["status"] == "done"
            assert one.http.get(f"/api/generate/result-image/{task}").content == saved.getvalue()
            assert (large.results / task / "image-0.png").is_file()

    def test_a_worker_that_dies_in_mid_job_costs_nothing_but_time(self, tmp_path: Path) -> None:
        with (
            FakeModal(tmp_path / "modal", FAKE) as modal,
            served(modal, tmp_path / "gateway") as one,
        ):
            for _ in range(4):
                tasks = [one.submit(prompt="slow 0.6", seed=seed) for seed in range(2)]
                until(lambda tasks=tasks: one.status(tasks[0])["status"] == "processing", 30)
                modal.kill("heavy")
                for task in tasks:
                    assert one.ended(task, 60)["status"] == "done"

    def test_a_job_that_kills_its_workers_fails_with_the_reason(self, tmp_path: Path) -> None:
        with (
            FakeModal(tmp_path / "modal", FAKE) as modal,
            served(modal, tmp_path / "gateway") as one,
        ):
            task = one.submit(prompt="slow 30")
            for _ in range(2):
                until(lambda: modal.board.load("heavy")[1], 30)
                until(lambda: one.status(task)["status"] == "processing", 30)
                time.sleep(0.5)
                modal.kill("heavy")
                until(lambda: modal.board.load("heavy")[0] or modal.board.load("heavy")[1] == 0, 30)
            said = one.ended(task, 60)
            assert said["status"] == "error" and "stopped twice" in said["error"]

    def test_a_comfyui_that_dies_takes_its_worker_out(self, tmp_path: Path) -> None:
        with (
            FakeModal(tmp_path / "modal", FAKE) as modal,
            served(modal, tmp_path / "gateway") as one,
        ):
            task = one.submit(prompt="slow 1")
            until(lambda: one.status(task)["status"] == "processing", 30)
            first = modal.workers["heavy"]
            comfyui = subprocess.run(
                ["pgrep", "-P", str(first.pid)], capture_output=True, text=True, check=True
            ).stdout
            os.kill(int(comfyui.split()[0]), 9)
            assert one.ended(task, 60)["status"] == "done"
            assert first.wait(20) == 0 and modal.workers["heavy"].pid != first.pid

    def test_what_takes_too_long_is_ended(self, tmp_path: Path) -> None:
        with (
            FakeModal(tmp_path / "modal", FAKE, {"heavy": 1, "light": 300}) as modal,
            served(modal, tmp_path / "gateway", heavy_timeout=1) as one,
        ):
            answer = one.http.post("/api/generate", json=removal(prompt="slow 20"))
            assert (answer.status_code, answer.json()["error_type"]) == (504, "timeout")

    def test_an_answer_that_modal_would_cut_off_says_where_the_result_will_be(
        self, modal: FakeModal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("artmancer.hosting.modal_jobs.WAIT_SECONDS", 0.5)
        with served(modal, tmp_path) as one:
            answer = one.http.post("/api/generate", json=removal(prompt="slow 1.5"))
            said = answer.json()
            assert (answer.status_code, said["error_type"]) == (504, "timeout")
            assert one.ended(said["details"]["task_id"])["status"] == "done"

    def test_the_limits_hold(self, modal: FakeModal, tmp_path: Path) -> None:
        with served(modal, tmp_path, max_per_client=2) as one:
            tasks = [one.submit(prompt="slow 3", seed=seed) for seed in range(2)]
            answer = one.http.post("/api/generate/async", json=removal())
            assert (answer.status_code, answer.json()["error_type"]) == (429, "queue_full")
            for task in tasks:
                one.http.post(f"/api/generate/async/cancel/{task}")
            one.ended(one.submit())

    def test_the_apps_of_the_file_are_the_gateway_of_their_role(
        self, modal: FakeModal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    made = settings(tmp_path / "gateway")
    with FakeModal(tmp_path / "modal", command, prepare=True) as modal:
        app = web_app(modal.remote(), checkpoints, modal.results, nothing, nothing, made)
        with Served(made, app) as one:
            one.http.timeout = httpx.Timeout(240)
            edited = one.http.post("/api/generate", json=removal()).json()
            assert edited["model_used"] == "draft/removal"
            picture = Image.open(io.BytesIO(base64.b64decode(edited["image"])))
            assert picture.size == Image.open(EXAMPLES / "coffee.png").size
            click = {"image": encoded("coffee"), "points": [[300, 200]], "model_type": "draft"}
            assert one.http.post("/api/smart-mask", json=click).json()["success"]
            about = until(
                lambda: one.http.get("/api/health").json()["device_info"].get("comfyui_version"), 30
            )
            assert about
            remote = modal.remote()
            pack = remote.board.get("status:light")["info"]["pack"]
            assert pack["segmenters"] == ["FastSAM-s.pt"]  # found by way of extra_model_paths


def test_what_is_imported_ahead_asks_for_no_gpu() -> None:
    pytest.importorskip("diffusers", reason="diffusers 0.42 needs Python 3.11")
    probe = """
import torch
from artmancer.hosting.preload import import_ahead
asked = []
for name in ("_cuda_getDeviceCount", "_cuda_init"):
    setattr(torch._C, name, lambda *_, name=name: asked.append(name) or 0)
torch.cuda._nvml_based_avail = lambda: asked.append("nvml")
import_ahead()
assert not asked, asked
torch.accelerator.is_available = lambda: True
torch.accelerator.current_accelerator = lambda: torch.device("cuda")
from diffusers.utils.torch_utils import get_device
assert get_device() == "cuda", "a GPU that came later is seen"
"""
    said = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert said.returncode == 0, said.stderr[-800:]
    assert "torch" in preload.IMPORTS


def lora(
    path: Path, name: str = "transformer_blocks.0.attn.to_q.lora_A.weight", cut: int = 0
) -> Path:
    """A safetensors file with one tensor, and so many bytes too few."""
    header = json.dumps({name: {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    data = struct.pack("<Q", len(header)) + header + bytes(16)
    path.write_bytes(data[: len(data) - cut])
    return path


class TestVolume:
    def test_checkpoints_are_sent_and_checked(self, tmp_path: Path) -> None:
        local, remote = tmp_path / "checkpoints", tmp_path / "volume"
        local.mkdir()
        remote.mkdir()
        lora(local / "insertion_cp.safetensors")
        lora(local / "another.safetensors")
        lora(local / "removal_cp.safetensors", cut=3)
        lora(local / "wb_cp.safetensors", name="lora_unet_down_blocks_0.lora_down.weight")
        (local / "page.safetensors").write_text("<html>Not found</html>")
        sent: dict[str, Path] = {}

        def put(files: Any) -> None:
            sent.update(files)
            for name, path in files.items():
                shutil.copy(path, remote / name)

        lines, well = model_volume.upload(local, model_volume.LocalVolume(remote), put)
        told = "\n".join(lines)
        assert set(sent) == {"insertion_cp.safetensors", "another.safetensors"} and not well
        assert "not uploaded: removal_cp.safetensors has" in told and "Copy it again" in told
        assert "not uploaded: wb_cp.safetensors is not a LoRA for Qwen-Image-Edit" in told
        assert "not uploaded: page.safetensors is not a safetensors file" in told
        assert (
            "insertion      insertion_cp.safetensors" in told and "removal        missing" in told
        )

    def test_what_did_not_arrive_whole_is_told(self, tmp_path: Path) -> None:
        local, remote = tmp_path / "checkpoints", tmp_path / "volume"
        local.mkdir()
        remote.mkdir()
        lora(local / "insertion_cp.safetensors")
        lines, well = model_volume.upload(
            local,
            model_volume.LocalVolume(remote),
            lambda files: (remote / "insertion_cp.safetensors").touch() or None,
        )
        assert "incomplete on the volume: insertion_cp.safetensors. Upload it again" in lines
        assert not well

    def test_an_empty_folder_is_told(self, tmp_path: Path) -> None:
        lines, well = model_volume.upload(
            tmp_path, model_volume.LocalVolume(tmp_path), lambda files: None
        )
        assert not well and "There is no .safetensors file" in lines[0]

    def test_older_uploads_are_found(self, tmp_path: Path) -> None:
        (tmp_path / "checkpoints").mkdir()
        lora(tmp_path / "checkpoints" / "removal_cp.safetensors")
        inventory = model_volume.take_inventory(model_volume.LocalVolume(tmp_path))
        assert inventory.checkpoints["removal"] == "checkpoints/removal_cp.safetensors"

    def test_a_base_without_one_of_its_shards_is_missing(self, tmp_path: Path) -> None:
        base = tmp_path / model_volume.BASE
        (base / "transformer").mkdir(parents=True)
        (base / "model_index.json").write_text("{}")
        index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
        (base / "transformer" / "model.safetensors.index.json").write_text(json.dumps(index))
        (base / "transformer" / "model-1.safetensors").touch()
        inventory = model_volume.take_inventory(model_volume.LocalVolume(tmp_path))
        assert (
            not inventory.base
            and "base_model/transformer/model-2.safetensors" in inventory.missing[0]
        )
        (base / "transformer" / "model-2.safetensors").touch()
        assert model_volume.take_inventory(model_volume.LocalVolume(tmp_path)).base

    def test_setup_fetches_what_is_not_there(self, tmp_path: Path) -> None:
        fetched: list[str] = []

        def fetch(folder: Path) -> None:
            fetched.append(folder.name)
            folder.mkdir(parents=True, exist_ok=True)
            (
                folder / ("model_index.json" if folder.name == model_volume.BASE else "model.onnx")
            ).write_text("{}")

        ways = dict.fromkeys((model_volume.BASE, model_volume.FASTSAM, model_volume.REMBG), fetch)
        model_volume.setup(tmp_path, False, ways)
        assert fetched == [model_volume.BASE, model_volume.FASTSAM, model_volume.REMBG]
        assert "kept: fastsam" in model_volume.setup(tmp_path, False, ways) and len(fetched) == 3
        model_volume.setup(tmp_path, True, ways)
        assert len(fetched) == 6

    def test_comfyui_reads_the_paths(self, tmp_path: Path) -> None:
        import yaml

        read = yaml.safe_load(model_volume.PATHS.format(root=tmp_path))["artmancer"]
        assert read["artmancer"].split() == [".", "checkpoints"] and read["base_path"] == str(
            tmp_path
        )


class TestSmoke:
    def test_a_deployment_that_works(self, modal: FakeModal, tmp_path: Path) -> None:
        with served(modal, tmp_path) as one:
            lines, well = smoke.smoke(one.url, None)
        assert well and "edit: done by draft/" in lines[-1]

    def test_one_that_asks_for_a_token_and_one_that_is_not_there(
        self, modal: FakeModal, tmp_path: Path
    ) -> None:
        with served(modal, tmp_path, api_token="s3cret") as one:
            lines, well = smoke.smoke(one.url, "wrong")
        assert not well and "401" in lines[-1]
        lines, well = smoke.smoke("http://127.0.0.1:1", None)
        assert not well and "does not answer" in lines[-1]
