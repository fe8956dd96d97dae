"""FastSAM (Zhao and others, Fast Segment Anything, 2023): all masks of a picture in one run, and
the one that is meant.

The network and its post-processing are ultralytics'; which mask is meant is decided in choose.py.
"""

import logging
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
from .clicks import Clicks, check_clicks, shrink

logger = logging.getLogger(__name__)

CONFIDENCE, OVERLAP, MOST = 0.3, 0.9, 300
"""Masks the model is less sure of are dropped, then those that overlap a surer one by more, then
the least sure.
"""

# What reading a .pt raises on what is none, and on broken bytes, found by fuzzing.
_BROKEN = (
    TypeError,
    AttributeError,
    RuntimeError,
    ImportError,
    OSError,
    ValueError,
    LookupError,
    struct.error,
)

FINER = 4
"""How much finer a mask's values are made before it is drawn."""

Network = Callable[[Tensor], tuple[Tensor, Tensor]]
"""A picture [1, 3, h, w] in 0..1 to detections [1, 4 + 1 + k, n] and prototypes
[1, k, h / 4, w / 4].
"""


@dataclass(frozen=True)
class Everything:
    """All masks of one picture, as the network gives them: any of them is drawn at full size when
    it is asked for.

    size : (height, width) of the picture
    scale : pixels of the prototypes to one of the picture
    prototypes : [k, h, w]
    coefficients : [N, k], which mix the prototypes into each mask
    boxes : [N, 4], left, top, right, bottom in whole pixels of the picture: each mask ends there
    masks : the same at the prototypes' size
    """

    size: tuple[int, int]
    scale: float
    prototypes: Tensor
    coefficients: Tensor
    boxes: Tensor
    masks: Masks

    @property
    def nbytes(self) -> int:
        return self.prototypes.nbytes + self.coefficients.nbytes + self.masks.bits.nbytes

    def choose(self, clicks: Clicks) -> list[Choice]:
        """What the clicks, in pixels of the picture, may mean; see choose.choose."""
        if not len(self.boxes):
            return []
        height, width = self._inner()
        box = brush = None
        if clicks.box is not None:
            left, top, right, bottom = (one * self.scale for one in clicks.box)
            box = (
                max(0.0, left),
                max(0.0, top),
                min(float(width), right),
                min(float(height), bottom),
            )
        if clicks.brush is not None:
            brush = np.zeros(self.masks.size, np.bool_)
            brush[:height, :width] = shrink(clicks.brush, (height, width))
        return choose(
            self.masks, self._holding(clicks.positive), self._holding(clicks.negative), box, brush
        )

    def draw(self, choice: Choice) -> Tensor:
        """The mask of a choice at full size, MASK [1, H, W], 0 or 1;
        scaled up before its edge is cut.
        """
        import cv2

        height, width = self.size
        # Unlike torch.zeros this touches no memory yet: most of a mask is never drawn on.
        mask = torch.from_numpy(np.zeros((1, height, width), np.float32))
        for index in choice.masks:
            values = _mix(self.coefficients[index : index + 1], self.prototypes)[0].numpy()
            left, top, right, bottom = self.boxes[index].tolist()
            if right <= left or bottom <= top:
                continue
            # Curves are drawn by the cubic steps; the last one, over many pixels, may then be
            # linear and quick.
            finer = cv2.resize(values, None, fx=FINER, fy=FINER, interpolation=cv2.INTER_CUBIC)
            scale = self.scale * FINER
            # From a pixel's centre in the window to its place among the finer values' centres.
            shift = [offset * scale + scale / 2 - 0.5 for offset in (left, top)]
            window = cv2.warpAffine(
                finer,
                np.array([[scale, 0, shift[0]], [0, scale, shift[1]]]),
                (right - left, bottom - top),
                flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                borderMode=cv2.BORDER_REPLICATE,
            )
            part = mask[0, top:bottom, left:right].numpy()
            np.logical_or(part, window > 0, out=part, casting="unsafe")
        return mask

    def _holding(self, points: tuple[tuple[float, float], ...]) -> Tensor:
        """Which masks hold each point as they are drawn, bool [P, N]: at full size
        an edge lies elsewhere.
        """
        x, y = torch.tensor(points, dtype=torch.float32).reshape(-1, 2).floor().unbind(1)
        height, width = self.masks.size
        rows, columns = (
            _weights((y + 0.5) * self.scale, height),
            _weights((x + 0.5) * self.scale, width),
        )
        values = torch.einsum("khw,pw,ph->pk", self.prototypes, columns, rows) @ self.coefficients.T
        left, top, right, bottom = self.boxes.unbind(1)
        x, y = x[:, None], y[:, None]
        return (values > 0) & (x >= left) & (x < right) & (y >= top) & (y < bottom)

    def _inner(self) -> tuple[int, int]:
        """The part of the prototypes that shows the picture, without the padding."""
        height, width = self.masks.size
        return (
            max(1, min(height, round(self.size[0] * self.scale))),
            max(1, min(width, round(self.size[1] * self.scale))),
        )


@dataclass(eq=False)
class FastSAM:
    """A loaded model.

    name : for reports
    network : see Network
    side : the longest side of the pictures it was trained on
    fixed : whether it takes squares of that side alone
    cache : what it found in the pictures it saw last
    """

    name: str
    network: Network
    side: int
    fixed: bool = False
    cache: Cache = field(default_factory=lambda: Cache(256 * 2**20))

    def select(self, image: Tensor, clicks: Clicks, candidate: int = 0) -> Selection:
        """The object that is meant.

        Parameters
        ----------
        image : IMAGE [1, H, W, 3]
        clicks : see Clicks
        candidate : which of the candidates, counted round

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
                f"Of the {len(everything.boxes)} masks in this picture none fits the clicks. Click "
                "on another part, drag a box around the object, or take the draft model.",
            )
        choice = choices[candidate % len(choices)]
        return Selection(everything.draw(choice), choice.score, len(choices))

    def everything(self, image: Tensor) -> Everything:
        """All masks of an IMAGE [1, H, W, 3]; the network runs once for a picture."""
        return self.cache.get(digest(image), lambda: self._run(image))

    @torch.no_grad()
    def _run(self, image: Tensor) -> Everything:
        import cv2

        height, width = image.shape[1:3]
        ratio = self.side / max(height, width)
        inner = max(1, round(height * ratio)), max(1, round(width * ratio))
        interpolation = cv2.INTER_AREA if ratio < 1 else cv2.INTER_LINEAR
        picture = cv2.resize(to_uint8(image[0]).numpy(), inner[::-1], interpolation=interpolation)
        padded = (
            (self.side, self.side) if self.fixed else tuple(-(-one // 32) * 32 for one in inner)
        )
        framed = np.full((*padded, 3), 114, np.uint8)
        framed[: inner[0], : inner[1]] = picture
        detections, prototypes = self.network(
            torch.from_numpy(framed).permute(2, 0, 1)[None].float() / 255
        )
        boxes, scores, coefficients = _suppress(detections, prototypes.shape[1])
        # The prototypes are at a quarter of the network's size, and its picture at `ratio` of ours.
        boxes, scale = boxes / 4, ratio / 4
        values = _mix(coefficients, prototypes[0])
        grid_height, grid_width = values.shape[1:]
        y, x = torch.arange(grid_height)[:, None] + 0.5, torch.arange(grid_width) + 0.5
        left, top, right, bottom = (one[:, None, None] for one in boxes.unbind(1))
        masks = (values > 0) & (x >= left) & (x <= right) & (y >= top) & (y <= bottom)
        seen = masks.flatten(1).any(1)
        corners = (boxes[seen] / scale).trunc().int()
        corners[:, 2:] += 1
        corners = corners.clamp(min=0).minimum(torch.tensor([width, height, width, height]))
        return Everything(
            (height, width),
            scale,
            prototypes[0],
            coefficients[seen],
            corners,
            pack(masks[seen], scores[seen]),
        )


def load(
    path: Path, offloader: Offloader | None = None, progress: Progress = no_progress
) -> FastSAM:
    """Load a FastSAM, or any YOLO segmenter, from a .pt (its weights alone: no code in it is run)
    or an .onnx file.

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
            "generation_failed", "A .pt file is loaded safely by torch 2.6 or newer. Update torch."
        )
    try:
        checkpoint, _ = torch_safe_load(str(path), safe_only=True)
        model = checkpoint.get("ema") or checkpoint.get("model")
    except _BROKEN as error:
        raise _not_a_segmenter(path) from error
    if not isinstance(model, SegmentationModel):
        raise _not_a_segmenter(path)
    model = model.float().eval()
    with torch.no_grad():
        _try_out(path, lambda picture: model(picture)[0], 64)

    def network(picture: Tensor) -> tuple[Tensor, Tensor]:
        offloader.load(model, 2**30, progress)
        detections, prototypes = model(picture.to(offloader.device))[0]
        return detections.cpu(), prototypes.cpu()

    side = 1024
    match checkpoint.get("train_args"):
        case {"imgsz": int(said) | [int(said), *_]} if said > 0:
            side = said
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

    def network(picture: Tensor) -> tuple[Tensor, Tensor]:
        try:
            detections, prototypes = session.run(None, {inputs[0].name: picture.numpy()})[:2]
            return torch.from_numpy(detections), torch.from_numpy(prototypes)
        except onnx_errors() as error:
            raise _not_a_segmenter(path, str(error)) from error

    height = inputs[0].shape[2]
    fixed = isinstance(height, int)
    _try_out(path, network, height if fixed else 64)
    return FastSAM(path.stem, network, height if fixed else 1024, fixed)


def _try_out(path: Path, network: Network, side: int) -> None:
    """Refuse a network that makes of a blank picture anything else than Network says."""
    try:
        detections, prototypes = network(torch.zeros(1, 3, side, side))
    except (RuntimeError, AttributeError) as error:  # AttributeError: a .pt of another ultralytics
        raise _not_a_segmenter(path, str(error)) from error
    match [*detections.shape], [*prototypes.shape]:
        # A model that has chosen its boxes itself gives a row for each, of 4 + 1 + 1 + k numbers.
        case [1, numbers, boxes], [1, k, height, width] if numbers > 4 + k and boxes != 6 + k:
            fits = height == width == side // 4
        case _:
            fits = False
    if not fits:
        raise _not_a_segmenter(path, f"it gives {[*detections.shape]} and {[*prototypes.shape]}")


def _not_a_segmenter(path: Path, why: str = "") -> ArtMancerError:
    because = f" ({' '.join(why.split())})" if why else ""
    return ArtMancerError(
        "generation_failed",
        f"'{path.name}' is not a FastSAM or YOLO segmentation model, or not a whole one{because}. "
        "Choose another file.",
    )


def _suppress(detections: Tensor, mixed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes [N, 4], scores [N] and coefficients [N, k] of the detections that are kept."""
    with _quiet_ultralytics():
        from ultralytics.utils.nms import non_max_suppression
    classes = detections.shape[1] - 4 - mixed
    kept = non_max_suppression(
        detections, CONFIDENCE, OVERLAP, agnostic=True, max_det=MOST, nc=classes, max_time_img=10.0
    )[0]
    return kept[:, :4], kept[:, 4], kept[:, 6:]


def _mix(coefficients: Tensor, prototypes: Tensor) -> Tensor:
    """Values of the masks, [N, h, w], positive inside."""
    return (coefficients @ prototypes.flatten(1)).view(-1, *prototypes.shape[1:])


def _weights(places: Tensor, count: int) -> Tensor:
    """What each of `count` values in a row adds to what is drawn at these places [P] among them,
    [P, count].
    """
    weights = _finer(count)
    places = (places * FINER - 0.5).clamp(0, len(weights) - 1)
    before = places.long()
    after = (before + 1).clamp(max=len(weights) - 1)
    return torch.lerp(weights[before], weights[after], (places - before)[:, None])


@lru_cache(8)
def _finer(count: int) -> Tensor:
    """What each of `count` values in a row adds to each of the finer ones,
    [FINER * count, count].
    """
    # torch's cubic steps are OpenCV's; with those the threads of the two would wait for each other.
    return functional.interpolate(
        torch.eye(count)[None, None], scale_factor=(FINER, 1.0), mode="bicubic"
    )[0, 0]


@contextmanager
def _quiet_ultralytics() -> Iterator[None]:
    """Import ultralytics without its settings file in the user's home, its telemetry and its
    installs by pip.
    """
    wanted = {
        "YOLO_CONFIG_DIR": tempfile.gettempdir(),
        "YOLO_AUTOINSTALL": "False",
        "YOLO_OFFLINE": "True",
        "YOLO_VERBOSE": "False",
    }
    # It sets the number of threads for all processes that are started after it.
    before = {name: os.environ.get(name) for name in (*wanted, "OMP_NUM_THREADS")}
    os.environ.update(wanted)
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
