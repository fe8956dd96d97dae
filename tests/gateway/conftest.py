"""Gateways with a fake ComfyUI, with a real ComfyUI, and on a fake Modal."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.fake_comfyui import RECORDED
from support.fake_modal import FakeModal
from support.gateway import FakeHost, Served, settings

REAL = pytest.param("real", marks=pytest.mark.comfyui)
UNRELIABLE = pytest.param("unreliable modal", marks=pytest.mark.slow)


@pytest.fixture(scope="session")
def running_fake() -> Iterator[FakeHost]:
    """A fake ComfyUI that all tests share."""
    host = FakeHost()
    yield host
    host.die()


@pytest.fixture
def fake(running_fake: FakeHost) -> Iterator[FakeHost]:
    """The shared fake ComfyUI, without runs of earlier tests."""
    running_fake.fake.released.clear()
    yield running_fake
    running_fake.interrupt_all()


@pytest.fixture(scope="session")
def modal_served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A gateway on a fake Modal, with its workers in separate processes."""
    folder = tmp_path_factory.mktemp("modal")
    with FakeModal(folder) as modal, modal.gateway(folder / "data", debug=True) as served:
        yield served.connected()


@pytest.fixture(scope="session")
def unreliable_modal_served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A gateway on a fake Modal where one request in ten fails, before or after its effect."""
    folder = tmp_path_factory.mktemp("unreliable")
    with (
        FakeModal(folder, share=0.1, seed=16) as modal,
        modal.gateway(folder / "data", debug=True) as served,
    ):
        yield served.connected()


@pytest.fixture(scope="session", params=["fake", REAL, "modal", UNRELIABLE])
def gateway(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """A gateway of each kind, one after the other."""
    if "modal" in request.param:
        yield request.getfixturevalue(f"{request.param.replace(' ', '_')}_served")
        return
    host = request.getfixturevalue("comfyui" if request.param == "real" else "running_fake")
    data = tmp_path_factory.mktemp("gateway")
    with Served(settings(data, comfyui_url=host.url, debug=True)) as served:
        yield served.connected()


@pytest.fixture
def quick(fake: FakeHost, tmp_path: Path) -> Iterator[Served]:
    """A gateway with the fake ComfyUI, without jobs and uploads."""
    with Served(settings(tmp_path / "data", comfyui_url=fake.url)) as served:
        yield served.connected()


@pytest.fixture
def with_sets(
    fake: FakeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[FakeHost, Served]]:
    """A fake ComfyUI with two model sets, and a gateway in front of it."""
    sets = [
        {"name": "fp8", "complete": True, "reason": None},
        {"name": "q4", "complete": False, "reason": "The model set 'q4' needs 'a.gguf'."},
    ]
    editors = [*RECORDED["status"]["editors"], "fp8", "q4"]
    status = {**RECORDED["status"], "editors": editors, "model_sets": sets}
    monkeypatch.setitem(RECORDED, "status", status)
    with Served(settings(tmp_path / "data", comfyui_url=fake.url)) as served:
        yield fake, served.connected()
