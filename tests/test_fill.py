"""PatchMatch in its own process: cancel and interrupt leave no process behind."""

import subprocess
import sys

import psutil
import pytest
import torch
from support.paths import ROOT

from artmancer import fill

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
