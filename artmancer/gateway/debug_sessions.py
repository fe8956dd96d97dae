"""Debug sessions: a folder for each recorded job, with its images, results and parameters."""

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
from ..images import NAMES
from .jobs import Job

_SESSION_NAME = re.compile(r"\d{8}-\d{6}-[0-9a-f]{8}")
"""Names of sessions: local date and time, and the first part of the job's id."""

_IMAGE_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9_-]{{0,80}}\.({'|'.join(NAMES)})")
"""File names of the images in a session."""

_PARAMETERS = "parameters.json"
"""File of a session with all that is not an image."""


class DebugSessions:
    """The folder of debug sessions.

    Security: a name that a client sent is used only if it matches a pattern, and symbolic links are
    not followed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(
        self, job: Job, uploads: Mapping[str, Path], results: Mapping[str, list[Path]]
    ) -> None:
        """Record a job that has ended.

        Parameters
        ----------
        uploads : image files among its inputs, by input name
        results : image files among its results, by result name
        """
        created = time.strftime("%Y%m%d-%H%M%S")
        session = self.folder / f"{created}-{job.id[:8]}"
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
        names = [
            entry.name
            for entry in os.scandir(self.folder)
            if entry.is_dir(follow_symlinks=False) and _SESSION_NAME.fullmatch(entry.name)
        ]
        return sorted(names, reverse=True)

    def describe(self, name: str) -> dict[str, Any]:
        """Return a session's name, time of creation, file names and size in bytes.

        Raises
        ------
        ArtMancerError : not_found
        """
        session = self._session(name)
        files = self._files(session)
        return {
            "name": name,
            "created": session.stat().st_mtime,
            "files": [file.name for file in files],
            "bytes": sum(file.stat().st_size for file in files),
        }

    def parameters(self, name: str) -> dict[str, Any]:
        """Return a session's parameters.

        Raises
        ------
        ArtMancerError : not_found
        """
        path = self._session(name) / _PARAMETERS
        if path.is_symlink() or not path.is_file():
            return {}
        parameters: dict[str, Any] = json.loads(path.read_text())
        return parameters

    def image_path(self, name: str, file: str) -> Path:
        """Return an image file of a session.

        Raises
        ------
        ArtMancerError : not_found
        """
        path = self._session(name) / file
        if not _IMAGE_NAME.fullmatch(file) or path.is_symlink() or not path.is_file():
            raise ArtMancerError(
                "not_found",
                "The session has no image with this name. GET /api/debug/sessions/NAME lists its "
                "files.",
            )
        return path

    def as_zip(self, name: str) -> bytes:
        """Return a ZIP file with all files of a session.

        Raises
        ------
        ArtMancerError : not_found
        """
        session = self._session(name)
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for file in self._files(session):
                archive.write(file, f"{name}/{file.name}")
        return buffer.getvalue()

    def clean(self, keep: int) -> int:
        """Remove all sessions except the newest; return how many were removed.

        Parameters
        ----------
        keep : number of sessions that stay
        """
        names = self.names()[keep:]
        for name in names:
            rmtree(self.folder / name)
        return len(names)

    def _session(self, name: str) -> Path:
        """Return the folder of a session, or raise not_found."""
        session = self.folder / name
        if not _SESSION_NAME.fullmatch(name) or session.is_symlink() or not session.is_dir():
            raise ArtMancerError(
                "not_found",
                "There is no debug session with this name. GET /api/debug/sessions lists them.",
            )
        return session

    def _files(self, session: Path) -> list[Path]:
        return sorted(
            Path(entry) for entry in os.scandir(session) if entry.is_file(follow_symlinks=False)
        )
