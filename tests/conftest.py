"""Fixtures that tests in several folders share."""

import os

if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    # Before torch is imported: tests that run side by side share the cores.
    threads = max(1, (os.cpu_count() or 1) // int(workers))
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import tiny_qwen
from support.comfyui import ComfyUI
from support.paths import EXAMPLES
from torch import Tensor

from artmancer import images
from artmancer.folders import comfyui_folder

READY = "!!(window.app?.graph && window.LiteGraph?.registered_node_types['ArtMancer_LoadEditor'])"


@pytest.fixture(scope="session")
def example() -> Callable[[str], Tensor]:
    """An example photo as an IMAGE, or, where its name ends in _mask, a MASK."""

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
    """LoRAs for it, with the keys of diffusers, of ai-toolkit, without a prefix,
    and of Lightning.
    """
    made = tmp_path_factory.mktemp("loras")
    styles = ("diffusers", "ai-toolkit", "bare", "lightning")
    return [
        tiny_qwen.save_lora(made / f"{style}.safetensors", tiny_base, style=style, seed=seed)
        for seed, style in enumerate(styles)
    ]


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
    from playwright.sync_api import Error, sync_playwright

    found = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    with sync_playwright() as playwright:
        try:
            chromium = playwright.chromium.launch(executable_path=found, args=quiet)
        except Error as error:
            pytest.skip(f"no Chromium, and none could be installed ({str(error).splitlines()[0]})")
        yield chromium
        chromium.close()


@pytest.fixture
def page(comfyui: ComfyUI, browser: Any) -> Iterator[Any]:
    page = browser.new_page(viewport={"width": 1800, "height": 1000})
    page.goto(comfyui.url)
    page.wait_for_function(READY, timeout=60_000)
    yield page
    page.close()


@pytest.fixture(params=[False, True], ids=["canvas", "vue"])
def vue(page: Any, request: pytest.FixtureRequest) -> bool:
    """Each of ComfyUI's renderers in turn; whether it is the one that draws nodes with Vue."""
    if request.param and not page.evaluate("'vueNodesMode' in window.LiteGraph"):
        pytest.skip("this ComfyUI draws nodes on its canvas alone")
    setting = "window.app.ui.settings.setSettingValueAsync('Comfy.VueNodes.Enabled', vue)"
    page.evaluate(f"(vue) => {setting}", request.param)
    return bool(request.param)
