"""What `modal deploy modal_comfy.py` sets up, and the pinned packages of the image."""

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.modal_server import ModalServer
from support.paths import ROOT

from artmancer.hosting import container


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


def test_the_workers_are_what_was_asked_for(deployed: Deployed) -> None:
    for name, gpu, timeout, at_once in (
        ("Heavy", "A100-80GB", 600, 3),
        ("Light", "T4", 300, 20),
    ):
        worker = deployed.functions[name]
        assert (
            worker.resources.gpu_config.gpu_type == gpu and worker.resources.gpu_config.count == 1
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


def test_the_gateways_are_cheap_and_public(deployed: Deployed) -> None:
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


def test_settings_of_the_environment_count() -> None:
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


def test_the_image_is_pinned_and_what_changes_least_comes_first(deployed: Deployed) -> None:
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


def test_it_is_built_the_same_twice(deployed: Deployed) -> None:
    assert Deployed().commands() == deployed.commands()


def test_the_pack_travels_without_weights_tests_or_secrets(deployed: Deployed) -> None:
    files = deployed.files()
    pack = {name for name in files if name.startswith(f"{container.PACK}/")}
    assert {f"{container.PACK}/__init__.py", f"{container.PACK}/nodes/__init__.py"} <= pack
    assert {"/root/modal_comfy.py", "/root/artmancer/gateway/page/index.html"} <= files
    assert "/root/workflows/api/generate.json" in files
    for name in files:
        relative = name.removeprefix(f"{container.PACK}/")
        assert not relative.startswith(("tests/", "build/", ".git/", ".venv/", "benchmarks/")), name
        assert not name.endswith((".safetensors", ".pt", ".onnx", ".env")), name


def test_reading_the_file_costs_nothing_and_needs_no_token() -> None:
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


def test_the_dockerfile_has_the_same_steps() -> None:
    text = (ROOT / "Dockerfile").read_text().replace("\\\n    ", "")
    assert f"FROM python:{container.PYTHON}-slim" in text
    assert f"pip install --no-cache-dir uv=={container.UV} " in text
    assert f"RUN {container.INSTALL}\n" in text
    assert "--no-deps --requirements /tmp/requirements.txt" in text
    for name, value in container.ENVIRONMENT.items():
        assert f"ENV {name}={value}\n" in text
    assert f"COPY . {container.PACK}\n" in text


def test_a_status_is_told_without_a_deployment() -> None:
    said = ModalServer().modal("run", "modal_comfy.py::status")
    assert said.returncode == 0
    assert "wb_cp.safetensors: modal run modal_comfy.py::upload" in said.stdout


def pins() -> list[str]:
    return container.REQUIREMENTS.read_text().split("\n")[:-1]


def test_they_agree_with_those_of_development() -> None:
    ours = dict(line.split("==") for line in pins())
    developed: dict[str, set[str]] = {}
    for line in (ROOT / "requirements-dev.txt").read_text().splitlines():
        name, _, version = line.partition(";")[0].strip().partition("==")
        developed.setdefault(name, set()).add(version)
    both = ours.keys() & developed.keys()
    assert {"torch", "diffusers", "fastapi", "aiohttp", "rembg", "ultralytics"} <= both
    assert {name for name in both if ours[name] not in developed[name]} == set()


def test_they_are_on_the_index(tmp_path: Path) -> None:
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


def test_everything_the_pack_asks_for_is_among_them() -> None:
    ours = {line.split("==")[0] for line in pins()}
    for requirement in importlib.metadata.requires("artmancer") or []:
        name = re.match(r"[A-Za-z0-9._-]+", requirement)
        assert name
        extra = re.search(r"extra == ['\"](\w+)", requirement)
        if "win32'" in requirement and "sys_platform == " in requirement:
            continue
        if not extra or extra[1] in ("gateway", "fastsam", "rembg"):
            assert name[0].lower().replace("_", "-") in ours, requirement
