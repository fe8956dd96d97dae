"""The steps of both container images, run in a fresh virtual environment, up to an edit.

A folder stands for the root of the image's file system, and a virtual environment in it for the
image's Python. Three things are not the image's own: the version of Python is the tests', torch
and its libraries (gigabytes) are linked from the tests' environment, and a repository made of the
tests' ComfyUI is in the place of GitHub's. All other packages come from the registry that uv is
configured with.
"""

import base64
import fnmatch
import importlib.metadata
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image, ImageChops
from support.comfyui import free_port
from support.gateway import WAIT_TIMEOUT, removal, until
from support.modal_server import ModalServer
from support.paths import EXAMPLES, ROOT

from artmancer.folders import comfyui_folder
from artmancer.hosting import container

pytestmark = [pytest.mark.slow, pytest.mark.comfyui]

LINKED = r"(nvidia|cuda)-.*"
"""Names of the packages that are linked."""

NO_REGISTRY = r"error sending request|dns error|Could not find a version|NewConnectionError"
"""Messages of pip and uv where no registry answers."""

GITHUB = ("https://github.com/comfyanonymous/ComfyUI", "https://github.com/Comfy-Org/ComfyUI")
"""Addresses that comfy-cli clones ComfyUI from."""


class ImageFolder:
    """A folder in which the steps of an image run.

    Parameters
    ----------
    root : stands for the root of the image's file system; is created
    repository : takes the place of ComfyUI's at GitHub
    """

    def __init__(self, root: Path, repository: Path) -> None:
        self.root = root
        self.folder = root
        self.command: list[str] = []
        prefix = root / "usr" / "local"
        uv = Path(sys.executable).parent / "uv"
        find = [uv, "python", "find", "--no-python-downloads", "--no-project", container.PYTHON]
        # The variable lets the commands of pyenv start this version.
        pyenv = {**os.environ, "PYENV_VERSION": container.PYTHON}
        found = subprocess.run(find, capture_output=True, text=True, check=False, env=pyenv)
        if found.returncode:
            pytest.skip(f"no Python {container.PYTHON}, the images' version, on this machine")
        subprocess.run([found.stdout.strip(), "-m", "venv", prefix], check=True)
        self.python = prefix / "bin" / "python"
        (self.packages,) = prefix.glob("lib/python*/site-packages")
        _link_packages(self.packages)
        (root / "root").mkdir()
        cache = subprocess.run(
            [uv, "cache", "dir"],
            capture_output=True,
            text=True,
            check=True,
        )
        clones = {f"GIT_CONFIG_VALUE_{index}": url for index, url in enumerate(GITHUB)}
        keys = {f"GIT_CONFIG_KEY_{index}": f"url.{repository}.insteadOf" for index in range(2)}
        self.environment = {
            **{name: value for name, value in os.environ.items() if name not in ("PYTHONPATH",)},
            **clones,
            **keys,
            "GIT_CONFIG_COUNT": str(len(GITHUB)),
            "PATH": f"{prefix / 'bin'}{os.pathsep}/usr/bin{os.pathsep}/bin",
            "HOME": str(root / "root"),
            "VIRTUAL_ENV": str(prefix),
            "UV_CACHE_DIR": cache.stdout.strip(),
        }

    def inside(self, text: str) -> str:
        """Replace the absolute paths of a step by paths in this folder."""
        pattern = r"(?<![\w./:-])/(root|tmp|\.uv|checkpoints|data)(?=[/\s'\"]|$)"
        return re.sub(pattern, rf"{self.root}/\1", text)

    def build(self, steps: Iterable[str]) -> None:
        """Run the steps of an image, as in a Dockerfile."""
        for step in steps:
            instruction, _, rest = step.strip().partition(" ")
            if instruction == "RUN":
                self._run(rest)
            elif instruction == "COPY":
                *options, source, target = rest.split()
                self._copy(options, source, Path(self.inside(target)))
            elif instruction == "ENV":
                for setting in shlex.split(rest):
                    name, _, value = setting.partition("=")
                    self.environment[name] = self.inside(value)
            elif instruction == "WORKDIR":
                self.folder = Path(self.inside(rest))
            elif instruction == "VOLUME":
                for volume in json.loads(rest):
                    Path(self.inside(volume)).mkdir()
            elif instruction == "CMD":
                self.command = json.loads(rest)
            else:
                assert instruction in ("FROM", "EXPOSE"), step

    def _run(self, line: str) -> None:
        if line.startswith("apt-get"):
            # The programs of these Debian packages are this machine's.
            for programs in re.findall(r"apt-get install -y ([\w -]+)", line):
                assert all(map(shutil.which, programs.split())), line
            return
        line = self.inside(line)
        # A virtual environment is no system Python, the cache saves a download, and most of the
        # bytecode would take a minute and never run here.
        line = line.replace(" --system", f" --python {self.python}")
        self.shell(re.sub(r" --(no-cache|compile-bytecode)(?= )", "", line))

    def shell(self, line: str) -> None:
        """Run a line of shell in the image's environment."""
        done = subprocess.run(
            line,
            shell=True,
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode and re.search(NO_REGISTRY, done.stderr):
            pytest.skip(f"no package registry answers: {done.stderr[-300:]}")
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"

    def _copy(self, options: list[str], source: str, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        if options:
            # The program uv, from an image that has nothing else.
            (version,) = re.findall(r"^--from=\S+/uv:([\d.]+)$", options[0])
            folder = self.root / "uv"
            self.shell(f"{self.python} -m pip install --quiet --target {folder} uv=={version}")
            shutil.copy(folder / "bin" / "uv", target)
        elif source.endswith("requirements.txt"):
            lines = container.REQUIREMENTS.read_text().splitlines()
            kept = [line for line in lines if not re.fullmatch(LINKED, line.split("==")[0])]
            assert len(kept) > 100
            target.write_text("\n".join(kept))
        else:
            assert source == "."
            shutil.copytree(ROOT, target, ignore=_ignored)


def _link_packages(target: Path) -> None:
    for package in importlib.metadata.distributions():
        if re.fullmatch(LINKED, package.name):
            for name in {file.parts[0] for file in package.files or ()} - {"..", "__pycache__"}:
                link = target / name
                if not link.exists():
                    link.symlink_to(package.locate_file(name))


def _ignored(folder: str, names: list[str]) -> list[str]:
    """Return the files of a folder that .dockerignore excludes."""
    patterns = (ROOT / ".dockerignore").read_text().split()
    if Path(folder) != ROOT:
        patterns = [pattern for pattern in patterns if pattern.startswith("**/")]
    return [
        name
        for name in names
        if any(fnmatch.fnmatch(name, pattern.removeprefix("**/")) for pattern in patterns)
    ]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git repository of the tests' ComfyUI, with the tag that the images check out."""
    source = comfyui_folder()
    if not (source / "main.py").is_file():
        pytest.skip(f"no ComfyUI in {source} (set COMFYUI_PATH)")
    if f'"{container.COMFYUI}"' not in (source / "comfyui_version.py").read_text():
        pytest.skip(f"the ComfyUI in {source} is not {container.COMFYUI}")
    folder = tmp_path_factory.mktemp("github") / "ComfyUI"
    mutable = {"models", "input", "output", "temp", "user", "custom_nodes", ".git"}

    def ignored(inside: str, names: list[str]) -> set[str]:
        return {"__pycache__"} | (mutable & set(names) if Path(inside) == source else set())

    shutil.copytree(source, folder, ignore=ignored)
    # The folders that a clone has.
    for name in ("models/loras", "input", "output", "custom_nodes"):
        (folder / name).mkdir(parents=True)
        (folder / name / "put_files_here").touch()
    for command in (
        "init --quiet --initial-branch master",
        "add --all --force",
        "-c user.name=a -c user.email=a@example.com commit --quiet --message ComfyUI",
        f"tag v{container.COMFYUI}",
    ):
        subprocess.run(["git", *command.split()], cwd=folder, check=True)
    return folder


def assert_is_edit(data: bytes) -> None:
    """Expect the example photo with another content under its mask."""
    before = Image.open(EXAMPLES / "coffee.png").convert("RGB")
    after = Image.open(io.BytesIO(data)).convert("RGB")
    mask = Image.open(EXAMPLES / "coffee_mask.png").convert("L")
    change = ImageChops.difference(before, after).convert("L").getbbox()
    left, top, right, bottom = mask.getbbox() or (0, 0, 0, 0)
    assert change
    # The rim of the mask is faded over some pixels.
    assert change[0] >= left - 64 and change[1] >= top - 64
    assert change[2] <= right + 64 and change[3] <= bottom + 64
    assert (right - left) // 2 < change[2] - change[0]


WORKER = """
import asyncio, sys
from pathlib import Path

import modal_comfy
from artmancer.gateway import comfy_process
from artmancer.gateway.fetch import Fetcher
from artmancer.gateway.jobs import JobRecord
from artmancer.gateway.settings import Settings
from artmancer.gateway.workflows import WorkflowFolder
from artmancer.hosting import container, model_volume
from artmancer.hosting.modal_jobs import make_order
from artmancer.hosting.shared import SharedUploadStore
from artmancer.hosting.worker import Worker


class Memory(dict):
    async def get(self, key):
        return super().get(key)

    async def put(self, key, value):
        self[key] = value


async def nothing():
    pass


async def main(root, port, photo, mask, result):
    folder = root / "worker"
    paths = root / "extra_model_paths.yaml"
    paths.write_text(model_volume.PATHS.format(root=root / "checkpoints"))
    start = comfy_process.command(port, folder, base=None, cpu=True)
    start += ["--extra-model-paths-config", str(paths), *container.COMFYUI_ARGUMENTS]
    memory = Memory()
    worker = Worker(
        "heavy", memory, start, port, folder, root / "results",
        fetcher=Fetcher([], 0), sync=nothing, on_dead=nothing,
    )
    worker.prepare()
    await worker.start()
    uploads = SharedUploadStore(root / "pictures", memory)
    inputs = {
        "prompt": "remove the spoon",
        "input_image": await uploads.keep(photo.read_bytes(), "photo"),
        "mask_image": await uploads.keep(mask.read_bytes(), "mask"),
    }
    workflow = WorkflowFolder(Settings(_env_file=None).workflows).get("generate")
    record = JobRecord.create(workflow, "heavy", inputs)
    order = make_order(record, workflow.with_inputs(inputs, record.results), False)
    memory[f"call:{record.id}"] = "fc-1"
    outcome = await worker.run(order, "fc-1")
    await worker.stop()
    assert "error" not in outcome, outcome
    result.write_bytes(outcome["images"]["image"][0])


root, port, *files = sys.argv[1:]
asyncio.run(main(Path(root), int(port), *map(Path, files)))
"""
"""A worker as modal_comfy.py makes it, with a CPU, that runs one order."""


def test_a_worker_in_modals_image_edits_a_photo(repository: Path, tmp_path: Path) -> None:
    server = ModalServer()
    deployed = server.modal("deploy", "modal_comfy.py")
    assert deployed.returncode == 0, deployed.stdout + deployed.stderr
    layers = [request.image.dockerfile_commands for request in server.requests["ImageGetOrCreate"]]
    # All layers but Modal's own base.
    steps = [step for layer in layers if layer[0] == "FROM base" for step in layer]
    image = ImageFolder(tmp_path / "image", repository)
    image.build(steps)
    for mount in server.requests["MountGetOrCreate"]:
        for file in mount.files:
            _add_file(image, file.filename)
    # Modal brings its client, with packages of its own that come last.
    client = importlib.metadata.version("modal")
    folder = image.root / "pkg"
    image.shell(f"uv pip install --quiet --target {folder} modal=={client}")
    (image.packages / "modal_client.pth").write_text(str(folder))
    script, result = tmp_path / "worker.py", tmp_path / "result.png"
    script.write_text(WORKER)
    arguments = [
        *(script, image.root / "root", free_port()),
        *(EXAMPLES / "coffee.png", EXAMPLES / "coffee_mask.png", result),
    ]
    image.folder = image.root / "root"
    # Modal puts this folder on the path.
    image.environment["PYTHONPATH"] = str(image.folder)
    image.shell(shlex.join(["python", *map(str, arguments)]))
    assert_is_edit(result.read_bytes())


def _add_file(image: ImageFolder, name: str) -> None:
    """Copy a file that `modal deploy` uploaded to its place in the image."""
    for folder in (container.PACK, "/root"):
        source = ROOT / name.removeprefix(f"{folder}/")
        if name.startswith(f"{folder}/") and source.is_file():
            target = Path(image.inside(name))
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
            return


@pytest.fixture
def docker_gateway(repository: Path, tmp_path: Path) -> Iterator[httpx.Client]:
    """The command of the Docker image, with one ComfyUI, on a CPU."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    steps = [line for line in text.splitlines() if line and not line.startswith("#")]
    image = ImageFolder(tmp_path / "image", repository)
    image.build(steps)
    port = free_port()
    comfyui = f"http://127.0.0.1:{free_port()}"
    options = ["--cpu", "--host", "127.0.0.1", "--port", str(port), "--comfyui-url", comfyui]
    with (tmp_path / "gateway.log").open("wb") as log:
        process = subprocess.Popen(
            [*image.command, *options],
            cwd=image.folder,
            env={**image.environment, "COMFYUI_LIGHT_URL": comfyui},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        with httpx.Client(base_url=address, timeout=WAIT_TIMEOUT, trust_env=False) as http:
            yield http
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def test_the_command_of_the_docker_image_edits_a_photo(docker_gateway: httpx.Client) -> None:
    def is_healthy() -> bool:
        try:
            return bool(docker_gateway.get("/api/health").json()["status"] == "healthy")
        except httpx.TransportError:
            return False

    until(is_healthy)
    answer = docker_gateway.post("/api/generate", json=removal())
    assert answer.status_code == 200, answer.text
    assert answer.json()["model_used"] == "draft/removal"
    assert_is_edit(base64.b64decode(answer.json()["image"]))
