"""Smart Mask's FastSAM: a tiny model of the same architecture, on shapes that it was not trained
on.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from support.images import iou
from support.paths import ROOT
from support.shapes import scene
from torch.nn import functional

from artmancer.errors import ArtMancerError
from artmancer.masks import fastsam
from artmancer.masks.clicks import Clicks

ASSETS = ROOT / "tests" / "assets"
WEIGHTS = ASSETS / "tiny_fastsam.pt"


@pytest.fixture(scope="module")
def model() -> fastsam.FastSAM:
    return fastsam.load(WEIGHTS)


def scene_tensors(seed: int, side: int = 256) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return a scene as an IMAGE, and the visible part of each of its shapes as a MASK."""
    pixels, masks = scene(seed, side)
    image = torch.from_numpy(pixels).float()[None] / 255
    return image, [torch.from_numpy(mask)[None].float() for mask in masks]


def middle(mask: torch.Tensor) -> tuple[float, float]:
    """Return the point (x, y) of a shape that is farthest from its edge."""
    padded = np.pad(mask[0].numpy().astype(np.uint8), 1)
    depth = cv2.distanceTransform(padded, cv2.DIST_L2, 5)[1:-1, 1:-1]
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    return float(x), float(y)


def click_ious(model: fastsam.FastSAM, seeds: range, side: int = 256) -> Iterator[float]:
    """Click on each shape of the scenes and yield the IoU of the mask, or 0 if no mask fits."""
    for seed in seeds:
        image, shapes = scene_tensors(seed, side)
        for shape in shapes:
            try:
                yield iou(model.select(image, Clicks((middle(shape),))).mask, shape)
            except ArtMancerError:
                yield 0.0


@pytest.mark.slow
def test_one_click_selects_a_shape_that_was_not_in_the_training(model: fastsam.FastSAM) -> None:
    ious = np.array(list(click_ious(model, range(500, 525))))
    assert ious.mean() >= 0.85
    assert (ious >= 0.85).mean() >= 0.85


def test_masks_of_a_large_image_have_clean_edges(model: fastsam.FastSAM) -> None:
    """Use an image eight times as wide as the network's input.

    The network's own masks, enlarged, would consist of blocks of 64 pixels.
    """
    image, shapes = scene_tensors(510, 256)
    large = larger(image, (2048, 2048))
    shape = largest(shapes)
    x, y = middle(shape)
    mask = model.select(large, Clicks(((8 * x + 4, 8 * y + 4),))).mask
    truth = functional.interpolate(shape[None], (2048, 2048))[0]
    assert mask.shape == (1, 2048, 2048)
    assert iou(mask, truth) >= 0.85
    outlines, _ = cv2.findContours(
        mask[0].numpy().astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
    )
    straight_runs = np.abs(np.diff(max(outlines, key=len)[:, 0], axis=0)).max(1)
    assert np.median(straight_runs) <= 8, "the outline turns every few pixels, not every 64"


def test_the_network_runs_once_for_an_image(
    model: fastsam.FastSAM, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[int] = []
    network = model.network
    monkeypatch.setattr(model, "network", lambda image: runs.append(1) or network(image))
    image, shapes = scene_tensors(601)
    for shape in shapes:
        model.select(image, Clicks((middle(shape),)))
    model.select(image.clone(), Clicks((middle(shapes[0]),)))
    assert len(runs) == 1, "also for another tensor of the same content"
    image[0, 0, 0] = 1 - image[0, 0, 0]
    model.select(image, Clicks((middle(shapes[0]),)))
    assert len(runs) == 2, "a changed image is another image"


def test_clicks_choose_among_the_masks(model: fastsam.FastSAM) -> None:
    image, shapes = scene_tensors(507)
    first, second = sorted(shapes, key=lambda shape: -float(shape.sum()))[:2]
    both = model.select(image, Clicks((middle(first), middle(second)))).mask
    assert iou(both, torch.maximum(first, second)) >= 0.8
    y, x = np.nonzero(first[0].numpy())
    box = (float(x.min()), float(y.min()), float(x.max() + 1), float(y.max() + 1))
    assert iou(model.select(image, Clicks(box=box)).mask, first) >= 0.8
    assert iou(model.select(image, Clicks(brush=first)).mask, first) >= 0.8
    result = model.select(image, Clicks())
    assert result.mask.any()
    assert 0 <= result.score <= 1
    assert result.count >= 1


def larger(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize an IMAGE to (height, width)."""
    planes = functional.interpolate(image.movedim(-1, 1), size, mode="bicubic")
    return planes.movedim(1, -1).clamp(0, 1)


def largest(masks: list[torch.Tensor]) -> torch.Tensor:
    return max(masks, key=lambda mask: float(mask.sum()))


def test_a_mask_holds_its_points_also_at_its_edge(model: fastsam.FastSAM) -> None:
    """Check the masks at full size.

    The choice uses small masks. Their edges are some pixels away from the edges at full size.
    """
    image, shapes = scene_tensors(510)
    everything = model.everything(larger(image, (1100, 1900)))
    random = np.random.default_rng(0)
    checked = 0
    for shape in shapes:
        outlines, _ = cv2.findContours(
            shape[0].numpy().astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
        )
        outline = max(outlines, key=len)[:, 0] * [1900 / 256, 1100 / 256]
        for point in random.choice(outline, 40):
            x, y = np.clip(point + random.uniform(-9, 9, 2), 0, [1899, 1099])
            negative_x, negative_y = np.clip(point + random.uniform(-9, 9, 2), 0, [1899, 1099])
            for choice in everything.choose(Clicks(((x, y),), ((negative_x, negative_y),))):
                mask = everything.draw(choice)[0]
                assert mask[int(y), int(x)] == 1
                assert mask[int(negative_y), int(negative_x)] == 0
                checked += 1
    assert checked > 20


@pytest.mark.parametrize("thickness", [4, 8, 14])
def test_a_thin_stroke_chooses_the_shape_under_it(model: fastsam.FastSAM, thickness: int) -> None:
    image, shapes = scene_tensors(507)
    shape = largest(shapes)
    x, y = (int(8 * coordinate + 4) for coordinate in middle(shape))
    stroke = np.zeros((2048, 2048), np.float32)
    cv2.line(stroke, (x - 80, y - 30), (x + 80, y + 30), 1, thickness)
    clicks = Clicks(brush=torch.from_numpy(stroke)[None])
    mask = model.select(larger(image, (2048, 2048)), clicks).mask
    assert iou(mask, functional.interpolate(shape[None], (2048, 2048))[0]) >= 0.8


def test_an_image_without_objects_is_an_error(model: fastsam.FastSAM) -> None:
    with pytest.raises(
        ArtMancerError,
        match=r"None of the 0 masks in this image fits the clicks. Click on another part",
    ) as error:
        model.select(torch.full((1, 200, 200, 3), 0.5), Clicks(((100, 100),)))
    assert error.value.code == "object_not_found"


@pytest.mark.parametrize("size", [(1, 1), (100, 12000), (37, 501)])
def test_images_of_any_shape_are_accepted(model: fastsam.FastSAM, size: tuple[int, int]) -> None:
    image = torch.rand(1, *size, 3, generator=torch.Generator().manual_seed(0))
    try:
        assert model.select(image, Clicks()).mask.shape == (1, *size)
    except ArtMancerError as error:
        assert error.code == "object_not_found"


class Bomb:
    """An object that runs a command when it is unpickled: it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def test_files_that_are_no_model_are_refused_and_no_code_in_them_runs(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    torch.save({"model": Bomb(marker)}, tmp_path / "bomb.pt")
    torch.save({"model": {"weight": torch.zeros(3)}}, tmp_path / "weights.pt")
    (tmp_path / "noise.pt").write_bytes(b"not a model" * 100)
    (tmp_path / "word.pt").write_bytes(b"another")
    (tmp_path / "cut.pt").write_bytes(WEIGHTS.read_bytes()[:5000])
    (tmp_path / "noise.onnx").write_bytes(b"not a model" * 100)
    for name in ("bomb.pt", "weights.pt", "noise.pt", "word.pt", "cut.pt", "noise.onnx"):
        with pytest.raises(
            ArtMancerError, match=f"'{name}' is not a FastSAM or YOLO segmentation model"
        ):
            fastsam.load(tmp_path / name)
    assert not marker.exists()
    with pytest.raises(ArtMancerError, match=r"There is no model 'gone.pt'") as error:
        fastsam.load(tmp_path / "gone.pt")
    assert error.value.code == "checkpoint_missing"


@pytest.mark.parametrize(
    ("train_args", "side"),
    [
        (None, 1024),
        ({}, 1024),
        ({"imgsz": None}, 1024),
        ({"imgsz": 640}, 640),
        ({"imgsz": [640, 480]}, 640),
        ({"imgsz": []}, 1024),
        ("imgsz", 1024),
    ],
)
def test_the_side_of_the_training_images_is_read_from_the_file(
    train_args: Any, side: int, tmp_path: Path
) -> None:
    from ultralytics.nn.tasks import torch_safe_load

    checkpoint, _ = torch_safe_load(str(WEIGHTS), safe_only=True)
    torch.save({"model": checkpoint["model"], "train_args": train_args}, tmp_path / "tiny.pt")
    assert fastsam.load(tmp_path / "tiny.pt").side == side


@pytest.mark.parametrize(
    "changes",
    [
        {"detections": (1, 36, 84)},
        {"detections": (1, 300, 38)},
        {"detections": (1, 37)},
        {"prototypes": (1, 32, 32, 32)},
        {"prototypes": (1, 40, 16, 16)},
        {"prototypes": (1, 32, 16)},
        {"picture": (1, 1, 64, 64)},
        {"picture": (1, 3, 64, 96)},
        {"picture": (2, 3, 64, 64)},
        {"dtype": torch.float16},
    ],
    ids=str,
)
def test_an_onnx_file_that_looks_like_a_segmenter_is_refused_when_it_is_loaded(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    from support import onnx_models

    onnx_models.lookalike(tmp_path / "like.onnx")
    assert fastsam.load(tmp_path / "like.onnx").side == 64
    onnx_models.lookalike(tmp_path / "other.onnx", **changes)
    with pytest.raises(
        ArtMancerError, match=r"^'other.onnx' is not a FastSAM .*\. Choose another file\.$"
    ):
        fastsam.load(tmp_path / "other.onnx")


@pytest.mark.slow
def test_a_library_that_ultralytics_needs_is_named_when_it_is_missing(tmp_path: Path) -> None:
    (tmp_path / "ultralytics.py").write_text(
        "raise ImportError('libGL.so.1: cannot open shared object file')"
    )
    code = (
        "from pathlib import Path; from artmancer.masks import fastsam; "
        f"fastsam.load(Path({str(WEIGHTS)!r}))"
    )
    process = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert (
        "FastSAM needs ultralytics (libGL.so.1: cannot open shared object file). Install it"
        in process.stderr
    )


@pytest.mark.slow
def test_an_onnx_file_gives_the_same_masks_and_an_onnx_classifier_is_refused(
    model: fastsam.FastSAM, tmp_path: Path
) -> None:
    from support import onnx_models

    onnx_models.segmenter(WEIGHTS, tmp_path / "tiny.onnx")
    exported = fastsam.load(tmp_path / "tiny.onnx")
    image, shapes = scene_tensors(507)
    click = Clicks((middle(shapes[-1]),))
    assert iou(exported.select(image, click).mask, model.select(image, click).mask) >= 0.99
    onnx_models.classifier(tmp_path / "other.onnx")
    with pytest.raises(ArtMancerError, match=r"'other.onnx' is not a FastSAM"):
        fastsam.load(tmp_path / "other.onnx")


@pytest.mark.slow
def test_nothing_is_written_into_the_home_folder(tmp_path: Path) -> None:
    code = (
        "import torch; from pathlib import Path; from artmancer.masks import fastsam\n"
        "from artmancer.masks.clicks import Clicks\n"
        f"model = fastsam.load(Path({str(WEIGHTS)!r}))\n"
        "model.everything(torch.rand(1, 64, 64, 3))\n"
        "import os; assert not {'YOLO_CONFIG_DIR', 'YOLO_OFFLINE', "
        "'OMP_NUM_THREADS'} & set(os.environ)"
    )
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
    }
    for name in ("YOLO_CONFIG_DIR", "OMP_NUM_THREADS"):
        environment.pop(name, None)
    process = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=ROOT
    )
    assert process.returncode == 0, process.stderr
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
