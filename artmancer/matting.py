"""Remove the background of an image: rembg's models find the subject, and pymatting refines its
edge.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ImageColor
from torch import Tensor

from . import mask_ops
from .checks import check_finite, check_image, check_mask
from .errors import ArtMancerError
from .images import to_pil, to_uint8
from .onnx_errors import onnx_errors
from .options import ONE_MEGAPIXEL
from .progress import Progress, no_progress

DEVICES = ("auto", "cpu")
"""Devices to choose from. auto: the GPU if onnxruntime can use it, else the CPU."""

MAX_MATTING_PIXELS = ONE_MEGAPIXEL
"""Largest area, in pixels, at which alpha matting is solved; beyond it, it would take minutes and
gigabytes.
"""

_RELEASE = "https://github.com/danielgatis/rembg/releases/download/v0.0.0"
"""URL of the release that holds rembg's models."""

_FOREGROUND_THRESHOLD = 240
"""rembg's trimap: values of the mask above this, in 0..255, are foreground."""

_BACKGROUND_THRESHOLD = 10
"""rembg's trimap: values of the mask below this, in 0..255, are background."""

_EROSION_PIXELS = 10
"""rembg's trimap: erosion of foreground and background, in pixels."""

_UNCERTAIN = 0.5
"""Value of the pixels of a trimap whose alpha pymatting computes."""


@dataclass(frozen=True)
class RembgModel:
    """One of rembg's models.

    Attributes
    ----------
    file : name of the file to download; the file may also be called NAME.onnx, as rembg calls it
    checksum : of the file, as rembg lists it: "md5:..." or "sha256:..."
    license : license of the weights
    free : True where the license lets everybody use them, also for business
    """

    file: str
    checksum: str
    license: str
    free: bool = True


_NOT_STATED = "not stated; ask its author before business use"

MODELS = {
    "u2net": RembgModel(
        "u2net.onnx",
        "md5:60024c5c889badc19c04ad937298a77b",
        "Apache-2.0",
    ),
    "u2netp": RembgModel(
        "u2netp.onnx",
        "md5:8e83ca70e441ab06c318d82300c84806",
        "Apache-2.0",
    ),
    "u2net_human_seg": RembgModel(
        "u2net_human_seg.onnx",
        "md5:c09ddc2e0104f800e3e1bb4652583d1f",
        "Apache-2.0",
    ),
    "birefnet-general": RembgModel(
        "BiRefNet-general-epoch_244.onnx",
        "md5:7a35a0141cbbc80de11d9c9a28f52697",
        "MIT",
    ),
    "birefnet-general-lite": RembgModel(
        "BiRefNet-general-bb_swin_v1_tiny-epoch_232.onnx",
        "md5:4fab47adc4ff364be1713e97b7e66334",
        "MIT",
    ),
    "birefnet-portrait": RembgModel(
        "BiRefNet-portrait-epoch_150.onnx",
        "md5:c3a64a6abf20250d090cd055f12a3b67",
        "MIT",
    ),
    "birefnet-dis": RembgModel(
        "BiRefNet-DIS-epoch_590.onnx",
        "md5:2d4d44102b446f33a4ebb2e56c051f2b",
        "MIT",
    ),
    "birefnet-hrsod": RembgModel(
        "BiRefNet-HRSOD_DHU-epoch_115.onnx",
        "md5:c017ade5de8a50ff0fd74d790d268dda",
        "MIT",
    ),
    "birefnet-cod": RembgModel(
        "BiRefNet-COD-epoch_125.onnx",
        "md5:f6d0d21ca89d287f17e7afe9f5fd3b45",
        "MIT",
    ),
    "birefnet-massive": RembgModel(
        "BiRefNet-massive-TR_DIS5K_TR_TEs-epoch_420.onnx",
        "md5:33e726a2136a3d59eb0fdf613e31e3e9",
        "MIT",
    ),
    "isnet-anime": RembgModel(
        "isnet-anime.onnx",
        "md5:6f184e756bb3bd901c8849220a83e38e",
        "Apache-2.0",
    ),
    "isnet-general-use": RembgModel(
        "isnet-general-use.onnx",
        "md5:fc16ebd8b0c10d971d3513d564d01e29",
        _NOT_STATED,
        free=False,
    ),
    "silueta": RembgModel(
        "silueta.onnx",
        "md5:55e59e0d8062d2f5d013f4725ee84782",
        _NOT_STATED,
        free=False,
    ),
    "bria-rmbg": RembgModel(
        "bria-rmbg-2.0.onnx",
        "sha256:5b486f08200f513f460da46dd701db5fbb47d79b4be4b708a19444bcd4e79958",
        "business use needs an agreement with BRIA",
        free=False,
    ),
}
"""rembg's models, by name, that find the subject without clicks and run on this machine."""

DEFAULT = "u2net"
"""The model to download where none is installed. rembg's own default is bria-rmbg."""

Session = Any
"""A rembg.sessions.BaseSession, which has no types."""


@dataclass(frozen=True)
class Cutout:
    """Images with the masks of their subjects.

    Attributes
    ----------
    image : IMAGE [B, H, W, 3]; after decontamination, soft edges have the subject's own colors
    mask : MASK [B, H, W], 1 = the subject
    model : a key of MODELS, or the name of another source of masks, see `cut_out_by_masks`
    provider : provider of onnxruntime that ran the model, such as "CUDA" or "CPU"; empty for
        another source
    why : reason why it ran on the CPU; empty where it did not
    unrefined : indices of the images of the batch whose edge alpha matting could not refine
    """

    image: Tensor
    mask: Tensor
    model: str
    provider: str
    why: str
    unrefined: tuple[int, ...] = ()

    def with_alpha(self) -> Tensor:
        """Return IMAGE [B, H, W, 4] with a transparent background."""
        return torch.cat([self.image, self.mask.unsqueeze(-1)], -1)

    def over(self, background: Tensor) -> Tensor:
        """Return IMAGE [B, H, W, 3], the subject on a background of one color [3]; see `color`."""
        return torch.lerp(background.expand_as(self.image), self.image, self.mask.unsqueeze(-1))

    def as_dict(self) -> dict[str, object]:
        """Return the report, for JSON."""
        return {
            "model": self.model,
            "licence": MODELS[self.model].license if self.model in MODELS else "",
            "provider": self.provider,
            "why": self.why,
            "unrefined": list(self.unrefined),
        }


def color(text: str) -> Tensor:
    """Read a color from its name or from #rrggbb, and return it as [3] in 0..1.

    Raises
    ------
    ArtMancerError : invalid_request
    """
    try:
        return torch.tensor(ImageColor.getrgb(text.strip())[:3]) / 255
    except ValueError:
        raise ArtMancerError(
            "invalid_request",
            f"The color is '{text}'; expected a name such as white, or #rrggbb such as #ff8800.",
        ) from None


def installed(folders: Sequence[Path]) -> list[str]:
    """Return the names of the models in these folders, in the order of MODELS."""
    return [name for name in MODELS if _file(folders, name)]


def installed_birefnet(folders: Sequence[Path]) -> str | None:
    """Return the name of the first BiRefNet model in these folders; None where there is none."""
    return next((name for name in installed(folders) if name.startswith("birefnet")), None)


def choose(folders: Sequence[Path]) -> str:
    """Choose the first model in these folders that everybody may use; DEFAULT where the folders
    hold no model.

    Raises
    ------
    ArtMancerError : checkpoint_missing where the folders hold only models with other licenses
    """
    names = installed(folders)
    free = [name for name in names if MODELS[recognize(find(folders, name), name)].free]
    if names and not free:
        raise ArtMancerError(
            "checkpoint_missing",
            f"auto chooses a model that everybody may use, but there is only {', '.join(names)}. "
            f"Choose it by its name, or download {_RELEASE}/{MODELS[DEFAULT].file} and put "
            f"it into '{folders[-1]}'.",
        )
    return free[0] if free else DEFAULT


def recognize(path: Path, name: str) -> str:
    """Return which of MODELS a file holds, by its checksum; this name where it is none of them, as
    with a model that was converted.

    The checksums of a large file take seconds. They are kept until the file changes.
    """
    # _load says what to do about a file that is missing.
    if not path.is_file():
        return name
    status = path.stat()
    checksums = _checksums(path, status.st_size, status.st_mtime_ns)
    return next((other for other, model in MODELS.items() if model.checksum in checksums), name)


@lru_cache(maxsize=64)
def _checksums(path: Path, size: int, changed: int) -> tuple[str, ...]:
    """Return the checksums of a file of this size, in bytes, and this time of the last change."""
    hashes = [hashlib.md5(usedforsecurity=False), hashlib.sha256()]
    with path.open("rb") as file:
        while block := file.read(2**20):
            for one in hashes:
                one.update(block)
    return tuple(f"{one.name}:{one.hexdigest()}" for one in hashes)


def find(folders: Sequence[Path], name: str) -> Path:
    """Return the file of a model in these folders. Nothing is downloaded.

    Raises
    ------
    ArtMancerError : invalid_request, checkpoint_missing
    """
    if name not in MODELS:
        raise _unknown("model", name, MODELS)
    path = _file(folders, name)
    if path is None:
        places = " or ".join(f"'{folder}'" for folder in folders)
        raise ArtMancerError(
            "checkpoint_missing",
            f"There is no {name}.onnx in {places}. "
            f"Download {_RELEASE}/{MODELS[name].file} and put it there.",
        )
    return path


@dataclass(eq=False)
class Remover:
    """A background remover with one of rembg's models.

    Attributes
    ----------
    name : a key of MODELS. The file may hold another of them, see `recognize`: then this one runs
        and is reported
    path : file of the model, see `find`
    sessions : rembg's session with the loaded model, for each of DEVICES; a missing session is
        created at the first use of its device. All are dropped when a model fails, so that the next
        use loads the file again
    """

    name: str
    path: Path
    sessions: dict[str, Session] = field(default_factory=dict, repr=False)

    def cut_out(
        self,
        image: Tensor,
        *,
        alpha_matting: bool = False,
        decontaminate: bool = True,
        device: str = "auto",
        progress: Progress = no_progress,
    ) -> Cutout:
        """Separate the subject of each image from its background.

        Parameters
        ----------
        image : IMAGE [B, H, W, 3]
        alpha_matting : compute the mask's edge again by closed-form matting (Levin, Lischinski and
            Weiss, 2008); slow
        decontaminate : remove the background's color from soft edges by multi-level estimation
            (Germer et al., 2020)
        device : one of DEVICES
        progress : called with the number of images of the batch that are done; raising in it
            cancels, also within alpha matting

        Raises
        ------
        ArtMancerError : invalid_request, generation_failed, out_of_memory
        """
        if device not in DEVICES:
            raise _unknown("device", device, DEVICES)
        check_image(image)
        image = image.to("cpu", torch.float32)
        check_finite(image, "image")
        model = recognize(self.path, self.name)
        if device not in self.sessions:
            # pymatting compiles itself when it is imported for the first time on a machine.
            progress(0, len(image), f"loading {model} (takes a minute the first time)")
            self.sessions[device] = _load(model, self.path, device)
        session = self.sessions[device]
        masks = (self._predict(session, plane) for plane in image)
        cutout = _separate(model, image, masks, alpha_matting, decontaminate, progress)
        provider = str(session.inner_session.get_providers()[0]).removesuffix("ExecutionProvider")
        return replace(cutout, provider=provider, why=_cpu_reason(provider, device))

    def _predict(self, session: Session, image: Tensor) -> NDArray[np.uint8]:
        """Return the model's mask [H, W] of one image [H, W, 3]."""
        try:
            return np.asarray(session.predict(to_pil(image))[0])
        except onnx_errors() as error:
            # At the next use there may be another file, or more memory.
            self.sessions.clear()
            raise _failure(
                error, self.name, f"'{self.path}' does not run as {self.name}"
            ) from error


def cut_out_by_masks(
    name: str,
    image: Tensor,
    masks: Tensor,
    *,
    alpha_matting: bool = False,
    decontaminate: bool = True,
    progress: Progress = no_progress,
) -> Cutout:
    """Separate the subject of each image by a mask that was made elsewhere.

    Parameters
    ----------
    name : the model that made the masks, for the report
    image : IMAGE [B, H, W, 3]
    masks : MASK [B, H, W], 1 = the subject
    alpha_matting, decontaminate, progress : see Remover.cut_out

    Raises
    ------
    ArtMancerError : invalid_request
    """
    check_image(image)
    check_mask(masks, image)
    image = image.to("cpu", torch.float32)
    planes = (np.asarray(to_uint8(mask.to("cpu", torch.float32))) for mask in masks)
    return _separate(name, image, planes, alpha_matting, decontaminate, progress)


def _separate(
    name: str,
    image: Tensor,
    masks: Iterable[NDArray[np.uint8]],
    alpha_matting: bool,
    decontaminate: bool,
    progress: Progress,
) -> Cutout:
    """Refine the masks [H, W] of the images and clean the colors of their edges.

    Each mask is taken when its turn comes, so that a model may make it then.
    """
    colors = torch.empty_like(image) if decontaminate else image
    result = torch.empty(image.shape[:3])
    unrefined = []
    planes = iter(masks)
    for index, plane in enumerate(image):
        report = partial(progress, index, len(image))
        report("removing the background")
        soft = next(planes)
        np.divide(soft, np.float32(255), out=result[index].numpy())
        if alpha_matting:
            refined = _refine(plane, soft, partial(report, "alpha matting"))
            if refined is None:
                unrefined.append(index)
            else:
                result[index] = refined
        if decontaminate:
            report("cleaning the edge's colors")
            unmixed = _unmix(plane, result[index])
            torch.where(result[index].unsqueeze(-1) < 1, unmixed, plane, out=colors[index])
    return Cutout(colors, result, name, "", "", tuple(unrefined))


def _file(folders: Sequence[Path], name: str) -> Path | None:
    """Return the first file of a model in these folders."""
    paths = (folder / file for folder in folders for file in (f"{name}.onnx", MODELS[name].file))
    return next((path for path in paths if path.is_file()), None)


def _load(name: str, path: Path, device: str) -> Session:
    """Create rembg's session for a model from its file."""
    try:
        # Without onnxruntime, importing rembg ends the process: import onnxruntime first.
        import onnxruntime
        from rembg.sessions import sessions
    except ImportError as error:
        raise ArtMancerError(
            "generation_failed",
            f"rembg's models need rembg and onnxruntime ({error}). Install them into "
            "ComfyUI's Python: pip install -U rembg onnxruntime, or onnxruntime-gpu in its place "
            "for an NVIDIA GPU.",
        ) from error
    if name not in sessions:
        raise ArtMancerError(
            "generation_failed",
            f"This version of rembg has no model {name}. "
            "Update rembg (pip install -U rembg), or choose another model.",
        )

    class Local(sessions[name]):  # type: ignore[misc]  # rembg has no types
        """rembg's session with our file; rembg would search the user's home folder, and download
        the file.
        """

        @classmethod
        def download_models(cls, *args: object, **kwargs: object) -> str:
            return str(path)

    options = {"providers": ["CPUExecutionProvider"]} if device == "cpu" else {}
    try:
        return Local(name, onnxruntime.SessionOptions(), **options)
    except onnx_errors() as error:
        raise _failure(error, name, f"'{path}' cannot be loaded") from error


def _cpu_reason(provider: str, device: str) -> str:
    """Return the reason why the model ran on the CPU; empty where it did not."""
    import onnxruntime

    if provider != "CPU":
        return ""
    if device == "cpu":
        return "cpu was chosen"
    if not (torch.cuda.is_available() and torch.version.cuda):
        return "there is no CUDA GPU"
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return "this onnxruntime supports only the CPU; install onnxruntime-gpu in its place"
    return (
        f"onnxruntime-gpu {onnxruntime.__version__} could not use CUDA, see the log; it may be "
        f"built for another version of CUDA than PyTorch's {torch.version.cuda}"
    )


def _refine(image: Tensor, mask: NDArray[np.uint8], check: Callable[[], None]) -> Tensor | None:
    """Compute the edge of a mask again by alpha matting.

    It is solved at MAX_MATTING_PIXELS at most, and upsampled to full size.

    Parameters
    ----------
    image : [H, W, 3] in 0..1
    mask : [H, W] in 0..255
    check : called at each step of the solution; raising in it cancels

    Returns
    -------
    [H, W] in 0..1; None where nothing in the mask is certain, or there is no solution
    """
    import cv2
    from pymatting.alpha.estimate_alpha_cf import estimate_alpha_cf

    check()
    height, width = mask.shape
    scale = min(1, (MAX_MATTING_PIXELS / (height * width)) ** 0.5)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    resized = cv2.resize(image.numpy(), size, interpolation=cv2.INTER_AREA)
    small = np.asarray(resized, np.float32).clip(0, 1)
    trimap = _trimap(np.asarray(cv2.resize(mask, size, interpolation=cv2.INTER_AREA), np.uint8))
    try:
        alpha = estimate_alpha_cf(
            small.astype(np.float64), trimap, cg_kwargs={"callback": lambda *_: check()}
        )
    except ValueError:
        return None
    if scale < 1:
        alpha = mask_ops.guided_upsample(alpha.astype(np.float32), small, image.numpy())
        known = cv2.resize(trimap, (width, height), interpolation=cv2.INTER_NEAREST)
        alpha = np.where(known == _UNCERTAIN, alpha, known)
    return torch.from_numpy(alpha).to(torch.float32)


def _trimap(mask: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return rembg's trimap of a mask [h, w] in 0..255: 1 for the subject, 0 for the background,
    else _UNCERTAIN.
    """
    import cv2

    trimap = np.full(mask.shape, _UNCERTAIN)
    square = np.ones((_EROSION_PIXELS, _EROSION_PIXELS), np.uint8)
    for area, value in ((mask > _FOREGROUND_THRESHOLD, 1), (mask < _BACKGROUND_THRESHOLD, 0)):
        # Outside the image there is background, as in rembg.
        certain = cv2.erode(
            area.astype(np.uint8), square, borderType=cv2.BORDER_CONSTANT, borderValue=1 - value
        )
        trimap[certain > 0] = value
    return trimap


def _unmix(image: Tensor, mask: Tensor) -> Tensor:
    """Return the subject's own colors [H, W, 3], without the background's color in soft edges."""
    from pymatting.foreground.estimate_foreground_ml import estimate_foreground_ml

    if max(mask.shape) == 1:
        return image
    return torch.from_numpy(estimate_foreground_ml(image.numpy(), mask.numpy()))


def _unknown(name: str, value: str, options: Iterable[str]) -> ArtMancerError:
    return ArtMancerError(
        "invalid_request", f"The {name} is '{value}'; expected one of {', '.join(options)}."
    )


def _failure(error: Exception, name: str, problem: str) -> ArtMancerError:
    """Make the error for an exception of onnxruntime."""
    message = " ".join(str(error).split())
    if re.search(r"allocate|out of memory", message, re.IGNORECASE):
        return ArtMancerError(
            "out_of_memory",
            f"There is not enough memory for {name} ({message}). "
            "Unload other models, or choose device cpu.",
        )
    return ArtMancerError(
        "generation_failed",
        f"{problem} ({message}). "
        f"Download {_RELEASE}/{MODELS[name].file} again and put it in its place.",
    )
