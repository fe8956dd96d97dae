"""`artmancer batch`: edit many photos, and go on where the last run stopped."""

import argparse
import copy
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NoReturn

from .. import images
from ..batch.photos import DEFAULT_MASK_PATTERN, IMAGE_FIELDS, Photo, read_photos
from ..errors import ArtMancerError
from . import edit
from .arguments import Parser, Subparsers, whole_number, write_line

if TYPE_CHECKING:
    from ..batch.results_file import Entry, ResultsFile
    from ..batch.run import Run, Tally, Worker

OBJECT, NO_MASKS = "object", "none"
"""Values of --masks besides a pattern."""

MAX_JOBS = 64
"""Largest value of --jobs."""

DEFAULT_JOBS = 4
"""Photos that a gateway gets at a time."""

EXAMPLES = """\
examples:
  artmancer batch photos -o edited --task removal
  artmancer batch photos -o balanced --task white-balance
  artmancer batch list.csv -o edited --server http://127.0.0.1:8003

The masks of a folder are beside the photos: sofa.jpg has sofa_mask.png. A row of a CSV, or a line
of a JSONL file, has fields of POST /api/generate, such as input_image, mask_image, prompt and seed;
images are paths relative to the list, or URLs. Run the command again, and it edits what is missing,
changed or failed.
"""

FIELD_OPTIONS = {
    "task_type": "--task",
    "prompt": "--prompt",
    "negative_prompt": "--negative",
    "seed": "--seed",
    "num_inference_steps": "--steps",
    "true_cfg_scale": "--cfg",
    "guidance_scale": "--cfg",
    "editor": "--editor",
    "recipe": "--recipe",
    "frame": "--frame",
    "condition_size": "--condition-size",
    "context": "--context",
    "resolution": "--resolution",
    "regions": "--regions",
    "grow": "--grow",
    "feather": "--feather",
    "strength": "--strength",
    "transfer": "--transfer",
}
"""The option for each field of a row that has a value. The last four are not fields over HTTP."""

FLAGS = ("fill_holes", "widen", "match_grain")
"""Fields of a row that are true or false, and the names of their options."""

_IMAGE_OPTIONS = dict(
    zip(IMAGE_FIELDS, ("image", "mask", "reference", "reference_mask"), strict=True)
)
"""The name of the option for each field that is an image."""

_TRUE, _FALSE = ("true", "yes", "1"), ("false", "no", "0")

_NOT_OF_THE_EDIT = {
    *("source", "output", "masks", "format", "jobs", "sort", "server", "token", "json"),
    *("comfyui_url", "comfyui_base", "cpu", "run", "error", "max_containers", "price"),
    *_IMAGE_OPTIONS.values(),
}
"""Names in a namespace on which the pixels of a result do not depend. Images are compared by their
content.
"""


def add_parser(commands: Subparsers) -> None:
    """Add `artmancer batch` to the parser."""
    parser = commands.add_parser(
        "batch",
        help="edit many photos",
        description="Edit the photos of a folder, a CSV or a JSONL file. The results are in "
        "OUT/edited; OUT/index.html shows them, and OUT/results.jsonl has a line for each.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "source", type=Path, metavar="INPUT", help="a folder, a .csv or a .jsonl file"
    )
    parser.add_argument(
        "--server", metavar="URL", help="edit on this gateway (default: on this machine)"
    )
    parser.add_argument("--token", help="the gateway's token (default: $ARTMANCER_API_TOKEN)")
    parser.add_argument(
        "--jobs",
        type=whole_number(1, MAX_JOBS),
        help=f"with --server: photos edited at a time (default {DEFAULT_JOBS})",
    )
    add_options(parser)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that do not depend on where the photos are edited."""
    parser.add_argument(
        "-o", "--output", required=True, type=Path, metavar="OUT", help="the folder of results"
    )
    parser.add_argument(
        "--masks",
        metavar="PATTERN",
        help="the file name of a photo's mask beside it, with {stem} for the photo's name; object: "
        f"find the main object of each photo; none (default: {DEFAULT_MASK_PATTERN}; none for "
        "white balance)",
    )
    parser.add_argument(
        "--format",
        choices=[suffix.lstrip(".") for suffix in images.SUFFIXES],
        default="png",
        help="file format of the results (default: png, which keeps every pixel exactly)",
    )
    parser.add_argument(
        "--sort",
        choices=("links", "column"),
        default="links",
        help="links: OUT/good, OUT/look and OUT/failed have links to the results; column: the "
        "verdict is in results.jsonl and index.html only",
    )
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    edit.add_references(parser)
    edit.add_options(parser, variant_required=False)
    # Not the command's own default: a gateway has another.
    parser.set_defaults(editor=None)


class _RowParser(Parser):
    """A parser of a row's options. A mistake is the row's, and does not end the process."""

    def error(self, message: str) -> NoReturn:
        raise ArtMancerError("invalid_request", message)


def _row_parser() -> argparse.ArgumentParser:
    parser = _RowParser(add_help=False)
    edit.add_options(parser, variant_required=False)
    return parser


class PhotoOptions:
    """Make the options of each photo from those of the command and from the photo's row."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._parser = _row_parser()

    def of(self, photo: Photo, paths: Mapping[str, Path] | None = None) -> argparse.Namespace:
        """Return a photo's options, as `artmancer edit` has them.

        Parameters
        ----------
        paths : the file of each image, by field; None: they are not needed yet

        Raises
        ------
        ArtMancerError : invalid_request; mask_missing
        """
        options = copy.copy(self._options)
        options.output = self._options.output / photo.output
        arguments = []
        for name, value in photo.fields.items():
            if name in FLAGS:
                setattr(options, name, _flag(name, value))
            elif name == "mask_tool_type":
                options.brush_mask = value == "brush"
            elif name in FIELD_OPTIONS:
                arguments.append(f"{FIELD_OPTIONS[name]}={value}")
            elif name not in IMAGE_FIELDS:
                raise _unknown_field(name)
        self._parser.parse_args(arguments, options)
        options.image = options.mask = options.reference = options.reference_mask = None
        for name, path in (paths or {}).items():
            setattr(options, _IMAGE_OPTIONS[name], path)
        if options.variant is None:
            has_mask = "mask_image" in photo.fields or options.masks == OBJECT
            masked = "removal" if has_mask else "white_balance"
            options.variant = "insertion" if "reference_image" in photo.fields else masked
        if paths is not None:
            _check_mask(options, photo)
        return options

    def parameters(self, photo: Photo) -> dict[str, Any]:
        """Return what a photo's result depends on besides its images, as JSON has it."""
        options = self.of(photo)
        values = {
            name: str(value) if isinstance(value, Path) else value
            for name, value in vars(options).items()
            if name not in _NOT_OF_THE_EDIT and value is not None
        }
        masks = {"masks": OBJECT} if finds_object(options, photo) else {}
        return {**values, **masks, "output": str(photo.output)}


def _mask_pattern(options: argparse.Namespace) -> str | None:
    """Return the file name of a photo's mask in a folder; None: the photos have none there."""
    if options.masks in (OBJECT, NO_MASKS) or (
        options.masks is None and options.variant == "white_balance"
    ):
        return None
    return str(options.masks or DEFAULT_MASK_PATTERN)


def _check_mask(options: argparse.Namespace, photo: Photo) -> None:
    """Refuse a photo without the mask that its edit needs.

    Raises
    ------
    ArtMancerError : mask_missing
    """
    if options.variant == "white_balance" or finds_object(options, photo):
        return
    if "mask_image" in photo.fields:
        return
    if not options.source.is_dir():
        missing = "its row has no mask_image; add one"
    elif pattern := _mask_pattern(options):
        path = PurePosixPath(photo.name)
        name = pattern.format(stem=path.stem)
        missing = f"there is no '{name}' beside '{path.name}'; add it, or give another --masks"
    else:
        missing = "--masks is none; leave it out, or give a file name"
    raise ArtMancerError(
        "mask_missing",
        f"A mask is needed for {options.variant}, and {missing} (--masks object: the main object "
        "of each photo).",
    )


def finds_object(options: argparse.Namespace, photo: Photo) -> bool:
    """Tell whether a photo's mask is its main object."""
    return bool(options.masks == OBJECT and "mask_image" not in photo.fields)


def _flag(name: str, value: Any) -> bool:
    text = str(value).lower()
    if text not in (*_TRUE, *_FALSE):
        raise ArtMancerError(
            "invalid_request", f"{name} is '{value}'; expected true or false. Correct the row."
        )
    return text in _TRUE


def _unknown_field(name: str) -> ArtMancerError:
    known = sorted((*FIELD_OPTIONS, *FLAGS, *IMAGE_FIELDS, "mask_tool_type"))
    return ArtMancerError(
        "invalid_request",
        f"There is no field '{name}'; expected one of {', '.join(known)}. Rename or remove it.",
    )


def run(options: argparse.Namespace) -> int:
    """Edit all photos that are missing, changed or failed, here or on a gateway."""
    from .batch_workers import make_worker

    photo_options = PhotoOptions(options)
    return edit_photos(options, photo_options, make_worker(options, photo_options))


def edit_photos(
    options: argparse.Namespace,
    photo_options: PhotoOptions,
    worker: "Worker",
    announce: "Callable[[list[Photo], ResultsFile], None] | None" = None,
) -> int:
    """Edit all photos that are missing, changed or failed; return the exit code.

    Parameters
    ----------
    announce : called with all photos and the results of earlier runs before the first edit
    """
    pattern = _mask_pattern(options)
    shared = {
        name: str(path)
        for name, option in _IMAGE_OPTIONS.items()
        if name.startswith("reference") and (path := vars(options)[option])
    }
    photos = [
        replace(photo, fields={**shared, **photo.fields})
        for photo in read_photos(options.source, options.output, pattern, f".{options.format}")
    ]
    if not photos:
        raise ArtMancerError(
            "not_found",
            f"There is no photo in '{options.source}'. Expected files that end in "
            f"{', '.join(images.PHOTO_SUFFIXES)}.",
        )

    from ..batch.results_file import ResultsFile, locked

    with locked(options.output) as work:
        results = ResultsFile(options.output)
        if announce:
            announce(photos, results)
        tally = _run(options, photos, results, work, photo_options, worker)
    if tally.left:
        return 130
    return 1 if tally.errors else 0


def _run(
    options: argparse.Namespace,
    photos: list[Photo],
    results: "ResultsFile",
    work: Path,
    photo_options: PhotoOptions,
    worker: "Worker",
) -> "Tally":
    from tqdm.contrib.logging import logging_redirect_tqdm

    from ..batch.gallery import write_gallery
    from ..batch.results_file import RunEnded, storing
    from ..batch.run import Run

    progress = _Progress(len(photos), hidden=options.json)
    batch = Run(worker, results, work, photo_options.parameters, progress.show)
    start = time.monotonic()
    with logging_redirect_tqdm(), progress, _interruptible(batch):
        batch.edit(photos)
    seconds = time.monotonic() - start
    entries = [results.entries[photo.name] for photo in photos if photo.name in results.entries]
    try:
        with storing(options.output):
            results.drop_old_lines()
            if options.sort == "links":
                _sort(options.output, entries)
            gallery = write_gallery(options.output, work, entries)
    except RunEnded as ended:
        raise ended.reason from None
    _write_summary(batch.tally, seconds, gallery, options)
    return batch.tally


@contextmanager
def _interruptible(batch: "Run") -> Iterator[None]:
    """Let the first Ctrl-C finish the edits that run, and the second end them."""

    def on_interrupt(*_: object) -> None:
        sys.stderr.write(
            "\nartmancer: stopping after the photos that are being edited. Ctrl-C again stops at "
            "once.\n"
        )
        batch.stop()

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _sort(folder: Path, entries: "list[Entry]") -> None:
    from ..batch.sorting import FAILED, sort_into_folders

    links: list[tuple[PurePosixPath, str, Path]] = []
    for entry in entries:
        output = PurePosixPath(entry["output"])
        # Without the folder of all results.
        name = output.relative_to(output.parts[0])
        if entry["status"] == "done":
            links.append((name, entry["verdict"], folder / output))
        elif (photo := entry["inputs"].get("input_image")) and Path(photo["path"]).is_file():
            source = Path(photo["path"])
            links.append((name.with_suffix(source.suffix), FAILED, source))
    sort_into_folders(folder, links)


def _write_summary(
    tally: "Tally", seconds: float, gallery: Path, options: argparse.Namespace
) -> None:
    edited = sum(tally.counts.values())
    summary = {
        "photos": edited + tally.errors + tally.current + tally.left,
        "edited": edited,
        "verdicts": tally.counts,
        "errors": tally.errors,
        "unchanged": tally.current,
        "left": tally.left,
        "seconds": round(seconds, 3),
        "edit_seconds": round(tally.edit_seconds, 3),
        "gallery": str(gallery),
    }
    if options.json:
        write_line(json.dumps(summary))
        return
    verdicts = ", ".join(f"{count} {name}" for name, count in sorted(tally.counts.items()))
    parts = [f"{edited} edited ({verdicts})" if edited else "none edited"]
    if tally.errors:
        parts.append(f"{tally.errors} could not be edited")
    if tally.current:
        parts.append(f"{tally.current} unchanged")
    if tally.left:
        parts.append(f"{tally.left} left: run the command again to go on")
    write_line(f"{summary['photos']} photos: {', '.join(parts)}. See {gallery}")


class _Progress:
    """A progress bar on a terminal; elsewhere a line for each photo.

    Parameters
    ----------
    total : photos of the run
    hidden : show nothing
    """

    def __init__(self, total: int, *, hidden: bool) -> None:
        from tqdm import tqdm

        self._total = total
        self._is_terminal = sys.stderr.isatty()
        self._hidden = hidden
        self._start = time.monotonic()
        self._bar = tqdm(
            total=total,
            disable=hidden or not self._is_terminal,
            bar_format="{n_fmt}/{total_fmt} {bar} {postfix}",
            leave=False,
        )

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def show(self, entry: "Entry | None", tally: "Tally") -> None:
        """Show that a photo is done; None: that it was done before."""
        edited = sum(tally.counts.values()) + tally.errors
        done = edited + tally.current
        self._bar.update()
        if entry is None or self._hidden:
            return
        if not self._is_terminal:
            outcome = entry["verdict"] or f"not edited. {entry['error']['detail']}"
            reasons = " ".join(entry["verdict_reasons"])
            write_line(f"{done}/{self._total} {entry['photo']}: {outcome} {reasons}".rstrip())
            return
        rate = edited / (time.monotonic() - self._start)
        left = self._bar.format_interval((self._total - done) / rate)
        self._bar.set_postfix_str(f"{60 * rate:.1f} photos a minute, {left} left")
