"""Results of a client's requests: the status of a job, and the result of an edit."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class JobStatus:
    """The state and the progress of a job.

    Attributes
    ----------
    state : "queued", "loading_pipeline", "processing", "done", "error" or "cancelled"
    progress : 0..1
    step : denoising steps that are done
    steps : denoising steps in all
    message : the current stage
    error : the reason, where the job failed
    position : position in the queue, 1 = next
    """

    state: str
    progress: float
    step: int
    steps: int
    message: str | None
    error: str | None
    position: int | None

    @property
    def ended(self) -> bool:
        """True once the job is done, has failed, or is cancelled."""
        return self.state in ("done", "error", "cancelled")


@dataclass(frozen=True)
class EditResponse:
    """The result of an edit.

    Attributes
    ----------
    task_id : the job's id
    image : bytes of a PNG
    seconds : seconds for which the job ran
    model : the editor's name, for example "draft/removal"
    parameters : the parameters of the edit, including the seed
    report : the report on the edit; see report.Report
    """

    task_id: str
    image: bytes
    seconds: float
    model: str
    parameters: dict[str, Any]
    report: dict[str, Any]

    def save(self, path: str | Path, *, strip: bool = False) -> None:
        """Write the image to a file, all of it or nothing. The suffix names the format: a .png gets
        the bytes as they are; .jpg, .webp, .bmp and .tiff get what these formats can hold of it.

        Parameters
        ----------
        strip : leave out EXIF, XMP and IPTC, which say when, where and by whom the photo was taken

        Raises
        ------
        ArtMancerError : invalid_request where the suffix is unknown or the file cannot be written,
            not_found where its folder does not exist
        """
        # Imports numpy and Pillow, which a program that never saves does not need.
        from .. import images

        path = Path(path)
        with images.whole_file(path) as partial:
            file_format = images.SUFFIXES[path.suffix.lower()]
            if file_format == "PNG" and not strip:
                partial.write_bytes(self.image)
                return
            picture = images.read(self.image)
            picture = picture.stripped() if strip else picture
            partial.write_bytes(images.encode(picture, file_format))
