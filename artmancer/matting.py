"""Remove the background of a picture: rembg's models say what is the subject,
pymatting refines its edge.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ImageColor
from torch import Tensor

from . import mask_ops
from .checks import check_finite, check_image
from .errors import ArtMancerError
from .images import to_pil
from .onnx_errors import onnx_errors
from .progress import Progress, no_progress

DEVICES = ("auto", "cpu")

_RELEASE = "https://github.com/danielgatis/rembg/releases/download/v0.0.0"

# What rembg takes for certain in a mask, and by how much it shrinks that,
# before pymatting judges the rest.
_SUBJECT, _BACKGROUND, _SHRINK = 240, 10, 10
_SOLVED = 2**20


@dataclass(frozen=True)
class RembgModel:
    """One of rembg's models.

    file : what its file is called where it is fetched from;
        NAME.onnx, as rembg calls it, is taken as well
    licence : of its weights
    free : whether that lets everybody use them, in business too
    """

    file: str
    licence: str
    free: bool = True


_NOT_SAID = "not said; ask its author before business use"
MODELS = {
    "u2net": RembgModel("u2net.onnx", "Apache-2.0"),
    "u2netp": RembgModel("u2netp.onnx", "Apache-2.0"),
    "u2net_human_seg": RembgModel("u2net_human_seg.onnx", "Apache-2.0"),
    "birefnet-general": RembgModel("BiRefNet-general-epoch_244.onnx", "MIT"),
    "birefnet-general-lite": RembgModel("BiRefNet-general-bb_swin_v1_tiny-epoch_232.onnx", "MIT"),
    "birefnet-portrait": RembgModel("BiRefNet-portrait-epoch_150.onnx", "MIT"),
    "birefnet-dis": RembgModel("BiRefNet-DIS-epoch_590.onnx", "MIT"),
    "birefnet-hrsod": RembgModel("BiRefNet-HRSOD_DHU-epoch_115.onnx", "MIT"),
    "birefnet-cod": RembgModel("BiRefNet-COD-epoch_125.onnx", "MIT"),
    "birefnet-massive": RembgModel("BiRefNet-massive-TR_DIS5K_TR_TEs-epoch_420.onnx", "MIT"),
    "isnet-anime": RembgModel("isnet-anime.onnx", "Apache-2.0"),
    "isnet-general-use": RembgModel("isnet-general-use.onnx", _NOT_SAID, free=False),
    "silueta": RembgModel("silueta.onnx", _NOT_SAID, free=False),
    "bria-rmbg": RembgModel(
        "bria-rmbg-2.0.onnx", "business use needs an agreement with BRIA", free=False
    ),
}
"""Those that find the subject by themselves, on this machine.
Our default is not rembg's, which is bria-rmbg.
"""

DEFAULT = "u2net"

Session = Any
"""A rembg.sessions.BaseSession, which has no types."""


@dataclass(frozen=True)
class Cutout:
    """Pictures whose background is told apart.

    image : IMAGE [B, H, W, 3]; where the mask is soft, the subject's own colours if they
        were asked for
    mask : MASK [B, H, W], 1 = subject
    model : a key of MODELS
    provider : what it ran on: "CUDA", "CPU"...
    why : why on the CPU; empty where it was not
    unrefined : the pictures of the batch whose edge alpha matting could not refine
    """

    image: Tensor
    mask: Tensor
    model: str
    provider: str
    why: str
    unrefined: tuple[int, ...] = ()

    def with_alpha(self) -> Tensor:
        """IMAGE [B, H, W, 4], transparent where the background was."""
        return torch.cat([self.image, self.mask.unsqueeze(-1)], -1)

    def over(self, behind: Tensor) -> Tensor:
        """IMAGE [B, H, W, 3], the subject over one colour [3], see color."""
        return torch.lerp(behind.expand_as(self.image), self.image, self.mask.unsqueeze(-1))

    def as_dict(self) -> dict[str, object]:
        """What was done, as JSON can hold it."""
        done = {
            "model": self.model,
            "licence": MODELS[self.model].licence,
            "provider": self.provider,
            "why": self.why,
        }
        return {**done, "unrefined": list(self.unrefined)}


def color(text: str) -> Tensor:
    """The colour [3] in 0..1 of a name or of #rrggbb.

    Raises
    ------
    ArtMancerError : invalid_request
    """
    try:
        return torch.tensor(ImageColor.getrgb(text.strip())[:3]) / 255
    except ValueError:
        raise ArtMancerError(
            "invalid_request",
            f"The colour is '{text}'; expected a name or #rrggbb. "
            "Write one, such as white or #ff8800.",
        ) from None


def found(folders: Sequence[Path]) -> list[str]:
    """The models whose files lie in these folders, in the order of MODELS."""
    return [name for name in MODELS if _file(folders, name)]


def choose(folders: Sequence[Path]) -> str:
    """The first model in these folders that everybody may use; DEFAULT where there is none at all.

    Raises
    ------
    ArtMancerError : checkpoint_missing where there are others alone
    """
    names = found(folders)
    free = [name for name in names if MODELS[name].free]
    if names and not free:
        raise ArtMancerError(
            "checkpoint_missing",
            f"auto takes a model that everybody may use, but there is only {', '.join(names)}. "
            f"Choose it by its name, or download {_RELEASE}/{MODELS[DEFAULT].file} and put "
            f"it into '{folders[-1]}'.",
        )
    return free[0] if free else DEFAULT


def find(folders: Sequence[Path], name: str) -> Path:
    """The file of a model in these folders; nothing is downloaded.

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
    """One of rembg's models. It is loaded when it is first used, once a device,
    and kept as long as this is.

    name : a key of MODELS
    path : its file, see find
    """

    name: str
    path: Path
    _sessions: dict[str, Session] = field(default_factory=dict, init=False, repr=False)

    def cut_out(
        self,
        image: Tensor,
        *,
        alpha_matting: bool = False,
        decontaminate: bool = True,
        device: str = "auto",
        progress: Progress = no_progress,
    ) -> Cutout:
        """Tell the subject of each picture from its background.

        Parameters
        ----------
        image : IMAGE [B, H, W, 3]
        alpha_matting : draw the mask's edge anew by closed-form matting (Levin, Lischinski and
            Weiss, 2008); slow
        decontaminate : take the background's colour out of soft edges by multi-level estimation
            (Germer et al., 2020)
        device : one of DEVICES; auto: the GPU where onnxruntime can use one
        progress : told how many pictures of the batch are done; may raise to cancel, also within
            alpha matting

        Raises
        ------
        ArtMancerError : invalid_request, generation_failed, out_of_memory
        """
        if device not in DEVICES:
            raise _unknown("device", device, DEVICES)
        check_image(image)
        image = image.to("cpu", torch.float32)
        check_finite(image, "image")
        if device not in self._sessions:
            # pymatting compiles itself when it is first imported on a machine.
            progress(0, len(image), f"loading {self.name} (a minute, the very first time)")
            self._sessions[device] = _load(self.name, self.path, device)
        session = self._sessions[device]
        colors = torch.empty_like(image) if decontaminate else image
        mask = torch.empty(image.shape[:3])
        unrefined = []
        for index, picture in enumerate(image):
            tell = partial(progress, index, len(image))
            tell("removing the background")
            soft = self._predict(session, picture)
            np.divide(soft, np.float32(255), out=mask[index].numpy())
            if alpha_matting:
                refined = _refine(picture, soft, partial(tell, "alpha matting"))
                if refined is None:
                    unrefined.append(index)
                else:
                    mask[index] = refined
            if decontaminate:
                tell("cleaning the edge's colours")
                unmixed = _unmix(picture, mask[index])
                torch.where(mask[index].unsqueeze(-1) < 1, unmixed, picture, out=colors[index])
        provider = str(session.inner_session.get_providers()[0]).removesuffix("ExecutionProvider")
        return Cutout(colors, mask, self.name, provider, _why(provider, device), tuple(unrefined))

    def _predict(self, session: Session, picture: Tensor) -> NDArray[np.uint8]:
        try:
            return np.asarray(session.predict(to_pil(picture))[0])
        except onnx_errors() as error:
            self._sessions.clear()  # The next try may find another file, or more memory.
            raise _failure(
                error, self.name, f"'{self.path}' does not run as {self.name}"
            ) from error


def _file(folders: Sequence[Path], name: str) -> Path | None:
    paths = (folder / file for folder in folders for file in (f"{name}.onnx", MODELS[name].file))
    return next((path for path in paths if path.is_file()), None)


def _load(name: str, path: Path, device: str) -> Session:
    try:
        # rembg ends the process where onnxruntime is missing: it comes first.
        import onnxruntime
        from rembg.sessions import sessions
    except ImportError as error:
        raise ArtMancerError(
            "generation_failed",
            f"Removing a background needs rembg and onnxruntime ({error}). Install them into "
            "ComfyUI's Python: pip install -U rembg onnxruntime, or onnxruntime-gpu in its place "
            "for an NVIDIA GPU.",
        ) from error
    if name not in sessions:
        raise ArtMancerError(
            "generation_failed",
            f"This rembg does not know {name}. "
            "Update it (pip install -U rembg), or choose another model.",
        )

    class Local(sessions[name]):  # type: ignore[misc]  # rembg has no types
        """rembg's own session with the weights at hand: it would look in the user's home, and
        download them.
        """

        @classmethod
        def download_models(cls, *args: object, **kwargs: object) -> str:
            return str(path)

    options = {"providers": ["CPUExecutionProvider"]} if device == "cpu" else {}
    try:
        return Local(name, onnxruntime.SessionOptions(), **options)
    except onnx_errors() as error:
        raise _failure(error, name, f"'{path}' cannot be loaded") from error


def _why(provider: str, device: str) -> str:
    import onnxruntime

    if provider != "CPU":
        return ""
    if device == "cpu":
        return "cpu was chosen"
    if not (torch.cuda.is_available() and torch.version.cuda):
        return "there is no CUDA GPU"
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return "this onnxruntime is for the CPU alone; install onnxruntime-gpu in its place"
    return (
        f"onnxruntime-gpu {onnxruntime.__version__} could not use CUDA, and the log says why; it "
        f"may be built for another CUDA than PyTorch's {torch.version.cuda}"
    )


def _refine(picture: Tensor, mask: NDArray[np.uint8], check: Callable[[], None]) -> Tensor | None:
    """The mask with its edge drawn anew from the picture, [H, W]; None: nothing in it is certain,
    or no solution.

    It is solved at _SOLVED pixels at most, beyond which it takes minutes and gigabytes, and carried
    to the full size.
    """
    import cv2
    from pymatting.alpha.estimate_alpha_cf import estimate_alpha_cf

    check()
    height, width = mask.shape
    scale = min(1, (_SOLVED / (height * width)) ** 0.5)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = np.asarray(
        cv2.resize(picture.numpy(), size, interpolation=cv2.INTER_AREA), np.float32
    ).clip(0, 1)
    rough = cv2.resize(mask, size, interpolation=cv2.INTER_AREA)
    brush = np.ones((_SHRINK, _SHRINK), np.uint8)
    trimap = np.full(rough.shape, 0.5)
    for where, value in ((rough > _SUBJECT, 1), (rough < _BACKGROUND, 0)):
        # Beyond the picture's border lies background, as rembg has it.
        sure = cv2.erode(
            where.astype(np.uint8), brush, borderType=cv2.BORDER_CONSTANT, borderValue=1 - value
        )
        trimap[sure > 0] = value
    try:
        alpha = estimate_alpha_cf(
            small.astype(np.float64), trimap, cg_kwargs={"callback": lambda *_: check()}
        )
    except ValueError:
        return None
    if scale < 1:
        alpha = mask_ops.carry(alpha.astype(np.float32), small, picture.numpy())
        known = cv2.resize(trimap, (width, height), interpolation=cv2.INTER_NEAREST)
        alpha = np.where(known == 0.5, alpha, known)
    return torch.from_numpy(alpha).to(torch.float32)


def _unmix(picture: Tensor, mask: Tensor) -> Tensor:
    """The subject's own colours, [H, W, 3], which a soft edge mixes with the background's."""
    from pymatting.foreground.estimate_foreground_ml import estimate_foreground_ml

    if max(mask.shape) == 1:
        return picture
    return torch.from_numpy(estimate_foreground_ml(picture.numpy(), mask.numpy()))


def _unknown(what: str, given: str, known: Iterable[str]) -> ArtMancerError:
    return ArtMancerError(
        "invalid_request",
        f"The {what} is '{given}'; expected one of {', '.join(known)}. Choose one.",
    )


def _failure(error: Exception, name: str, what: str) -> ArtMancerError:
    said = " ".join(str(error).split())
    if re.search(r"allocate|out of memory", said, re.IGNORECASE):
        return ArtMancerError(
            "out_of_memory",
            f"The memory is too small for {name} ({said}). "
            "Unload other models, or choose device cpu.",
        )
    return ArtMancerError(
        "generation_failed",
        f"{what} ({said}). Download {_RELEASE}/{MODELS[name].file} again and put it in its place.",
    )
