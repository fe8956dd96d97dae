from collections.abc import Callable, Iterator

import pytest
from comfyui import ComfyUI
from places import EXAMPLES
from torch import Tensor

from artmancer import images
from artmancer.doctor import comfyui_folder


@pytest.fixture(scope="session")
def example() -> Callable[[str], Tensor]:
    """An example photo as an IMAGE, or, where its name ends in _mask, a MASK."""

    def load(name: str) -> Tensor:
        path = EXAMPLES / f"{name}.png"
        return images.load_mask(path) if name.endswith("_mask") else images.load(path).image

    return load


@pytest.fixture(scope="session")
def comfyui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyUI]:
    """A running ComfyUI with the pack, on a free loopback port."""
    if not (comfyui_folder() / "main.py").is_file():
        pytest.skip(f"no ComfyUI in {comfyui_folder()}, and none could be installed (set COMFYUI_PATH)")
    server = ComfyUI(tmp_path_factory.mktemp("comfyui"))
    try:
        server.wait()
        yield server
    finally:
        server.stop()
