"""Debug sessions: for each recorded job a folder with its inputs, the conditioning images, its
results and its parameters.
"""

import io
import json
import os
import re
import time
import zipfile
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from shutil import copyfile, rmtree
from typing import Any

from ..errors import ArtMancerError
from .jobs import Job

_NAME = re.compile(r"\d{8}-\d{6}-[0-9a-f]{8}")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,80}\.(png|jpeg|webp|bmp|tiff|gif)")
_PARAMETERS = "parameters.json"


class DebugSessions:
    """The folder of debug sessions.

    A name from outside is matched against a pattern before it is used, and links are not followed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(
        self, job: Job, uploads: Mapping[str, Path], results: Mapping[str, list[Path]]
    ) -> None:
        """Record a job that has ended.

        Parameters
        ----------
        uploads : files of the images among its inputs, by input name
        results : files of its results, by name
        """
        session = self.folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{job.id[:8]}"
        session.mkdir(parents=True, exist_ok=True)
        for name, path in uploads.items():
            copyfile(path, session / f"{name}{path.suffix}")
        for path in chain.from_iterable(results.values()):
            copyfile(path, session / path.name)
        record = job.record
        parameters = {
            "request_id": job.id,
            "workflow": job.workflow,
            "state": job.state,
            "error": job.error,
            "parameters": record.context.get("parameters", {}),
            "inputs": {name: value for name, value in record.inputs.items() if name not in uploads},
            "results": {
                name: output["value"]
                for name, output in (job.outputs or {}).items()
                if "value" in output
            },
            "seconds": {
                "waiting": (job.started or record.created) - record.created,
                "running": job.seconds,
            },
        }
        (session / _PARAMETERS).write_text(json.dumps(parameters, indent=2))

    async def refresh(self) -> None:
        """Make sessions visible that other processes have written since."""

    async def publish(self) -> None:
        """Make removals visible to other processes."""

    def names(self) -> list[str]:
        """Return the names of the sessions, the newest first."""
        if not self.folder.is_dir():
            return []
        found = [
            entry.name for entry in os.scandir(self.folder) if entry.is_dir(follow_symlinks=False)
        ]
        return sorted(filter(_NAME.fullmatch, found), reverse=True)

    def describe(self, name: str) -> dict[str, Any]:
        session = self._session(name)
        files = self._files(session)
        return {
            "name": name,
            "created": session.stat().st_mtime,
            "files": [file.name for file in files],
            "bytes": sum(file.stat().st_size for file in files),
        }

    def parameters(self, name: str) -> dict[str, Any]:
        path = self._session(name) / _PARAMETERS
        found: dict[str, Any] = (
            json.loads(path.read_text()) if path.is_file() and not path.is_symlink() else {}
        )
        return found

    def picture(self, name: str, file: str) -> Path:
        path = self._session(name) / file
        if not _FILE.fullmatch(file) or path.is_symlink() or not path.is_file():
            raise ArtMancerError(
                "not_found",
                "The session has no picture of this name. Its list of files says which.",
            )
        return path

    def zipped(self, name: str) -> bytes:
        session, buffer = self._session(name), io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for file in self._files(session):
                archive.write(file, f"{name}/{file.name}")
        return buffer.getvalue()

    def clean(self, keep: int) -> int:
        """Remove all sessions but the newest; return how many were removed."""
        gone = self.names()[keep:]
        for name in gone:
            rmtree(self.folder / name)
        return len(gone)

    def _session(self, name: str) -> Path:
        session = self.folder / name
        if not _NAME.fullmatch(name) or session.is_symlink() or not session.is_dir():
            raise ArtMancerError(
                "not_found",
                "There is no debug session of this name. /api/debug/sessions lists them.",
            )
        return session

    def _files(self, session: Path) -> list[Path]:
        return sorted(
            Path(entry) for entry in os.scandir(session) if entry.is_file(follow_symlinks=False)
        )
