"""A ComfyUI as a process of the gateway: it listens on loopback and is restarted when it exits."""

import asyncio
import logging
import os
import sys
from contextlib import suppress
from pathlib import Path

from dotenv import dotenv_values

from ..errors import ArtMancerError
from ..folders import comfyui_folder

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


async def keep_running(start: list[str], port: int, folder: Path) -> None:
    """Keep a ComfyUI running until cancelled, then stop it.

    A ComfyUI that an earlier gateway left behind when it was killed is used as it is: it may still
    run this gateway's jobs. It is stopped at the end, too.

    Parameters
    ----------
    start : from `command`
    folder : folder for its log and its process id
    """
    dotenv = {key: value for key, value in dotenv_values(".env").items() if value}
    environment = {**dotenv, **os.environ}
    log = folder / "comfyui.log"
    pid_file = folder / "comfyui.pid"
    try:
        while True:
            while await _answers(port):
                await asyncio.sleep(_PAUSE_SECONDS)
            logger.info("Starting ComfyUI on port %d; its log is %s", port, log)
            with log.open("ab") as output:
                process = await asyncio.create_subprocess_exec(
                    *start,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=environment,
                    # Ctrl-C reaches only the gateway, which then stops ComfyUI.
                    start_new_session=True,
                )
            pid_file.write_text(str(process.pid))
            code = await process.wait()
            pid_file.unlink()
            logger.warning("ComfyUI exited with code %d and is restarted; see %s", code, log)
            await asyncio.sleep(_PAUSE_SECONDS)
    finally:
        if pid_file.is_file():
            await _stop(int(pid_file.read_text()), folder)
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
