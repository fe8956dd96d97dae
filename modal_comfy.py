"""ArtMancer on Modal: `modal deploy modal_comfy.py`. docs/hosting.md tells the rest.

Two apps for the web, on cheap containers, take requests; behind them a heavy worker on a large GPU
edits, and a light one on a small GPU finds objects. All of it sleeps, and costs nothing, while
nobody asks.
"""

import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import modal
from modal.volume import FileEntryType

from artmancer.hosting import container as made_of
from artmancer.hosting import model_volume as models
from artmancer.hosting.remote import APP, RESULTS, ModalRemote

HERE = Path(__file__).parent
CHECKPOINTS, LARGE = "/checkpoints", "/results"
PORT = 8188


def setting(name: str, default: int) -> int:
    """A number of the deployment, from the environment of `modal deploy`."""
    return int(os.environ.get(f"ARTMANCER_{name}", default))


def passed_on(names: Iterable[str]) -> dict[str, str | None]:
    """What the gateways read from the environment of `modal deploy`."""
    return {name: os.environ[name] for name in names if name in os.environ}


GPU_SNAPSHOT = bool(setting("GPU_SNAPSHOT", 0))
"""An alpha feature of Modal's: a container then starts with ComfyUI on the GPU."""

app = modal.App(APP)
checkpoints = modal.Volume.from_name("artmancer-checkpoints", create_if_missing=True)
results = modal.Volume.from_name(RESULTS, create_if_missing=True)
token = modal.Secret.from_name("artmancer", required_keys=["ARTMANCER_API_TOKEN"])

image = (
    modal.Image.debian_slim(python_version=made_of.PYTHON)
    .apt_install("git")
    .uv_pip_install(
        requirements=[str(made_of.REQUIREMENTS)], extra_options="--no-deps", uv_version=made_of.UV
    )
    .run_commands(made_of.INSTALL)
    .env(made_of.ENVIRONMENT)
    .add_local_dir(HERE, made_of.PACK, ignore=list(made_of.LEFT_OUT))
    .add_local_dir(HERE / "workflows" / "api", "/root/workflows/api")
    .add_local_dir(HERE / "artmancer", "/root/artmancer", ignore=["**/__pycache__"])
)
volumes: dict[str | PurePosixPath, Any] = {CHECKPOINTS: checkpoints, LARGE: results}


class _Worker:
    """A ComfyUI on loopback, and what Modal calls of it."""

    lane: ClassVar[str]

    @modal.enter(snap=True)
    def prepare(self) -> None:
        from artmancer.gateway.comfy_process import command
        from artmancer.hosting.worker import Worker

        folder, paths = Path("/root/worker"), Path("/root/extra_model_paths.yaml")
        paths.write_text(models.PATHS.format(root=CHECKPOINTS))
        start = command(PORT, folder, base=None, cpu=False)
        self.worker = Worker(
            self.lane,  # type: ignore[arg-type]
            ModalRemote(),
            [*start, "--extra-model-paths-config", str(paths), *made_of.COMFYUI_ARGUMENTS],
            PORT,
            folder,
            Path(LARGE),
            sync=results.commit.aio,
            on_dead=modal.experimental.stop_fetching_inputs.aio,
        )
        self.worker.prepare(start_comfyui=GPU_SNAPSHOT)

    @modal.enter(snap=False)
    async def start(self) -> None:
        await self.worker.start()

    @modal.method()
    async def run(self, order: dict[str, Any]) -> dict[str, Any]:
        return await self.worker.run(order)

    @modal.method()
    async def free(self) -> int:
        return await self.worker.free()

    @modal.exit()
    async def stop(self) -> None:
        await self.worker.stop()


def worker(lane: str, gpu: str, timeout: int, at_once: int) -> Any:
    """The decorators of a lane's worker."""
    as_class = app.cls(
        image=image,
        gpu=gpu,
        cpu=4.0,
        memory=32 * 1024,
        volumes=volumes,
        timeout=timeout,
        startup_timeout=900,
        retries=modal.Retries(max_retries=3, initial_delay=0.0),
        min_containers=setting(f"{lane}_MIN", 0),
        max_containers=setting(f"{lane}_MAX", 4),
        scaledown_window=setting(f"{lane}_WINDOW", 120),
        enable_memory_snapshot=True,
        experimental_options={"enable_gpu_snapshot": True} if GPU_SNAPSHOT else {},
        env={"ARTMANCER_GPU_SNAPSHOT": str(int(GPU_SNAPSHOT))},
    )
    return lambda cls: as_class(modal.concurrent(max_inputs=at_once)(cls))


@worker("HEAVY", "A100-80GB", timeout=600, at_once=3)
class Heavy(_Worker):
    """Edits. Three orders at a time: one is on the GPU, the next is unpacked,
    the last one's result is sent.
    """

    lane = "heavy"


@worker("LIGHT", "T4", timeout=300, at_once=20)
class Light(_Worker):
    """Finds objects, removes backgrounds, and the like, while a person waits."""

    lane = "light"


def web(role: str) -> Any:
    """The decorators of a gateway."""
    settings = passed_on(["ALLOWED_ORIGINS", "DEBUG", "ARTMANCER_PAGE", "ARTMANCER_MAX_WAITING"])
    as_function = app.function(
        image=image,
        cpu=0.5,
        memory=1024,
        volumes=volumes,
        secrets=[token],
        env={"ARTMANCER_ROLE": role, **settings},
        timeout=600,
        min_containers=setting("WEB_MIN", 0),
        max_containers=setting("WEB_MAX", 4),
        scaledown_window=setting("WEB_WINDOW", 120),
    )
    as_app = modal.asgi_app(requires_proxy_auth=bool(setting("PROXY_AUTH", 0)))
    return lambda make: as_function(modal.concurrent(max_inputs=100)(as_app(make)))


@web("heavy")
def fastapi_app_heavy() -> Any:
    from artmancer.hosting.web import web_app

    return web_app(
        ModalRemote(), Path(CHECKPOINTS), Path(LARGE), results.reload.aio, results.commit.aio
    )


@web("light")
def fastapi_app_light() -> Any:
    from artmancer.hosting.web import web_app

    return web_app(
        ModalRemote(), Path(CHECKPOINTS), Path(LARGE), results.reload.aio, results.commit.aio
    )


@app.function(image=image, volumes={CHECKPOINTS: checkpoints}, timeout=4 * 3600, cpu=2.0)
def setup(force: bool = False) -> None:
    """Fetch the base, FastSAM and rembg's model onto the volume; `--force`: also what is there."""
    from artmancer.hosting.model_volume import DOWNLOADS

    tell(models.setup(Path(CHECKPOINTS), force, DOWNLOADS))
    checkpoints.commit()


@app.local_entrypoint()
def upload(dir: str = "./checkpoints") -> None:
    """Send the checkpoints of a folder to the volume, and check what arrived."""

    def put(files: Mapping[str, Path]) -> None:
        with checkpoints.batch_upload(force=True) as batch:
            for name, path in files.items():
                batch.put_file(path, f"/{name}")

    lines, well = models.upload(Path(dir), RemoteVolume(checkpoints), put)
    tell(lines)
    if not well:
        sys.exit(1)


@app.local_entrypoint()
def status() -> None:
    """What is on the volume, what is missing, and what each worker makes of it."""
    tell(models.take_inventory(RemoteVolume(checkpoints)).lines())


@app.local_entrypoint()
def smoke(url: str) -> None:
    """Ask a deployment for its health, and for a small edit; ARTMANCER_API_TOKEN is its token."""
    from artmancer.hosting.smoke import smoke as run

    lines, well = run(url, os.environ.get("ARTMANCER_API_TOKEN"))
    tell(lines)
    if not well:
        sys.exit(1)


class RemoteVolume:
    """A volume of Modal's, from outside."""

    def __init__(self, volume: modal.Volume) -> None:
        self.volume = volume

    def sizes(self) -> dict[str, int]:
        files = (
            entry
            for entry in self.volume.listdir("/", recursive=True)
            if entry.type == FileEntryType.FILE
        )
        return {entry.path.lstrip("/"): entry.size for entry in files}

    def read(self, path: str) -> Iterable[bytes]:
        return self.volume.read_file(path)


def tell(lines: Iterable[str]) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
