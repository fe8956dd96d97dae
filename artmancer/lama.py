"""Fill a hole with LaMa (Suvorov et al., Resolution-robust Large Mask Inpainting with Fourier
Convolutions, WACV 2022), a small network that removes objects.

Each island of the hole is filled with its surroundings: a box of the image with a margin around it,
so that the cost follows the hole. Up to MAX_PIXELS a box keeps the image's own resolution. A larger
box is scaled down by the smallest whole factor that makes it fit, and filled. The fill is then
scaled up, and gets the texture of its surroundings: see texture.py.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import Conv2d, ConvTranspose2d, Module, functional

from . import texture
from .errors import ArtMancerError
from .folders import LAMA_FILE
from .offload import Offloader
from .options import ONE_MEGAPIXEL
from .progress import Progress
from .torch_file import read_tensors

MAX_PIXELS = ONE_MEGAPIXEL
"""Area of a box, in pixels, up to which it is filled at the image's own resolution. LaMa repeats
itself in much larger holes.
"""

MIN_MARGIN = 64
"""Least padding around an island's bounding box, in pixels."""

_MARGIN = 0.5
"""Padding around an island's bounding box, as a share of its longest side."""

_MULTIPLE = 8
"""Sides of the network's input are multiples of this many pixels: it halves them three times."""

_MIN_SIDE = 16
"""Shortest side of the network's input, in pixels: reflections at its lowest scale need 2."""

ACTIVATION_BYTES = 1500
"""Bytes of activations for each pixel. On the CPU 1.0 GB was measured at 1024x1024."""

_STAGE = "filling with LaMa"
"""Name of the stage for the progress."""

Box = tuple[slice, slice]
"""Rows and columns of a part of an image."""


@dataclass(frozen=True, eq=False)
class Lama:
    """A LaMa that is ready to fill holes.

    Attributes
    ----------
    network : takes an image [1, 3, h, w] and a mask [1, 1, h, w], and returns the filled image
    offloader : loads it onto its device before each fill
    """

    network: Module
    offloader: Offloader

    def fill(self, image: Tensor, hole: Tensor, seed: int, progress: Progress) -> Tensor:
        """Fill the holes of one image.

        Parameters
        ----------
        image : [H, W, 3] in 0..1
        hole : bool [H, W], True = replace; False somewhere
        seed : seed of the search for textures, in holes that are filled at a lower scale
        progress : called at each layer of the network; raising in it cancels

        Returns
        -------
        [H, W, 3]; where `hole` is False, equal to `image` bit for bit

        Raises
        ------
        ArtMancerError : out_of_memory; generation_failed where the network returns NaN
        """
        filled = image.clone()
        for box in _boxes(hole):
            content = self._fill_box(image[box], hole[box], seed, progress)
            filled[box][hole[box]] = content[hole[box]]
        return filled

    def _fill_box(self, image: Tensor, hole: Tensor, seed: int, progress: Progress) -> Tensor:
        """Return the box [h, w, 3] with its hole filled; the rest is not of use."""
        height, width = hole.shape
        factor = 1
        while _scaled(height, factor) * _scaled(width, factor) > MAX_PIXELS:
            factor += 1
        if factor == 1:
            return self._run(image, hole, progress)
        # The box is padded to a multiple of the factor, so that blocks of pixels stay blocks.
        padding = (0, -width % factor, 0, -height % factor)
        planes = torch.cat([image.permute(2, 0, 1), hole.to(image).unsqueeze(0)])
        planes = functional.pad(planes.unsqueeze(0), padding, "replicate")
        large = planes[0, :3].permute(1, 2, 0)
        covered = functional.max_pool2d(planes[:, 3:], factor)[0, 0] > 0
        # Where a hole covers a part of a block, its mean has both; the block is filled anyway.
        small = functional.avg_pool2d(planes[:, :3], factor)[0].permute(1, 2, 0)
        fill = self._run(small, covered, progress)
        fill = torch.where(covered.unsqueeze(-1), fill, small)

        def step(done: int, total: int) -> None:
            progress(done, total, "copying textures")

        return texture.restore(fill, covered, large, factor, seed, step)[:height, :width]

    def _run(self, image: Tensor, hole: Tensor, progress: Progress) -> Tensor:
        """Run the network on an image [h, w, 3] of any size; return it filled."""
        height, width = hole.shape
        planes = torch.cat([image.permute(2, 0, 1), hole.to(image).unsqueeze(0)]).unsqueeze(0)
        planes = _pad(planes)
        size = planes.shape[2] * planes.shape[3]
        try:
            self.offloader.load(self.network, size * ACTIVATION_BYTES, progress)
            planes = planes.to(self.offloader.device)
            with torch.no_grad(), _reporting(self.network, progress):
                filled: Tensor = self.network(planes[:, :3], planes[:, 3:])
            filled = filled[0].permute(1, 2, 0)[:height, :width].to("cpu", torch.float32)
        except torch.OutOfMemoryError as error:
            self.offloader.empty_cache()
            raise ArtMancerError(
                "out_of_memory",
                f"The device has too little memory for LaMa at {planes.shape[3]}x{planes.shape[2]} "
                "pixels. Close other programs that use it, or fill with patchmatch.",
            ) from error
        if not filled[hole].isfinite().all():
            raise ArtMancerError(
                "generation_failed",
                f"LaMa returned NaN or infinite values. Download {LAMA_FILE} again, or fill with "
                "patchmatch.",
            )
        return filled.clamp(0, 1)


def load(path: Path, offloader: Offloader | None = None) -> Lama:
    """Load LaMa from a file. Only its tensors are read; no code of the file runs.

    Parameters
    ----------
    path : a TorchScript file or a state dict of torch.save, such as big-lama.pt
    offloader : loads the network onto its device before each fill

    Raises
    ------
    ArtMancerError : checkpoint_missing; generation_failed where spandrel is not installed, or the
        file is not a LaMa
    """
    try:
        from spandrel import ModelLoader
    except ImportError as error:
        raise ArtMancerError(
            "generation_failed",
            f"LaMa needs spandrel ({error}). Install it: pip install spandrel.",
        ) from error
    if not path.is_file():
        raise ArtMancerError(
            "checkpoint_missing",
            f"There is no {path.name} in '{path.parent}'. Download it with "
            "`artmancer models fetch big-lama`.",
        )
    try:
        tensors = read_tensors(path)
        descriptor = ModelLoader(torch.device("cpu")).load_from_state_dict(tensors)
    except (OSError, ValueError) as error:
        raise _not_lama(path, str(error)) from error
    # spandrel raises anything for tensors of other names or shapes.
    except Exception as error:
        reason = f"its tensors are of another model: {' '.join(str(error).split()):.200}"
        raise _not_lama(path, reason) from error
    channels = descriptor.input_channels, descriptor.output_channels
    if descriptor.architecture.id != "LaMa" or channels != (3, 3):
        reason = f"it is a {descriptor.architecture.name} with {channels[0]} channels"
        raise _not_lama(path, reason)
    return Lama(descriptor.model.float().eval().requires_grad_(False), offloader or Offloader())


def _not_lama(path: Path, reason: str) -> ArtMancerError:
    return ArtMancerError(
        "generation_failed",
        f"'{path.name}' is not a LaMa, or is damaged ({reason}). Download it again with "
        "`artmancer models fetch big-lama`.",
    )


@contextmanager
def _reporting(network: Module, progress: Progress) -> Iterator[None]:
    """Call the progress before each convolution of the network."""
    layers = [layer for layer in network.modules() if isinstance(layer, Conv2d | ConvTranspose2d)]
    done = 0

    def report(*_: object) -> None:
        nonlocal done
        progress(done, len(layers), _STAGE)
        done += 1

    handles = [layer.register_forward_pre_hook(report) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _pad(planes: Tensor) -> Tensor:
    """Pad planes [1, c, h, w] to sides that the network takes. They are reflected; what is too
    short for that repeats its edge.
    """
    height, width = planes.shape[2:]
    bottom, right = (max(_MIN_SIDE, _round_up(side)) - side for side in (height, width))
    reflected = min(bottom, height - 1), min(right, width - 1)
    planes = functional.pad(planes, (0, reflected[1], 0, reflected[0]), "reflect")
    return functional.pad(planes, (0, right - reflected[1], 0, bottom - reflected[0]), "replicate")


def _round_up(side: int) -> int:
    """Round a side up to a multiple that the network takes."""
    return -(-side // _MULTIPLE) * _MULTIPLE


def _scaled(side: int, factor: int) -> int:
    """Return a side after it was padded and scaled down by a factor."""
    return -(-side // factor)


def _boxes(hole: Tensor) -> Iterator[Box]:
    """Yield the box of each island of a hole [H, W], with its margin. Boxes do not overlap: islands
    near each other share one.
    """
    import cv2

    size = 2 * MIN_MARGIN + 1
    pixels = hole.numpy().astype(np.uint8)
    near = cv2.dilate(pixels, np.ones((size, size), np.uint8))
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(near)
    rectangles: list[tuple[int, int, int, int]] = []
    for label, (left, top, width, height, _) in enumerate(statistics[1:], 1):
        inside = pixels[top : top + height, left : left + width] > 0
        inside &= labels[top : top + height, left : left + width] == label
        rows, columns = np.nonzero(inside.any(1))[0], np.nonzero(inside.any(0))[0]
        sides = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
        margin = max(MIN_MARGIN, round(_MARGIN * max(sides)))
        corner = max(0, top + rows[0] - margin), max(0, left + columns[0] - margin)
        end = top + rows[-1] + 1 + margin, left + columns[-1] + 1 + margin
        rectangles.append((*corner, min(end[0], hole.shape[0]), min(end[1], hole.shape[1])))
    for top, left, bottom, right in _merged(rectangles):
        yield slice(int(top), int(bottom)), slice(int(left), int(right))


def _merged(rectangles: list[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
    """Merge rectangles (top, left, bottom, right) until none overlap."""
    merged: list[tuple[int, int, int, int]] = []
    while rectangles:
        own = rectangles.pop()
        for other in merged:
            if own[0] < other[2] and other[0] < own[2] and own[1] < other[3] and other[1] < own[3]:
                merged.remove(other)
                corner = min(own[0], other[0]), min(own[1], other[1])
                # The larger rectangle may overlap others.
                rectangles.append((*corner, max(own[2], other[2]), max(own[3], other[3])))
                break
        else:
            merged.append(own)
    return merged
