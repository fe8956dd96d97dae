"""The folder of result files, one subfolder for each job."""

import asyncio
import json
import logging
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from shutil import rmtree
from typing import Any

from .. import images
from ..errors import ArtMancerError
from .disk import disk_errors
from .jobs import Job, JobRecord
from .runner import Outputs

_logger = logging.getLogger(__name__)

RESULTS = "results"
"""Name of the folder of results, in the folder of the gateway's data."""

_JOB_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def result_name(name: str, index: int) -> str:
    """Return the file name of the image with this index in a result."""
    return f"{name}-{index}.png"


class ResultFolder:
    """Result files on this machine's disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def write(
        self,
        job_id: str,
        images: Mapping[str, Sequence[bytes | None]],
        values: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Write a job's results.

        Parameters
        ----------
        images : PNG files by result name; None is not written, and fetched when it is needed
        values : texts, numbers or booleans by result name

        Returns
        -------
        Job.outputs
        """
        folder = self.folder / job_id
        self.folder.mkdir(exist_ok=True)
        folder.mkdir(exist_ok=True)
        outputs: dict[str, Any] = {name: {"value": value} for name, value in values.items()}
        for name, files in images.items():
            names = [result_name(name, index) for index in range(len(files))]
            for file, data in zip(names, files, strict=True):
                if data is not None:
                    (folder / file).write_bytes(data)
            outputs[name] = {"pictures": names}
        return outputs

    def paths(self, job: Job, name: str) -> list[Path]:
        """Return the files of an image result."""
        return [self.folder / job.id / file for file in job.result_files(name)]

    def remove(self, job_ids: Iterable[str]) -> None:
        """Remove the results of these jobs."""
        for job_id in job_ids:
            rmtree(self.folder / job_id, ignore_errors=True)

    def remove_orphans(self, known: Collection[str]) -> None:
        """Remove the results of jobs that are not known; other files stay."""
        self.remove(
            entry.name
            for entry in self.folder.iterdir()
            if _JOB_ID.fullmatch(entry.name) and entry.name not in known
        )


async def finished(record: JobRecord, uploads: Mapping[str, Path], outputs: Outputs) -> Outputs:
    """Return the outputs of a job. Its context may name the input that its image is an edit of: the
    image then gets all that the photo's file holds besides colors, which are all that ComfyUI
    returns.

    Parameters
    ----------
    uploads : the images of the job, by name

    Raises
    ------
    ArtMancerError : invalid_image where the photo is damaged
    """
    field = record.context.get("photo")
    if not field or not outputs.images.get("image"):
        return outputs
    file_format = record.context.get("output", {}).get("format", "png").upper()
    photo = uploads[record.inputs[field]]
    try:
        return await asyncio.to_thread(_finished, photo, outputs, file_format)
    except FileNotFoundError:
        # The photo was deleted while the job ran: the edit stays as ComfyUI returned it.
        return outputs
    except ArtMancerError:
        raise
    # A graph of the operator's may return anything, and the job has to end.
    except Exception as error:
        _logger.exception("The result of job %s could not be finished", record.id)
        raise ArtMancerError(
            "generation_failed",
            f"The result does not fit its photo ({error}). Correct the workflow.",
        ) from None


def _finished(photo: Path, outputs: Outputs, file_format: str) -> Outputs:
    (edited,) = outputs.images["image"]
    data, notes = images.finish(photo.read_bytes(), edited, file_format)
    values = dict(outputs.values)
    if "report" in values:
        report = json.loads(values["report"])
        report["notes"] += notes
        values["report"] = json.dumps(report)
    return Outputs({**outputs.images, "image": [data]}, values)


async def in_format(job: Job, stored: Path) -> Path:
    """Return a file of a job's image in the format that its request wants.

    Parameters
    ----------
    stored : PNG file

    Raises
    ------
    ArtMancerError : as `disk_errors`; invalid_request where the format cannot hold the image
    """
    wanted = job.record.context.get("output")
    if not wanted or wanted["format"] == "png":
        return stored
    path = stored.with_suffix(f".{wanted['format']}")
    if not path.is_file():
        with disk_errors(path.parent):
            tables = images.JpegTables.from_dict(wanted.get("tables"))
            await asyncio.to_thread(images.recode, stored, path, wanted["quality"], tables)
    return path
