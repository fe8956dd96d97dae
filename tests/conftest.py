"""Fixtures that tests in several folders share."""

import os

if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    # Test processes share the cores. torch and numba read these variables at their import; numba,
    # which rembg's alpha matting brings, would give torch a thread for each core again.
    threads = max(1, (os.cpu_count() or 1) // int(workers))
    for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ.setdefault(name, str(threads))

import gc
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from support import old_releases, tiny_qwen
from support.comfyui import ComfyUI
from support.editor import TIMEOUT_MS
from support.paths import EXAMPLES
from torch import Tensor

from artmancer import images
from artmancer.folders import comfyui_folder


def pytest_collection_finish() -> None:
    """Keep modules and tests, which live to the end, out of later garbage collections: each looked
    at half a million objects for a third of a second.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def example() -> Callable[[str], Tensor]:
    """A loader of example files: an IMAGE, or a MASK for a name that ends in _mask."""

    def load(name: str) -> Tensor:
        path = EXAMPLES / f"{name}.png"
        return images.load_mask(path) if name.endswith("_mask") else images.load(path).image

    return load


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Qwen-Image-Edit with random weights."""
    pytest.importorskip("diffusers", reason="diffusers 0.42 needs Python 3.11")
    return tiny_qwen.save_base(tmp_path_factory.mktemp("base") / "tiny-qwen")


@pytest.fixture(scope="session")
def loras(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """LoRAs for the tiny base, with the keys of diffusers, of ai-toolkit, without a prefix, and of
    Lightning.
    """
    folder = tmp_path_factory.mktemp("loras")
    styles = ("diffusers", "ai-toolkit", "bare", "lightning")
    return [
        tiny_qwen.save_lora(folder / f"{style}.safetensors", tiny_base, style=style, seed=seed)
        for seed, style in enumerate(styles)
    ]


@pytest.fixture(scope="session")
def spandrel() -> None:
    """Skip the test where spandrel is not installed, which takes two seconds to import."""
    pytest.importorskip("spandrel")


@pytest.fixture(scope="session")
def old_packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with older releases of transformers and diffusers; the test is skipped where no
    registry is at hand. The test processes of a run share it.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "old-packages"
    with FileLock(f"{folder}.lock"):
        if not folder.exists() and (reason := old_releases.install(folder)):
            shutil.rmtree(folder, ignore_errors=True)
            pytest.skip(f"older releases cannot be installed: {reason}")
    return folder


@pytest.fixture(scope="session")
def compiled_rembg(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Compile rembg's alpha matting once for all test processes, where it is installed."""
    with FileLock(tmp_path_factory.getbasetemp().parent / "rembg.lock"), suppress(ImportError):
        # Without onnxruntime, importing rembg ends the process.
        import onnxruntime  # noqa: F401
        import rembg  # noqa: F401


@pytest.fixture(scope="session")
def comfyui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyUI]:
    """A running ComfyUI with the pack, on a free loopback port."""
    if not (comfyui_folder() / "main.py").is_file():
        pytest.skip(
            f"no ComfyUI in {comfyui_folder()}, and none could be installed (set COMFYUI_PATH)"
        )
    server = ComfyUI(tmp_path_factory.mktemp("comfyui"))
    try:
        server.wait()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium; the test is skipped where none can start."""
    from playwright.sync_api import Error, expect, sync_playwright

    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    expect.set_options(timeout=TIMEOUT_MS)
    with sync_playwright() as playwright:
        try:
            chromium = playwright.chromium.launch(executable_path=path, args=options)
        except Error as error:
            pytest.skip(f"no Chromium, and none could be installed ({str(error).splitlines()[0]})")
        yield chromium
        chromium.close()
