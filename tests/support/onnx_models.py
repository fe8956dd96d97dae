"""ONNX files for the tests: the tiny FastSAM, and a model of another kind."""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class Outputs(nn.Module):
    """Of ultralytics' model those that an exported one gives."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        detections, prototypes = self.model(picture)[0]
        return detections, prototypes


def segmenter(weights: Path, path: Path, side: int = 256) -> None:
    from ultralytics.nn.tasks import torch_safe_load

    checkpoint, _ = torch_safe_load(str(weights), safe_only=True)
    model = (checkpoint.get("ema") or checkpoint["model"]).float().eval()
    _export(Outputs(model), torch.rand(1, 3, side, side), path)


def classifier(path: Path) -> None:
    _export(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), torch.rand(1, 3, 2, 2), path)


class Constants(nn.Module):
    """Gives outputs of these shapes, whatever the picture."""

    def __init__(self, *shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.shapes = shapes

    def forward(self, picture: Tensor) -> tuple[Tensor, ...]:
        return tuple(
            picture.mean() + torch.zeros(shape, dtype=picture.dtype) for shape in self.shapes
        )


def lookalike(
    path: Path,
    picture: tuple[int, ...] = (1, 3, 64, 64),
    detections: tuple[int, ...] = (1, 37, 84),
    prototypes: tuple[int, ...] = (1, 32, 16, 16),
    dtype: torch.dtype = torch.float32,
) -> None:
    """What takes and gives tensors of these shapes; unless told otherwise those of a segmenter."""
    _export(Constants(detections, prototypes), torch.zeros(picture, dtype=dtype), path)


def _export(model: nn.Module, example: Tensor, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (example,), str(path), dynamo=False)
