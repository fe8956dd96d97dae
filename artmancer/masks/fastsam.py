"""FastSAM (Zhao and others, Fast Segment Anything, 2023): find the masks of everything in an image
in one run of the network, and return the mask of the clicked object.

The network and its non-maximum suppression are ultralytics'. The choice among the masks is made in
choose.py.
"""

import os
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..cache import Cache, digest
from ..errors import ArtMancerError
from ..images import to_uint8
from ..offload import Offloader
from ..onnx_errors import onnx_errors
from ..progress import Progress, no_progress
from .choose import Choice, Masks, Selection, choose, pack
from .clicks import Clicks, check_clicks, shrink_brush

CONFIDENCE_THRESHOLD = 0.3
"""Smallest score of a mask that is kept, 0..1."""

IOU_THRESHOLD = 0.9
"""Largest overlap of two masks' boxes, as intersection over union; above it, the mask with the
lower score is dropped.
"""

MAX_MASKS = 300
"""Largest number of masks of an image; those with the lowest scores are dropped."""

UPSAMPLING = 4
"""Factor by which the values of a mask are upsampled, by cubic interpolation, before the mask is
drawn.
"""

_SUPPRESSION_SECONDS = 10.0
"""Timeout of ultralytics' non-maximum suppression (max_time_img) for each image; its default is
0.05 s.
"""

_PADDING_GRAY = 114
"""Gray value of YOLO's letterbox, the padding around an image."""

_STRIDE = 32
"""The sides of the network's input are multiples of this many pixels."""

_PROTOTYPE_STRIDE = 4
"""Pixels of the network's input per pixel of the prototypes."""

_DEFAULT_SIDE = 1024
"""Longest side, in pixels, for a network whose file does not give it: FastSAM's."""

_CHECK_SIDE = 64
"""Side, in pixels, of the blank image that a network is checked with."""

_ACTIVATION_BYTES = 2**30
"""Memory that a run of the network needs on the device beside its weights, in bytes."""

_CACHE_BYTES = 256 * 2**20
"""Size of the cache of masks, in bytes."""

_READ_ERRORS = (
    TypeError,
    AttributeError,
    RuntimeError,
    ImportError,
    OSError,
    ValueError,
    LookupError,
    struct.error,
)
"""Exceptions from reading a .pt file that is not a model or is damaged, found by fuzzing."""

Network = Callable[[Tensor], tuple[Tensor, Tensor]]
"""A function from an image [1, 3, h, w] in 0..1 to detections [1, 4 + classes + k, n] and
prototypes [1, k, h / 4, w / 4]. A detection is a box (center x, center y, width, height), a score
for each class, and k coefficients.
"""


@dataclass(frozen=True)
class Everything:
    """The masks of everything in an image, as the network returns them. A mask is drawn at full
    size only when it is chosen.

    Attributes
    ----------
    size : (height, width) of the image
    scale : pixels of the prototypes per pixel of the image
    prototypes : [k, h, w]
    coefficients : [N, k], the weights of the prototypes in each mask
    boxes : [N, 4], left, top, right, bottom in whole pixels of the image; each mask is cut off
        there
    masks : the masks at the prototypes' size
    """

    size: tuple[int, int]
    scale: float
    prototypes: Tensor
    coefficients: Tensor
    boxes: Tensor
    masks: Masks

    @property
    def nbytes(self) -> int:
        """Bytes in memory, for the cache."""
        return self.prototypes.nbytes + self.coefficients.nbytes + self.masks.bits.nbytes

    def choose(self, clicks: Clicks) -> list[Choice]:
        """Return the candidates for the clicked object, the likeliest first; see choose.choose.

        Parameters
        ----------
        clicks : the clicks in pixels of the image
        """
        if not len(self.boxes):
            return []
        height, width = self._size_without_padding()
        box = brush = None
        if clicks.box is not None:
            left, top, right, bottom = (edge * self.scale for edge in clicks.box)
            box = (
                max(0.0, left),
                max(0.0, top),
                min(float(width), right),
                min(float(height), bottom),
            )
        if clicks.brush is not None:
            brush = np.zeros(self.masks.size, np.bool_)
            brush[:height, :width] = shrink_brush(clicks.brush, (height, width))
        return choose(
            self.masks, self._holding(clicks.positive), self._holding(clicks.negative), box, brush
        )

    def draw(self, choice: Choice) -> Tensor:
        """Draw the mask of a choice at full size.

        The mask's values are upsampled before they are thresholded, so that its edge is smooth.

        Returns
        -------
        MASK [1, H, W], 0 or 1
        """
        import cv2

        height, width = self.size
        # Unlike torch.zeros, np.zeros touches no memory yet. Most of a mask is never drawn on.
        mask = torch.from_numpy(np.zeros((1, height, width), np.float32))
        for index in choice.masks:
            values = _mix(self.coefficients[index : index + 1], self.prototypes)[0].numpy()
            left, top, right, bottom = self.boxes[index].tolist()
            if right <= left or bottom <= top:
                continue
            # The cubic upsampling makes the edge smooth. The rest of the way, over many pixels, can
            # then be linear, which is fast.
            upsampled = cv2.resize(
                values, None, fx=UPSAMPLING, fy=UPSAMPLING, interpolation=cv2.INTER_CUBIC
            )
            scale = self.scale * UPSAMPLING
            # From the center of a pixel in the box to its place among the centers of the upsampled
            # values.
            shift = [offset * scale + scale / 2 - 0.5 for offset in (left, top)]
            window = cv2.warpAffine(
                upsampled,
                np.array([[scale, 0, shift[0]], [0, scale, shift[1]]]),
                (right - left, bottom - top),
                flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                borderMode=cv2.BORDER_REPLICATE,
            )
            part = mask[0, top:bottom, left:right].numpy()
            np.logical_or(part, window > 0, out=part, casting="unsafe")
        return mask

    def _holding(self, points: tuple[tuple[float, float], ...]) -> Tensor:
        """Return which masks hold each point, bool [P, N], as they are drawn at full size: at the
        prototypes' size, their edges are elsewhere.
        """
        x, y = torch.tensor(points, dtype=torch.float32).reshape(-1, 2).floor().unbind(1)
        height, width = self.masks.size
        rows = _sampling_weights((y + 0.5) * self.scale, height)
        columns = _sampling_weights((x + 0.5) * self.scale, width)
        values = torch.einsum("khw,pw,ph->pk", self.prototypes, columns, rows) @ self.coefficients.T
        left, top, right, bottom = self.boxes.unbind(1)
        x, y = x[:, None], y[:, None]
        return (values > 0) & (x >= left) & (x < right) & (y >= top) & (y < bottom)

    def _size_without_padding(self) -> tuple[int, int]:
        """Return the (height, width) of the part of the prototypes that shows the image."""
        height, width = self.masks.size
        return (
            max(1, min(height, round(self.size[0] * self.scale))),
            max(1, min(width, round(self.size[1] * self.scale))),
        )


@dataclass(eq=False)
class FastSAM:
    """A loaded FastSAM or YOLO segmentation model.

    Attributes
    ----------
    name : for reports
    network : see Network
    side : longest side, in pixels, of the images that the network was trained on
    fixed : True where the network takes only squares of that side
    cache : the masks of the latest images
    """

    name: str
    network: Network
    side: int
    fixed: bool = False
    cache: Cache = field(default_factory=lambda: Cache(_CACHE_BYTES))

    def select(self, image: Tensor, clicks: Clicks, candidate: int = 0) -> Selection:
        """Return the clicked object.

        Parameters
        ----------
        image : IMAGE [1, H, W, 3]
        clicks : the clicks in pixels of the image
        candidate : index of the candidate; after the last candidate comes the first

        Raises
        ------
        ArtMancerError : invalid_request, mask_empty, object_not_found
        """
        check_clicks(clicks, image)
        everything = self.everything(image)
        choices = everything.choose(clicks)
        if not choices:
            raise ArtMancerError(
                "object_not_found",
                f"None of the {len(everything.boxes)} masks in this image fits the clicks. Click "
                "on another part, drag a box around the object, or choose the draft model.",
            )
        choice = choices[candidate % len(choices)]
        return Selection(everything.draw(choice), choice.score, len(choices))

    def everything(self, image: Tensor) -> Everything:
        """Return all masks of an IMAGE [1, H, W, 3]. They are cached: the network runs once for
        each image.
        """
        return self.cache.get(digest(image), lambda: self._run(image))

    @torch.no_grad()
    def _run(self, image: Tensor) -> Everything:
        """Run the network on an IMAGE, resized to the network's side and padded."""
        import cv2

        height, width = image.shape[1:3]
        ratio = self.side / max(height, width)
        inner = max(1, round(height * ratio)), max(1, round(width * ratio))
        interpolation = cv2.INTER_AREA if ratio < 1 else cv2.INTER_LINEAR
        resized = cv2.resize(to_uint8(image[0]).numpy(), inner[::-1], interpolation=interpolation)
        outer = (self.side, self.side) if self.fixed else tuple(map(_round_up, inner))
        padded = np.full((*outer, 3), _PADDING_GRAY, np.uint8)
        padded[: inner[0], : inner[1]] = resized
        detections, prototypes = self.network(
            torch.from_numpy(padded).permute(2, 0, 1)[None].float() / 255
        )
        boxes, scores, coefficients = _suppress(detections, prototypes.shape[1])
        # From pixels of the network's input, and of the image, to pixels of the prototypes.
        boxes = boxes / _PROTOTYPE_STRIDE
        scale = ratio / _PROTOTYPE_STRIDE
        values = _mix(coefficients, prototypes[0])
        grid_height, grid_width = values.shape[1:]
        y, x = torch.arange(grid_height)[:, None] + 0.5, torch.arange(grid_width) + 0.5
        left, top, right, bottom = (edge[:, None, None] for edge in boxes.unbind(1))
        masks = (values > 0) & (x >= left) & (x <= right) & (y >= top) & (y <= bottom)
        nonempty = masks.flatten(1).any(1)
        corners = (boxes[nonempty] / scale).trunc().int()
        corners[:, 2:] += 1
        corners = corners.clamp(min=0).minimum(torch.tensor([width, height, width, height]))
        return Everything(
            (height, width),
            scale,
            prototypes[0],
            coefficients[nonempty],
            corners,
            pack(masks[nonempty], scores[nonempty]),
        )


def load(
    path: Path, offloader: Offloader | None = None, progress: Progress = no_progress
) -> FastSAM:
    """Load a FastSAM, or another YOLO segmentation model.

    Parameters
    ----------
    path : a .pt file, of which only the weights are read and no code is run, or an .onnx file
    offloader : loads a .pt model onto its device before each run
    progress : called while the offloader loads the model

    Raises
    ------
    ArtMancerError : checkpoint_missing, generation_failed
    """
    if not path.is_file():
        raise ArtMancerError(
            "checkpoint_missing",
            f"There is no model '{path.name}' in '{path.parent}'. Put it there.",
        )
    if path.suffix == ".onnx":
        return _load_onnx(path)
    return _load_torch(path, offloader or Offloader(), progress)


def _load_torch(path: Path, offloader: Offloader, progress: Progress) -> FastSAM:
    with _quiet_ultralytics():
        from ultralytics.nn.tasks import SegmentationModel, torch_safe_load
    if not hasattr(torch.serialization, "get_unsafe_globals_in_checkpoint"):
        raise ArtMancerError(
            "generation_failed",
            "Loading a .pt file safely needs torch 2.6 or newer. Update torch.",
        )
    try:
        checkpoint, _ = torch_safe_load(str(path), safe_only=True)
        model = checkpoint.get("ema") or checkpoint.get("model")
    except _READ_ERRORS as error:
        raise _not_a_segmenter(path) from error
    if not isinstance(model, SegmentationModel):
        raise _not_a_segmenter(path)
    model = model.float().eval()
    with torch.no_grad():
        _check_network(path, lambda image: model(image)[0], _CHECK_SIDE)

    def network(image: Tensor) -> tuple[Tensor, Tensor]:
        offloader.load(model, _ACTIVATION_BYTES, progress)
        detections, prototypes = model(image.to(offloader.device))[0]
        return detections.cpu(), prototypes.cpu()

    side = _DEFAULT_SIDE
    match checkpoint.get("train_args"):
        case {"imgsz": int(size) | [int(size), *_]} if size > 0:
            side = size
    return FastSAM(path.stem, network, side)


def _load_onnx(path: Path) -> FastSAM:
    try:
        import onnxruntime
    except ImportError as error:
        raise ArtMancerError(
            "generation_failed",
            f"'{path.name}' needs onnxruntime. Install it: pip install onnxruntime.",
        ) from error
    try:
        session = onnxruntime.InferenceSession(
            str(path), providers=onnxruntime.get_available_providers()
        )
    except onnx_errors() as error:
        raise _not_a_segmenter(path) from error
    inputs = session.get_inputs()
    if len(inputs) != 1 or len(inputs[0].shape) != 4:
        raise _not_a_segmenter(path)

    def network(image: Tensor) -> tuple[Tensor, Tensor]:
        try:
            detections, prototypes = session.run(None, {inputs[0].name: image.numpy()})[:2]
            return torch.from_numpy(detections), torch.from_numpy(prototypes)
        except onnx_errors() as error:
            raise _not_a_segmenter(path, str(error)) from error

    height = inputs[0].shape[2]
    # A side that the file leaves open is a name or None.
    fixed = isinstance(height, int)
    _check_network(path, network, height if fixed else _CHECK_SIDE)
    return FastSAM(path.stem, network, height if fixed else _DEFAULT_SIDE, fixed)


def _check_network(path: Path, network: Network, side: int) -> None:
    """Run a network on a blank image, and refuse it if its outputs have other shapes than Network
    describes.
    """
    try:
        detections, prototypes = network(torch.zeros(1, 3, side, side))
    # A .pt file of another version of ultralytics raises AttributeError.
    except (RuntimeError, AttributeError) as error:
        raise _not_a_segmenter(path, str(error)) from error
    match [*detections.shape], [*prototypes.shape]:
        # A detection has a box of 4 numbers, one or more scores, and k coefficients. An end-to-end
        # model, which does its own suppression, is refused: it returns detections [1, n, 6 + k].
        case [1, numbers, boxes], [1, k, height, width] if numbers > 4 + k and boxes != 6 + k:
            fits = height == width == side // _PROTOTYPE_STRIDE
        case _:
            fits = False
    if not fits:
        shapes = f"{[*detections.shape]} and {[*prototypes.shape]}"
        raise _not_a_segmenter(path, f"its outputs have the shapes {shapes}")


def _not_a_segmenter(path: Path, reason: str = "") -> ArtMancerError:
    details = f" ({' '.join(reason.split())})" if reason else ""
    return ArtMancerError(
        "generation_failed",
        f"'{path.name}' is not a FastSAM or YOLO segmentation model, or is incomplete{details}. "
        "Choose another file.",
    )


def _round_up(side: int) -> int:
    """Round a side up to a multiple of the stride."""
    return -(-side // _STRIDE) * _STRIDE


def _suppress(detections: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return boxes [N, 4], scores [N] and coefficients [N, count] of the detections that
    non-maximum suppression keeps.
    """
    with _quiet_ultralytics():
        from ultralytics.utils.nms import non_max_suppression
    rows = non_max_suppression(
        detections,
        CONFIDENCE_THRESHOLD,
        IOU_THRESHOLD,
        agnostic=True,
        max_det=MAX_MASKS,
        nc=detections.shape[1] - 4 - count,
        max_time_img=_SUPPRESSION_SECONDS,
    )[0]
    # A row has a box of 4 numbers, a score, a class and the coefficients.
    return rows[:, :4], rows[:, 4], rows[:, 6:]


def _mix(coefficients: Tensor, prototypes: Tensor) -> Tensor:
    """Return the values of the masks, [N, h, w]; they are positive inside a mask."""
    return (coefficients @ prototypes.flatten(1)).view(-1, *prototypes.shape[1:])


def _sampling_weights(places: Tensor, count: int) -> Tensor:
    """Return the weights [P, count] of `count` values in a row for drawing at P places among
    them.
    """
    weights = _upsampling_weights(count)
    places = (places * UPSAMPLING - 0.5).clamp(0, len(weights) - 1)
    before = places.long()
    after = (before + 1).clamp(max=len(weights) - 1)
    return torch.lerp(weights[before], weights[after], (places - before)[:, None])


@lru_cache(8)
def _upsampling_weights(count: int) -> Tensor:
    """Return the weights [UPSAMPLING * count, count] of `count` values in a row in each of the
    upsampled values.
    """
    # torch's cubic interpolation is the same as OpenCV's, which `draw` uses. With OpenCV's here,
    # the threads of the two libraries would wait for each other.
    return functional.interpolate(
        torch.eye(count)[None, None], scale_factor=(UPSAMPLING, 1.0), mode="bicubic"
    )[0, 0]


@contextmanager
def _quiet_ultralytics() -> Iterator[None]:
    """Import ultralytics without its settings file in the user's home folder, its telemetry and its
    automatic installs by pip.
    """
    settings = {
        "YOLO_CONFIG_DIR": tempfile.gettempdir(),
        "YOLO_AUTOINSTALL": "False",
        "YOLO_OFFLINE": "True",
        "YOLO_VERBOSE": "False",
    }
    # ultralytics sets OMP_NUM_THREADS, which all processes that are started later would inherit.
    before = {name: os.environ.get(name) for name in (*settings, "OMP_NUM_THREADS")}
    os.environ.update(settings)
    try:
        yield
    except ImportError as error:
        raise ArtMancerError(
            "generation_failed",
            f"Smart Mask's FastSAM needs ultralytics ({error}). Install it into ComfyUI's Python: "
            "pip install -U ultralytics.",
        ) from error
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
