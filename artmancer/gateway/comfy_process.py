"""A ComfyUI of the gateway's own: started on loopback, and started again when it dies."""

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

_PAUSE = 1.0
_GRACE = 10.0


def command(port: int, folder: Path, *, base: Path | None, cpu: bool) -> list[str]:
    """What starts a ComfyUI that only this machine can reach.

    Parameters
    ----------
    folder : its own, for what must not be shared with another ComfyUI:
        temporary files and the database
    base : where its models, input and custom_nodes are; None: in its own folder
    cpu : leave the GPU to others
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
        *("--temp-directory", str(folder), "--database-url", "sqlite:///:memory:"),
        *(["--base-directory", str(base)] if base else []),
        *(["--cpu"] if cpu else []),
    ]


async def keep_running(start: list[str], port: int, folder: Path) -> None:
    """Keep it running until cancelled; it ends with the gateway.

    One that a gateway before left behind when it was killed is not started again, for it may have
    jobs of ours.

    Parameters
    ----------
    folder : where its log is kept, and its process id
    """
    environment = {
        **{key: value for key, value in dotenv_values(".env").items() if value},
        **os.environ,
    }
    log, written = folder / "comfyui.log", folder / "comfyui.pid"
    try:
        while True:
            while await _answers(port):
                await asyncio.sleep(_PAUSE)
            logger.info("Starting ComfyUI on port %d; its log is %s", port, log)
            with log.open("ab") as output:
                process = await asyncio.create_subprocess_exec(
                    *start,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=environment,
                    # Ctrl-C is for the gateway, which then ends it in order
                    start_new_session=True,
                )
            written.write_text(str(process.pid))
            code = await process.wait()
            written.unlink()
            logger.warning("ComfyUI ended with %d, and is started again; %s says why.", code, log)
            await asyncio.sleep(_PAUSE)
    finally:
        if written.is_file():
            await _stop(int(written.read_text()), folder)
            written.unlink()


async def _answers(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


async def _stop(process_id: int, folder: Path) -> None:
    """End the ComfyUI of this folder, by force where it takes its time. It need not be a child of
    this process; where it died with a gateway before, another program may have its id by now.
    """
    import psutil

    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        process = psutil.Process(process_id)
        if str(folder) not in process.cmdline():
            return
        process.terminate()
        for _ in range(int(_GRACE / 0.1)):
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                return
            await asyncio.sleep(0.1)
        process.kill()
