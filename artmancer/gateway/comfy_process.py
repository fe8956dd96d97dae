"""A ComfyUI as a process of the gateway: it listens on loopback and is restarted when it exits."""

import asyncio
import logging
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from dotenv import dotenv_values

from ..errors import ArtMancerError
from ..folders import comfyui_folder
from .runner import ComfyStatus

logger = logging.getLogger(__name__)

_PAUSE_SECONDS = 1.0
"""Pause between an exit and the restart, and between two checks for a ComfyUI from before."""

_STOP_SECONDS = 10.0
"""Time to exit after a terminate; then the process is killed."""

_POLL_SECONDS = 0.1
"""Pause between two checks whether a process has exited."""


def command(port: int, folder: Path, *, base: Path | None, cpu: bool) -> list[str]:
    """Return the command that starts a ComfyUI which only this machine can reach.

    Parameters
    ----------
    folder : folder for files that two ComfyUIs must not share: temporary files
    base : folder with its models, input and custom_nodes; None: ComfyUI's own folder
    cpu : run it without a GPU

    Raises
    ------
    ArtMancerError : comfyui_unavailable where there is no ComfyUI
    """
    main = comfyui_folder() / "main.py"
    if not main.is_file():
        raise ArtMancerError(
            "comfyui_unavailable",
            f"There is no ComfyUI in '{main.parent}'. Install one there, or set COMFYUI_PATH.",
        )
    folder.mkdir(parents=True, exist_ok=True)
    return [
        sys.executable,
        str(main),
        *("--listen", "127.0.0.1", "--port", str(port), "--disable-auto-launch"),
        # Two ComfyUIs cannot open one database.
        *("--temp-directory", str(folder), "--database-url", "sqlite:///:memory:"),
        *(["--base-directory", str(base)] if base else []),
        *(["--cpu"] if cpu else []),
    ]


def free_port() -> int:
    """Return a port of this machine that no server listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def started(start: list[str], log: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """Start a ComfyUI, and stop it at the end; it is not restarted.

    Parameters
    ----------
    start : from `command`
    log : file for its output
    """
    with log.open("ab") as output:
        process = await _spawn(start, output)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), _STOP_SECONDS)
            except asyncio.TimeoutError:
                process.kill()
                await process.wait()


async def _spawn(start: list[str], output: BinaryIO) -> asyncio.subprocess.Process:
    dotenv = {key: value for key, value in dotenv_values(".env").items() if value}
    return await asyncio.create_subprocess_exec(
        *start,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        env={**dotenv, **os.environ},
        # Ctrl-C reaches only this process, which then stops ComfyUI.
        start_new_session=True,
    )


class KeptComfyUI:
    """A ComfyUI that is restarted when it exits.

    Parameters
    ----------
    start : from `command`
    folder : folder for its log and its process id
    """

    def __init__(self, start: list[str], port: int, folder: Path) -> None:
        self._start = start
        self._port = port
        self._folder = folder
        self._exit_code: int | None = None

    def absence(self) -> ComfyStatus:
        """Return the state of this ComfyUI while nothing listens on its port."""
        if self._exit_code is None:
            return ComfyStatus(False, "ComfyUI is starting.", starting=True)
        return ComfyStatus(
            False,
            f"ComfyUI exited with code {self._exit_code} and is restarted. Look at its log.",
        )

    async def keep_running(self) -> None:
        """Keep it running until cancelled, then stop it.

        A ComfyUI that an earlier gateway left behind when it was killed is used as it is: it may
        still run this gateway's jobs. It is stopped at the end, too.
        """
        log = self._folder / "comfyui.log"
        pid_file = self._folder / "comfyui.pid"
        try:
            while True:
                while await _answers(self._port):
                    await asyncio.sleep(_PAUSE_SECONDS)
                logger.info("Starting ComfyUI on port %d; its log is %s", self._port, log)
                with log.open("ab") as output:
                    process = await _spawn(self._start, output)
                pid_file.write_text(str(process.pid))
                code = self._exit_code = await process.wait()
                pid_file.unlink()
                logger.warning("ComfyUI exited with code %d and is restarted; see %s", code, log)
                await asyncio.sleep(_PAUSE_SECONDS)
        finally:
            if pid_file.is_file():
                await _stop(int(pid_file.read_text()), self._folder)
                pid_file.unlink()


async def _answers(port: int) -> bool:
    """Tell whether a server listens on a port of this machine."""
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


async def _stop(process_id: int, folder: Path) -> None:
    """Stop the ComfyUI of a folder; kill it if it does not exit in time.

    It need not be a child of this process. If it exited earlier, its process id may belong to
    another program by now, which is left alone.
    """
    import psutil

    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        process = psutil.Process(process_id)
        if str(folder) not in process.cmdline():
            return
        process.terminate()
        for _ in range(int(_STOP_SECONDS / _POLL_SECONDS)):
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                return
            await asyncio.sleep(_POLL_SECONDS)
        process.kill()
