"""Filling holes by each method, and PatchMatch in its own process: cancel and interrupt leave no
process behind.
"""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from support import tiny_lama
from support.paths import ROOT

from artmancer import fill, lama
from artmancer.errors import ArtMancerError
from artmancer.offload import Offloader
from artmancer.progress import no_progress

needs_patchmatch = pytest.mark.skipif(
    fill.method() != "patchmatch", reason="pypatchmatch has no wheel for this Python"
)


@needs_patchmatch
def test_a_cancelled_fill_leaves_no_process() -> None:
    photo, mask = torch.rand(1, 1400, 1400, 3), torch.zeros(1, 1400, 1400)
    mask[:, 200:1200, 200:1200] = 1
    before = psutil.Process().children()
    stages = []

    def cancel(done: int, total: int, stage: str) -> None:
        stages.append(stage)
        if len(stages) > 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        fill.fill(photo, mask, 0, cancel)
    assert psutil.Process().children() == before


INTERRUPTED_FILL = """
import os, subprocess, torch
from artmancer import fill

fork, processes = subprocess._fork_exec, []

def fork_and_interrupt(*arguments):
    processes.append(fork(*arguments))
    # The signal has the same effect when it arrives inside Popen.
    raise KeyboardInterrupt

subprocess._fork_exec = fork_and_interrupt
photo, mask = torch.rand(1, 1400, 1400, 3), torch.zeros(1, 1400, 1400)
mask[:, 200:1200, 200:1200] = 1
try:
    fill.fill(photo, mask, 0, lambda *_: None)
except KeyboardInterrupt:
    _, status = os.waitpid(processes[0], 0)
    print("ended", os.waitstatus_to_exitcode(status))
"""
"""Script that interrupts a fill between the start of its process and the return of Popen."""


@pytest.mark.slow
@needs_patchmatch
@pytest.mark.skipif(not hasattr(subprocess, "_fork_exec"), reason="no subprocess._fork_exec")
def test_an_interrupt_during_the_start_of_the_process_ends_the_process() -> None:
    process = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_FILL],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert process.stdout == "ended 1\n", "a complete fill would exit with 0"


@needs_patchmatch
def test_patchmatch_without_its_native_library_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    import patchmatch

    assert fill.method() == "patchmatch"
    monkeypatch.setattr(patchmatch, "patchmatch_available", False)
    assert fill.method() == "telea"


@pytest.fixture
def network(tmp_path: Path) -> lama.Lama:
    pytest.importorskip("spandrel")
    with tiny_lama.small():
        return lama.load(tiny_lama.save_state_dict(tmp_path / "lama.pt"), Offloader("cpu"))


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Return two images of an odd size, and their masks: a soft rectangle, and nothing."""
    images = torch.rand(2, 75, 91, 3, generator=torch.Generator().manual_seed(0))
    masks = torch.zeros(2, 75, 91)
    masks[0, 20:50, 30:60] = torch.linspace(0.01, 1, 30)
    return images, masks


@pytest.mark.parametrize("method", fill.METHODS)
def test_every_method_fills_the_hole_and_keeps_every_other_pixel(
    method: str, network: lama.Lama
) -> None:
    images, masks = batch()
    filled = fill.fill(images, masks, 0, no_progress, method=method, lama=network)
    hole = masks > 0
    assert torch.equal(filled[~hole], images[~hole])
    assert (filled[hole] != images[hole]).any(-1).float().mean() > 0.9
    assert filled.min() >= 0 and filled.max() <= 1


def test_auto_is_lama_where_it_is_and_patchmatch_where_not(
    network: lama.Lama, caplog: pytest.LogCaptureFixture
) -> None:
    images, masks = batch()
    by_lama = network.fill(images[0], masks[0] > 0, 0, no_progress)
    assert torch.equal(fill.fill(images, masks, 0, no_progress, lama=network)[0], by_lama)
    without_weights = fill.fill(images, masks, 0, no_progress, method=fill.method())
    caplog.clear()
    assert torch.equal(fill.fill(images, masks, 0, no_progress), without_weights)
    # A user who wanted lama is told why another method fills.
    assert torch.equal(fill.fill(images, masks, 0, no_progress, method="lama"), without_weights)
    assert "LaMa is not installed" in caplog.text and "models fetch big-lama" in caplog.text


@pytest.mark.parametrize(
    ("wanted", "installed", "chosen", "note"),
    [
        ("auto", True, "lama", ""),
        ("lama", True, "lama", ""),
        ("patchmatch", True, "patchmatch", ""),
        ("telea", True, "telea", ""),
        ("auto", False, "patchmatch", ""),
        ("lama", False, "patchmatch", "so PatchMatch filled the hole"),
        ("telea", False, "telea", ""),
    ],
)
def test_the_method_and_its_note(
    monkeypatch: pytest.MonkeyPatch, wanted: str, installed: bool, chosen: str, note: str
) -> None:
    monkeypatch.setattr(fill, "method", lambda: "patchmatch")
    method, text = fill.choose(wanted, installed)
    assert method == chosen
    assert note in text and bool(note) == bool(text)


@pytest.mark.parametrize("wanted", ["auto", "lama", "patchmatch"])
def test_where_opencv_fills_in_the_place_of_patchmatch_the_note_says_that_it_smears(
    monkeypatch: pytest.MonkeyPatch, wanted: str
) -> None:
    monkeypatch.setattr(fill, "method", lambda: "telea")
    chosen, note = fill.choose(wanted, lama_installed=False)
    assert chosen == "telea" and "smears" in note


def test_an_unknown_method_and_a_mask_over_everything_are_refused() -> None:
    images, masks = batch()
    with pytest.raises(ArtMancerError, match="'magic'; expected one of auto, lama"):
        fill.fill(images, masks, 0, no_progress, method="magic")
    with pytest.raises(ArtMancerError, match="covers the whole image"):
        fill.fill(images, torch.ones_like(masks), 0, no_progress)
