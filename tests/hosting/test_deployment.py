"""The deployment that `modal deploy modal_comfy.py` sets up, and the packages of its image."""

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from modal_proto import api_pb2
from support.modal_server import ModalServer
from support.paths import ROOT

from artmancer.hosting import container


class Deployed:
    """The requests of one `modal deploy`.

    Parameters
    ----------
    environment : environment variables of the command

    Attributes
    ----------
    requests : every request, by the name of its method
    functions : the functions and classes of the app, by name
    """

    def __init__(self, **environment: str) -> None:
        server = ModalServer()
        process = server.modal("deploy", "modal_comfy.py", **environment)
        assert process.returncode == 0, process.stdout + process.stderr
        self.requests = server.requests
        self.functions = {
            request.function.function_name.removesuffix(".*"): request.function
            for request in self.requests["FunctionCreate"]
        }

    def commands(self) -> list[str]:
        """Return the build steps of the image, without the steps of Modal's own base."""
        layers = [
            request.image.dockerfile_commands for request in self.requests["ImageGetOrCreate"]
        ]
        return [line for layer in layers if layer[0] == "FROM base" for line in layer[1:]]

    def files(self) -> set[str]:
        """Return the paths of all files that were uploaded."""
        assert self.requests["MountBatchedCheckExistence"]
        mounts = self.requests["MountGetOrCreate"]
        return {file.filename for mount in mounts for file in mount.files}


@pytest.fixture(scope="module")
def deployed() -> Deployed:
    return Deployed()


def test_the_workers_have_their_gpus_and_limits(deployed: Deployed) -> None:
    for name, gpu, timeout, max_calls in (
        ("Heavy", "A100-80GB", 600, 3),
        ("Light", "T4", 300, 20),
    ):
        worker = deployed.functions[name]
        assert worker.resources.gpu_config.gpu_type == gpu
        assert worker.resources.gpu_config.count == 1
        assert (worker.timeout_secs, worker.max_concurrent_inputs) == (timeout, max_calls)
        assert worker.checkpointing_enabled and worker.retry_policy.retries == 3
        assert {mount.mount_path for mount in worker.volume_mounts} == {
            "/checkpoints",
            "/results",
        }
        methods = {"run", "free", *(["edit"] if name == "Heavy" else [])}
        assert set(worker.method_definitions) == methods
        assert not worker.webhook_config.type and not worker.secret_ids[1:]
        assert worker.autoscaler_settings.min_containers == 0
        assert worker.autoscaler_settings.max_containers == 4


def test_the_gateways_are_cheap_and_public(deployed: Deployed) -> None:
    for name in ("fastapi_app_heavy", "fastapi_app_light"):
        gateway = deployed.functions[name]
        assert gateway.webhook_config.type and not gateway.webhook_config.requires_proxy_auth
        assert not gateway.resources.gpu_config.gpu_type and gateway.resources.milli_cpu == 500
        assert gateway.max_concurrent_inputs == 100 and not gateway.checkpointing_enabled
    secrets = deployed.requests["SecretGetOrCreate"]
    assert "artmancer" in [secret.deployment_name for secret in secrets]
    roles = {dict(secret.env_dict).get("ARTMANCER_ROLE") for secret in secrets}
    assert {"heavy", "light"} <= roles
    volumes = {request.deployment_name for request in deployed.requests["VolumeGetOrCreate"]}
    assert volumes == {"artmancer-checkpoints", "artmancer-results"}


def test_webhooks_have_a_small_function_with_the_secret(deployed: Deployed) -> None:
    deliver = deployed.functions["deliver"]
    assert deliver.timeout_secs == 24 * 3600 and deliver.retry_policy.retries
    assert deliver.max_concurrent_inputs == 100
    assert not deliver.resources.gpu_config.gpu_type and not deliver.webhook_config.type
    assert set(deployed.functions["fastapi_app_heavy"].secret_ids) & set(deliver.secret_ids)


def test_environment_variables_change_the_settings() -> None:
    changed = Deployed(
        ARTMANCER_HEAVY_MIN="1",
        ARTMANCER_HEAVY_MAX="9",
        ARTMANCER_LIGHT_WINDOW="600",
        ARTMANCER_PROXY_AUTH="1",
        ARTMANCER_GPU_SNAPSHOT="1",
        ALLOWED_ORIGINS="https://a.example",
        ARTMANCER_FETCH_HOSTS="b.example",
    )
    heavy, light = changed.functions["Heavy"], changed.functions["Light"]
    assert heavy.autoscaler_settings.min_containers == 1
    assert heavy.autoscaler_settings.max_containers == 9
    assert light.autoscaler_settings.scaledown_window == 600
    assert heavy.experimental_options["enable_gpu_snapshot"] == "True"
    assert changed.functions["fastapi_app_light"].webhook_config.requires_proxy_auth
    secrets = [dict(request.env_dict) for request in changed.requests["SecretGetOrCreate"]]
    hosts = {"ARTMANCER_FETCH_HOSTS": "b.example"}
    assert {"ARTMANCER_ROLE": "light", "ALLOWED_ORIGINS": "https://a.example", **hosts} in secrets
    # Also the workers, which send results to URLs, and the function that sends webhooks.
    assert {"ARTMANCER_GPU_SNAPSHOT": "1", **hosts} in secrets and hosts in secrets


def test_the_image_is_pinned_and_its_steps_that_change_least_come_first(
    deployed: Deployed,
) -> None:
    commands = "\n".join(deployed.commands())
    steps = [
        "apt-get install -y git",
        "requirements.txt",
        container.INSTALL,
        f"ENV COMFYUI_PATH={container.FOLDER}",
    ]
    positions = [commands.index(step) for step in steps]
    assert positions == sorted(positions)
    assert f"uv:{container.UV}" in commands and "--no-deps" in commands
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[^ ;]+", line) for line in pins())


@pytest.mark.slow
def test_a_second_deployment_has_the_same_image(deployed: Deployed) -> None:
    assert Deployed().commands() == deployed.commands()


def test_the_pack_is_uploaded_without_weights_tests_or_secrets(deployed: Deployed) -> None:
    files = deployed.files()
    pack = {name for name in files if name.startswith(f"{container.PACK}/")}
    assert {f"{container.PACK}/__init__.py", f"{container.PACK}/nodes/__init__.py"} <= pack
    assert {"/root/modal_comfy.py", "/root/artmancer/gateway/page/index.html"} <= files
    assert "/root/workflows/api/generate.json" in files
    for name in files:
        relative = name.removeprefix(f"{container.PACK}/")
        assert not relative.startswith(("tests/", "build/", ".git/", ".venv/", "benchmarks/")), name
        assert not name.endswith((".safetensors", ".pt", ".onnx", ".env")), name


def test_importing_modal_comfy_is_light_and_needs_no_token() -> None:
    probe = (
        "import sys, modal_comfy; sys.exit(bool({'torch', 'fastapi', 'pydantic', "
        "'aiohttp.web', 'numpy'} & set(sys.modules)))"
    )
    env = {
        **os.environ,
        "MODAL_CONFIG_PATH": os.devnull,
        "MODAL_SERVER_URL": "http://127.0.0.1:1",
    }
    process = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, env=env, check=False)
    assert process.returncode == 0


def test_the_dockerfile_has_the_same_steps() -> None:
    text = (ROOT / "Dockerfile").read_text().replace("\\\n    ", "")
    assert f"FROM python:{container.PYTHON}-slim" in text
    assert f"pip install --no-cache-dir uv=={container.UV} " in text
    assert f"RUN {container.INSTALL}\n" in text
    assert "--no-deps --requirements /tmp/requirements.txt" in text
    for name, value in container.ENVIRONMENT.items():
        assert f"ENV {name}={value}\n" in text
    assert f"COPY . {container.PACK}\n" in text


GATEWAY_CONTAINER = """
import asyncio, sys
from contextlib import nullcontext
from types import SimpleNamespace
from modal import _container_entrypoint as container
from modal._utils.async_utils import synchronizer
from modal.client import Client
from modal_proto import api_pb2
import artmancer.hosting.web

arguments = api_pb2.ContainerArguments.FromString(bytes.fromhex(sys.argv[1]))
client = synchronizer._translate_in(Client.from_env())
lifecycle = SimpleNamespace(handle_task_lifecycle_exception=nullcontext)
container.hydrate_function(arguments, lifecycle, arguments.function_def, client)
# The gateway's Remote, instead of its HTTP server.
artmancer.hosting.web.web_app = lambda remote, *_: remote
import modal_comfy
remote = modal_comfy.make_gateway()
asyncio.run(remote.spawn("heavy", {}))
asyncio.run(remote.load("light"))
"""
"""Starts the container of a gateway as Modal does, and spawns a call."""


@pytest.mark.slow
def test_a_gateway_under_modal_serve_calls_the_workers_of_its_own_app() -> None:
    server = ModalServer()
    served = server.modal("serve", "--timeout", "1", "modal_comfy.py")
    assert served.returncode == 0, served.stdout + served.stderr
    published = server.requests["AppPublish"][-1]
    assert published.app_state == api_pb2.APP_STATE_EPHEMERAL
    functions = {
        request.function.function_name: request.function
        for request in server.requests["FunctionCreate"]
    }
    layout = api_pb2.AppLayout(function_ids=published.function_ids, class_ids=published.class_ids)
    for name, object_id in published.function_ids.items():
        methods = functions[name].method_definitions
        layout.objects.add(
            object_id=object_id,
            function_handle_metadata=api_pb2.FunctionHandleMetadata(
                function_name=name,
                method_handle_metadata={
                    method: api_pb2.FunctionHandleMetadata(
                        function_name=definition.function_name, use_method_name=method
                    )
                    for method, definition in methods.items()
                },
            ),
        )
    for object_id in published.class_ids.values():
        layout.objects.add(object_id=object_id, class_handle_metadata=api_pb2.ClassHandleMetadata())
    for dependency in functions["fastapi_app_heavy"].object_dependencies:
        layout.objects.add(
            object_id=dependency.object_id,
            mount_handle_metadata=api_pb2.MountHandleMetadata()
            if dependency.object_id.startswith("mo-")
            else None,
        )
    arguments = api_pb2.ContainerArguments(
        app_id="ap-served", app_layout=layout, function_def=functions["fastapi_app_heavy"]
    )
    gateway = server.python("-c", GATEWAY_CONTAINER, arguments.SerializeToString().hex())
    assert gateway.returncode == 0, gateway.stderr
    (call,) = server.requests["FunctionMap"]
    assert call.function_id == published.function_ids["Heavy.*"]
    (stats,) = server.requests["FunctionGetCurrentStats"]
    assert stats.function_id == published.function_ids["Light.*"]
    assert not server.requests["ClassGet"] and not server.requests["FunctionGet"]


def test_status_works_without_a_deployment() -> None:
    process = ModalServer().modal("run", "modal_comfy.py::status")
    assert process.returncode == 0
    assert "wb_cp.safetensors: modal run modal_comfy.py::upload" in process.stdout


def pins() -> list[str]:
    """Return the pinned packages of the image."""
    return container.REQUIREMENTS.read_text().split("\n")[:-1]


def test_the_pinned_versions_agree_with_the_development_requirements() -> None:
    pinned = dict(line.split("==") for line in pins())
    tested: dict[str, set[str]] = {}
    for line in (ROOT / "requirements-dev.txt").read_text().splitlines():
        name, _, version = line.partition(";")[0].strip().partition("==")
        tested.setdefault(name, set()).add(version)
    both = pinned.keys() & tested.keys()
    assert {"torch", "diffusers", "fastapi", "aiohttp", "rembg", "ultralytics"} <= both
    assert {name for name in both if pinned[name] not in tested[name]} == set()


def test_the_pinned_versions_are_on_the_package_index(tmp_path: Path) -> None:
    uv = Path(sys.executable).parent / "uv"
    command = [
        *(uv, "pip", "install", "--dry-run", "--no-deps"),
        *("--requirements", container.REQUIREMENTS),
    ]
    target = [
        *("--python-version", "3.12", "--python-platform", "x86_64-unknown-linux-gnu"),
        *("--target", tmp_path),
    ]
    process = subprocess.run([*command, *target], capture_output=True, text=True, check=False)
    if "error sending request" in process.stderr or "dns error" in process.stderr:
        pytest.skip("no package index answers")
    assert process.returncode == 0, process.stderr


def test_all_requirements_of_the_pack_are_pinned() -> None:
    pinned = {line.split("==")[0] for line in pins()}
    for requirement in importlib.metadata.requires("artmancer") or []:
        name = re.match(r"[A-Za-z0-9._-]+", requirement)
        assert name
        extra = re.search(r"extra == ['\"](\w+)", requirement)
        if "win32'" in requirement and "sys_platform == " in requirement:
            continue
        if not extra or extra[1] in ("gateway", "fastsam", "rembg"):
            assert name[0].lower().replace("_", "-") in pinned, requirement
