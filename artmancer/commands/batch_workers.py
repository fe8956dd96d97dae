"""Edit the photos of `artmancer batch` on this machine, or on a gateway."""

import argparse
import io
import os
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import images
from ..batch.photos import Photo
from ..batch.results_file import RunEnded
from ..batch.run import Edited, Stopped, Worker
from ..client import Client
from ..client.patience import POLL_SECONDS
from ..errors import ArtMancerError
from . import comfyui_edit, edit
from .batch import DEFAULT_JOBS, PhotoOptions, finds_object

if TYPE_CHECKING:
    from torch import Tensor

    from ..editor import Editor
    from ..progress import Progress

_FIELDS = {
    "negative": "negative_prompt",
    "steps": "num_inference_steps",
    "cfg": "true_cfg_scale",
    "editor": "editor",
    "recipe": "recipe",
    "frame": "frame",
    "condition_size": "condition_size",
    "context": "context",
    "resolution": "resolution",
    "regions": "regions",
    "fill_holes": "fill_holes",
    "widen": "widen",
    "match_grain": "match_grain",
}
"""The optional field of POST /api/generate for each option that has one."""

_ONLY_HERE = (
    *("grow", "feather", "strength", "transfer", "base", "variant_file", "acceleration"),
    *("precision", "memory", "keep_background", "no_silhouette", "no_shadow_hint"),
    *("comfyui_url", "comfyui_base", "cpu"),
)
"""Options that a gateway does not have."""

_EDITOR_OPTIONS = (
    *("editor", "variant", "strength", "base", "variant_file", "acceleration"),
    *("precision", "memory"),
)
"""Options on which the editor depends."""


def make_worker(options: argparse.Namespace, photo_options: PhotoOptions) -> Worker:
    """Return the place where the photos are edited."""
    if options.server is None:
        return _Here(photo_options)
    requests = EditRequests(options, photo_options)
    token = options.token or os.environ.get("ARTMANCER_API_TOKEN")
    return _Gateway(requests, Client(options.server, token), options.jobs or DEFAULT_JOBS)


class _Here:
    """Edits on this machine, one at a time. Each editor is loaded once."""

    jobs = 1

    def __init__(self, photo_options: PhotoOptions) -> None:
        self._options = photo_options
        self._editors: dict[tuple[str, ...], Editor] = {}
        self._lock = threading.Lock()
        self._finder = _ObjectFinder()

    def prepare(self, photo: Photo, paths: Mapping[str, Path]) -> Any:
        from ..progress import no_progress

        options = self._options.of(photo, paths)
        options.editor = options.editor or edit.EDITORS[0]
        options.output.parent.mkdir(parents=True, exist_ok=True)
        find = finds_object(options, photo)
        edit.check_inputs(options, mask_follows=find)
        if options.editor not in edit.EDITORS:
            _check_comfyui(options, find)
            return options, None, None, None
        inputs = edit.read_inputs(options)
        if find:
            inputs = inputs._replace(mask=self._finder.mask(inputs.photo.image))
        editor = self._editor(options)
        return options, editor, inputs, edit.prepare_photo(options, editor, inputs, no_progress)

    def _editor(self, options: argparse.Namespace) -> "Editor":
        from ..progress import no_progress

        key = tuple(str(vars(options)[name]) for name in _EDITOR_OPTIONS)
        with self._lock:
            if key not in self._editors:
                try:
                    self._editors[key] = edit.load_editor(options, no_progress)
                except ArtMancerError as error:
                    # Where none was loaded before, no other photo will have one either.
                    if self._editors:
                        raise
                    raise RunEnded(error) from None
            return self._editors[key]

    def edit(self, photo: Photo, prepared: Any, check: Callable[[], None]) -> Edited:
        options, editor, inputs, conditions = prepared

        def progress(done: int, total: int, stage: str, latents: object = None) -> None:
            check()

        if editor is None:
            return _edited_by_set(options, progress)
        result = edit.edit_photo(options, editor, conditions, progress)

        picture = inputs.photo.picture

        def save(path: Path) -> None:
            images.save(path, result.image, picture)

        report = edit.with_notes(result.report.as_dict(), inputs.notes, picture, options)
        return Edited(save, report)


def _check_comfyui(options: argparse.Namespace, finds_mask: bool) -> None:
    """Refuse a model set where a ComfyUI would have to be started for each photo."""
    if options.comfyui_url is None:
        raise RunEnded(
            ArtMancerError(
                "comfyui_unavailable",
                f"The model set '{options.editor}' runs in ComfyUI. Name a running one with "
                "--comfyui-url, or a gateway with --server.",
            )
        )
    if finds_mask:
        raise ArtMancerError(
            "mask_missing", "A model set needs a mask file for each photo. Add mask_image."
        )


def _edited_by_set(options: argparse.Namespace, progress: "Progress") -> Edited:
    data, report = comfyui_edit.edit(options, progress)

    photo = edit.read_photo(options)

    def save(path: Path) -> None:
        images.save(path, images.read(data, name="the result").pixels, photo)

    return Edited(save, edit.with_notes(report, photo.notes, photo, options))


class _ObjectFinder:
    """Finds the main object of a photo, as Smart Mask does without a click."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._segmenter: Any = None

    def mask(self, image: "Tensor") -> "Tensor":
        """Return the mask of the main object, MASK [1, H, W].

        Raises
        ------
        ArtMancerError : object_not_found
        """
        from ..masks.clicks import Clicks

        with self._lock:
            if self._segmenter is None:
                self._segmenter = _load_segmenter()
            mask: Tensor = self._segmenter.select(image, Clicks()).mask
            return mask


def _load_segmenter() -> Any:
    from .. import models
    from ..masks import fastsam
    from ..masks.grabcut import GrabCut

    path = models.segmenter()
    return fastsam.load(path) if path else GrabCut()


class EditRequests:
    """Makes the request of POST /api/generate for each photo.

    Attributes
    ----------
    strip : whether results are saved without metadata; see EditResponse.save

    Raises
    ------
    ArtMancerError : invalid_request where the command has an option that is no field
    """

    def __init__(self, options: argparse.Namespace, photo_options: PhotoOptions) -> None:
        self.strip: bool = options.strip
        self._options = photo_options
        self._finder = _ObjectFinder()
        parser = argparse.ArgumentParser()
        edit.add_options(parser, variant_required=False)
        self._defaults = {**vars(parser.parse_args([])), "editor": None}
        if name := self._option_without_field(options):
            raise ArtMancerError(
                "invalid_request",
                f"--{name.replace('_', '-')} is no option of a gateway. Leave it out, or edit on "
                "this machine.",
            )

    def _option_without_field(self, options: argparse.Namespace) -> str | None:
        """Return an option that was given and has no field; None: there is none."""
        given = (name for name in _ONLY_HERE if vars(options)[name] != self._defaults[name])
        return next(given, None)

    def of(
        self, photo: Photo, paths: Mapping[str, Path]
    ) -> tuple[dict[str, Path | bytes], dict[str, Any]]:
        """Return a photo's images and its other fields, both by field.

        Raises
        ------
        ArtMancerError : invalid_request, object_not_found
        """
        options = self._options.of(photo, paths)
        if name := self._option_without_field(options):
            raise ArtMancerError(
                "invalid_request", f"The gateway has no field '{name}'. Remove it."
            )
        files: dict[str, Path | bytes] = dict(paths)
        if finds_object(options, photo):
            files["mask_image"] = _encode(self._finder.mask(images.load(options.image).image))
        fields = {
            field: vars(options)[name]
            for name, field in _FIELDS.items()
            if vars(options)[name] != self._defaults[name]
        }
        if options.brush_mask:
            fields["mask_tool_type"] = "brush"
        fields |= {
            "prompt": options.prompt,
            "task_type": options.variant.replace("_", "-"),
            "seed": options.seed,
        }
        return files, fields


class _Gateway:
    """Edits on a gateway, several at a time."""

    def __init__(self, requests: EditRequests, client: Client, jobs: int) -> None:
        self.jobs = jobs
        self._requests = requests
        self._client = client

    def prepare(self, photo: Photo, paths: Mapping[str, Path]) -> Any:
        return self._requests.of(photo, paths)

    def edit(self, photo: Photo, prepared: Any, check: Callable[[], None]) -> Edited:
        files, fields = prepared
        try:
            task_id = self._submit(
                check,
                lambda: self._client.submit(
                    files["input_image"],
                    mask=files.get("mask_image"),
                    reference=files.get("reference_image"),
                    reference_mask=files.get("reference_mask_R"),
                    **fields,
                ),
            )
            response = self._wait(task_id, check)
        except ConnectionError as error:
            raise RunEnded(ArtMancerError("comfyui_unavailable", str(error))) from None
        return Edited(partial(response.save, strip=self._requests.strip), response.report)

    def _submit(self, check: Callable[[], None], submit: Callable[[], str]) -> str:
        """Send an edit; wait while the gateway's queue is full."""
        while True:
            try:
                return submit()
            except ArtMancerError as error:
                if error.code != "queue_full":
                    raise
            check()
            time.sleep(POLL_SECONDS)

    def _wait(self, task_id: str, check: Callable[[], None]) -> Any:
        """Wait for a job, and cancel it where the run is stopped."""
        while True:
            try:
                check()
            except Stopped:
                self._client.cancel(task_id)
                raise
            try:
                if self._client.status(task_id).ended:
                    return self._client.result(task_id)
            except ConnectionError:
                # It waits for a gateway that starts anew.
                return self._client.wait(task_id)
            time.sleep(POLL_SECONDS)


def _encode(mask: "Tensor") -> bytes:
    """Return a mask [1, H, W] as the bytes of a PNG."""
    buffer = io.BytesIO()
    images.to_pil(mask[0]).save(buffer, "PNG")
    return buffer.getvalue()
