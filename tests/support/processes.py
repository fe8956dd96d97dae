"""Processes that start quickly: each is forked from a process that has already imported the code.

Without this, a test that kills servers twenty times would spend its time on imports.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from .paths import ROOT

_METHODS = multiprocessing.get_all_start_methods()
_CONTEXT = multiprocessing.get_context("forkserver" if "forkserver" in _METHODS else "spawn")
if "forkserver" in _METHODS:
    _CONTEXT.set_forkserver_preload(
        [
            "artmancer.cli",
            "artmancer.gateway.serve",
            "artmancer.hosting.worker",
            "support.fake_comfyui",
            "support.fake_modal",
        ]
    )


class ForkedProcess:
    """A process that runs a function of a module, in a session of its own.

    Parameters
    ----------
    function : a function at the top of a module; it runs in the repository's root
    log : file that gets standard output and error
    environment : environment variables to add
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        log: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._setup = (function, arguments, log, dict(environment or {}))
        self.start()

    def start(self) -> None:
        """Start the process, or restart it after its end."""
        self._process = _CONTEXT.Process(target=_run, args=self._setup, daemon=True)
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL the process and all that runs in its session."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        # A process that has just started has no session of its own yet.
        self._process.kill()
        self._process.join()

    def stop(self) -> None:
        """Terminate it and wait for its end."""
        self._process.terminate()
        self._process.join()

    def wait(self) -> None:
        """Wait until it has ended."""
        self._process.join()


def _run(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    log: Path,
    environment: Mapping[str, str],
) -> None:
    os.setsid()
    os.chdir(ROOT)
    with log.open("ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    os.environ.update(environment)
    function(*arguments)
