"""PatchMatch in its own process: cancelling, interrupts, and what is left behind."""

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
def test_a_fill_that_is_cancelled_leaves_no_process() -> None:
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


INTERRUPTED = """
import os, subprocess, torch
from artmancer import fill

fork, processes = subprocess._fork_exec, []

def fork_and_interrupt(*arguments):
    processes.append(fork(*arguments))
    raise KeyboardInterrupt  # as the signal does when it arrives inside Popen

subprocess._fork_exec = fork_and_interrupt
photo, mask = torch.rand(1, 1400, 1400, 3), torch.zeros(1, 1400, 1400)
mask[:, 200:1200, 200:1200] = 1
try:
    fill.fill(photo, mask, 0, lambda *_: None)
except KeyboardInterrupt:
    _, status = os.waitpid(processes[0], 0)
    print("ended", os.waitstatus_to_exitcode(status))
"""
"""Interrupts a fill between the start of its process and the return of Popen."""


@needs_patchmatch
@pytest.mark.skipif(not hasattr(subprocess, "_fork_exec"), reason="another Python or system")
def test_an_interrupt_while_the_process_starts_ends_it() -> None:
    answer = subprocess.run(
        [sys.executable, "-c", INTERRUPTED],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout == "ended 1\n", "it did not run to its end, which would be 0"


@needs_patchmatch
def test_a_patchmatch_without_its_native_part_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    import patchmatch

    assert fill.method() == "patchmatch"
    monkeypatch.setattr(patchmatch, "patchmatch_available", False)
    assert fill.method() == "telea"
