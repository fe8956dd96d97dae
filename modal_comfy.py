"""ArtMancer on Modal: `modal deploy modal_comfy.py`. docs/hosting.md is the guide.

Two gateways in cheap containers accept requests. Behind them, heavy workers with a large GPU edit,
and light workers with a small GPU find objects. Without requests all containers stop, and cost
nothing.
"""

import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import modal
from modal.volume import FileEntryType

from artmancer.hosting import container, model_volume
from artmancer.hosting.remote import APP, RESULTS, ModalRemote
from artmancer.options import JOB_TIMEOUTS

# ## Image

# Gateways and workers use the same image: pinned packages, ComfyUI, and this checkout.
# The steps that change least come first, so that Modal builds them only once.

CHECKOUT = Path(__file__).parent

image = (
    modal.Image.debian_slim(python_version=container.PYTHON)
    .apt_install("git")
    .uv_pip_install(
        requirements=[str(container.REQUIREMENTS)],
        extra_options="--no-deps",
        uv_version=container.UV,
    )
    .run_commands(container.INSTALL)
    .env(container.ENVIRONMENT)
    # The node pack in ComfyUI's custom_nodes.
    .add_local_dir(CHECKOUT, container.PACK, ignore=list(container.EXCLUDED))
    # The gateway's graphs, and the library for this file's imports.
    .add_local_dir(CHECKOUT / "workflows" / "api", "/root/workflows/api")
    .add_local_dir(CHECKOUT / "artmancer", "/root/artmancer", ignore=["**/__pycache__"])
)

# Models, and results that are too large for a call's answer, are on two volumes.

CHECKPOINTS = "/checkpoints"
LARGE_RESULTS = "/results"

checkpoints = modal.Volume.from_name("artmancer-checkpoints", create_if_missing=True)
results = modal.Volume.from_name(RESULTS, create_if_missing=True)
volumes: dict[str | PurePosixPath, Any] = {CHECKPOINTS: checkpoints, LARGE_RESULTS: results}


# ## Workers

# A worker is a container with one ComfyUI. Modal starts it when orders wait, and stops it when it
# has been idle for a while.

app = modal.App(APP)

PORT = 8188
"""Port of ComfyUI on the loopback of its container."""

DEFAULT_MAX_CONTAINERS = 4
"""Workers of a lane that run at a time at most."""


def number_setting(name: str, default: int) -> int:
    """Read a setting from the environment of `modal deploy`."""
    return int(os.environ.get(f"ARTMANCER_{name}", default))


GPU_SNAPSHOT = bool(number_setting("GPU_SNAPSHOT", 0))
"""True if snapshots hold the GPU's memory, an alpha feature of Modal. A container then starts with
ComfyUI on the GPU.
"""


def settings_for_all() -> dict[str, str]:
    """Return the environment variables of `modal deploy` that every container gets."""
    names = ("ARTMANCER_FETCH_HOSTS", "ARTMANCER_PUBLIC_URL")
    return {name: os.environ[name] for name in names if name in os.environ}


class _Worker:
    """A ComfyUI on loopback, and the methods that Modal calls."""

    lane: ClassVar[str]

    # Modal runs this once, saves the container's memory as a snapshot, and starts later containers
    # from the snapshot.
    @modal.enter(snap=True)
    def prepare(self) -> None:
        from artmancer.gateway.comfy_process import command
        from artmancer.gateway.service import make_fetcher
        from artmancer.gateway.settings import Settings
        from artmancer.hosting.worker import Worker

        folder = Path("/root/worker")
        model_paths = Path("/root/extra_model_paths.yaml")
        model_paths.write_text(model_volume.PATHS.format(root=CHECKPOINTS))
        start = command(PORT, folder, base=None, cpu=False)
        start += ["--extra-model-paths-config", str(model_paths), *container.COMFYUI_ARGUMENTS]
        self.worker = Worker(
            # Modal's classes have no parameters, so the lane is a plain string here.
            self.lane,  # type: ignore[arg-type]
            ModalRemote({}),
            start,
            PORT,
            folder,
            Path(LARGE_RESULTS),
            fetcher=make_fetcher(Settings()),
            sync=results.commit.aio,
            on_dead=modal.experimental.stop_fetching_inputs.aio,
        )
        self.worker.prepare(start_comfyui=GPU_SNAPSHOT)

    # Modal runs this in every container, after its memory was restored.
    @modal.enter(snap=False)
    async def start(self) -> None:
        await self.worker.start()

    @modal.method()
    async def run(self, order: dict[str, Any]) -> dict[str, Any]:
        return await self.worker.run(order, str(modal.current_function_call_id()))

    @modal.method()
    async def free(self) -> int:
        return await self.worker.free()

    @modal.exit()
    async def stop(self) -> None:
        await self.worker.stop()


def deploy_worker(lane: str, gpu: str, max_inputs: int) -> Any:
    """Return a decorator that deploys a class as the worker of a lane.

    Parameters
    ----------
    max_inputs : orders that one container runs at a time
    """
    as_class = app.cls(
        image=image,
        gpu=gpu,
        cpu=4.0,
        memory=32 * 1024,
        volumes=volumes,
        timeout=JOB_TIMEOUTS[lane.lower()],
        startup_timeout=900,
        retries=modal.Retries(max_retries=3, initial_delay=0.0),
        min_containers=number_setting(f"{lane}_MIN", 0),
        max_containers=number_setting(f"{lane}_MAX", DEFAULT_MAX_CONTAINERS),
        scaledown_window=number_setting(f"{lane}_WINDOW", 120),
        enable_memory_snapshot=True,
        experimental_options={"enable_gpu_snapshot": True} if GPU_SNAPSHOT else {},
        env={"ARTMANCER_GPU_SNAPSHOT": str(int(GPU_SNAPSHOT)), **settings_for_all()},
    )
    return lambda cls: as_class(modal.concurrent(max_inputs=max_inputs)(cls))


# The GPU runs one edit at a time. With three orders in a container, the next order's images are
# uploaded to ComfyUI and the last order's result is sent while the GPU works.
EDITS_PER_CONTAINER = 3


@deploy_worker("HEAVY", "A100-80GB", max_inputs=EDITS_PER_CONTAINER)
class Heavy(_Worker):
    """Edits."""

    lane = "heavy"

    @modal.method()
    async def edit(self, order: dict[str, Any]) -> dict[str, Any]:
        return await self.worker.edit(order)


@deploy_worker("LIGHT", "T4", max_inputs=20)
class Light(_Worker):
    """Finds objects, removes backgrounds, and runs the other tools, while a person waits."""

    lane = "light"


# ## Gateways and commands

# A gateway is a web app. It stores images and job records in a modal.Dict, calls a worker, and
# answers with the result. Both gateways are the same app; their role decides which routes it has.

token = modal.Secret.from_name("artmancer", required_keys=["ARTMANCER_API_TOKEN"])

GATEWAY_SETTINGS = (
    "ALLOWED_ORIGINS",
    "DEBUG",
    "ARTMANCER_PAGE",
    "ARTMANCER_MAX_WAITING",
)
"""Environment variables of `modal deploy` that the gateways get, too."""


def deploy_gateway(role: str) -> Any:
    """Return a decorator that deploys a function as the gateway of a role."""
    settings = {name: os.environ[name] for name in GATEWAY_SETTINGS if name in os.environ}
    as_function = app.function(
        image=image,
        cpu=0.5,
        memory=1024,
        volumes=volumes,
        secrets=[token],
        env={"ARTMANCER_ROLE": role, **settings, **settings_for_all()},
        timeout=600,
        min_containers=number_setting("WEB_MIN", 0),
        max_containers=number_setting("WEB_MAX", 4),
        scaledown_window=number_setting("WEB_WINDOW", 120),
    )
    as_app = modal.asgi_app(requires_proxy_auth=bool(number_setting("PROXY_AUTH", 0)))
    return lambda function: as_function(modal.concurrent(max_inputs=100)(as_app(function)))


def make_gateway() -> Any:
    from artmancer.hosting.web import web_app

    return web_app(
        ModalRemote({"heavy": Heavy(), "light": Light()}, deliver),
        Path(CHECKPOINTS),
        Path(LARGE_RESULTS),
        results.reload.aio,
        results.commit.aio,
    )


@deploy_gateway("heavy")
def fastapi_app_heavy() -> Any:
    return make_gateway()


@deploy_gateway("light")
def fastapi_app_light() -> Any:
    return make_gateway()


# A call of this function waits for the end of a job with a webhook, and posts it. The container is
# small, and runs only while a webhook waits.
@app.function(
    image=image,
    cpu=0.125,
    memory=512,
    secrets=[token],
    env=settings_for_all(),
    timeout=24 * 3600,
    retries=modal.Retries(max_retries=3, initial_delay=1.0),
)
@modal.concurrent(max_inputs=100)
async def deliver(job_id: str) -> None:
    from artmancer.gateway.service import make_fetcher
    from artmancer.gateway.settings import Settings
    from artmancer.hosting.delivery import deliver as deliver_webhook

    settings = Settings(data=container.DATA)
    call = str(modal.current_function_call_id())
    await deliver_webhook(job_id, call, ModalRemote({}), settings, make_fetcher(settings))


# Commands: `modal run modal_comfy.py::NAME`. `setup` runs on Modal, the others on the deployer's
# machine.


@app.function(image=image, volumes={CHECKPOINTS: checkpoints}, timeout=4 * 3600, cpu=2.0)
def setup(force: bool = False, only: str = "") -> None:
    """Download the base model, LaMa, FastSAM and rembg's model to the volume; `--force`: also those
    that are there; `--only inpaint`: LaMa alone.
    """
    lines, success = model_volume.setup(Path(CHECKPOINTS), force, only, model_volume.DOWNLOADS)
    print_lines(lines)
    checkpoints.commit()
    if not success:
        sys.exit(1)


@app.local_entrypoint()
def upload(dir: str = "./checkpoints") -> None:
    """Upload the checkpoints of a folder to the volume, and verify them there."""

    def put(files: Mapping[str, Path]) -> None:
        with checkpoints.batch_upload(force=True) as batch:
            for name, path in files.items():
                batch.put_file(path, f"/{name}")

    lines, success = model_volume.upload(Path(dir), RemoteVolume(checkpoints), put)
    print_lines(lines)
    if not success:
        sys.exit(1)


@app.local_entrypoint()
def batch(*arguments: str) -> None:
    """Edit the photos of a folder, a CSV or a JSONL file; docs/batch.md is the guide."""
    from artmancer import cli
    from artmancer.hosting.batch import make_parser

    parser = make_parser(
        lambda containers: Heavy.with_options(max_containers=containers)().edit.map.aio,
        lambda: ModalRemote({}),
        number_setting("HEAVY_MAX", DEFAULT_MAX_CONTAINERS),
        EDITS_PER_CONTAINER,
    )
    sys.exit(cli.run(parser.parse_args(arguments)))


@app.local_entrypoint()
def status() -> None:
    """List the models on the volume and the missing models."""
    print_lines(model_volume.take_inventory(RemoteVolume(checkpoints)).lines())


@app.local_entrypoint()
def smoke(url: str) -> None:
    """Request the health of a deployment, and a small edit. Reads its token from
    ARTMANCER_API_TOKEN.
    """
    from artmancer.hosting.smoke import smoke as run_smoke_test

    lines, success = run_smoke_test(url, os.environ.get("ARTMANCER_API_TOKEN"))
    print_lines(lines)
    if not success:
        sys.exit(1)


class RemoteVolume:
    """A model_volume.Volume that is read over the network."""

    def __init__(self, volume: modal.Volume) -> None:
        self.volume = volume

    def sizes(self) -> dict[str, int]:
        entries = self.volume.listdir("/", recursive=True)
        files = (entry for entry in entries if entry.type == FileEntryType.FILE)
        return {entry.path.lstrip("/"): entry.size for entry in files}

    def read(self, path: str) -> Iterable[bytes]:
        return self.volume.read_file(path)


def print_lines(lines: Iterable[str]) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
