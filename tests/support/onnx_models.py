"""ONNX files for the tests: the tiny FastSAM, a classifier, and models with constant outputs."""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class Outputs(nn.Module):
    """The outputs of an ultralytics model that its export has: detections and prototypes."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        detections, prototypes = self.model(image)[0]
        return detections, prototypes


def segmenter(weights: Path, path: Path, side: int = 256) -> None:
    """Export the weights of a FastSAM for square images of a side, in pixels."""
    from ultralytics.nn.tasks import torch_safe_load

    checkpoint, _ = torch_safe_load(str(weights), safe_only=True)
    model = (checkpoint.get("ema") or checkpoint["model"]).float().eval()
    _export(Outputs(model), torch.rand(1, 3, side, side), path)


def classifier(path: Path) -> None:
    """Write a model that is no segmenter."""
    _export(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), torch.rand(1, 3, 2, 2), path)


class Constants(nn.Module):
    """A model with outputs of fixed shapes that do not depend on the image, except for its mean."""

    def __init__(self, *shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.shapes = shapes

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(image.mean() + torch.zeros(shape, dtype=image.dtype) for shape in self.shapes)


def lookalike(
    path: Path,
    picture: tuple[int, ...] = (1, 3, 64, 64),
    detections: tuple[int, ...] = (1, 37, 84),
    prototypes: tuple[int, ...] = (1, 32, 16, 16),
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a model with inputs and outputs of these shapes; by default those of a segmenter."""
    _export(Constants(detections, prototypes), torch.zeros(picture, dtype=dtype), path)


def _export(model: nn.Module, example: Tensor, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (example,), str(path), dynamo=False)
