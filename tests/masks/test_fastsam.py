"""Smart Mask's FastSAM, with a tiny model of the same architecture, on shapes it never saw."""

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


def shown(seed: int, side: int = 256) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """A scene as an IMAGE, and the visible part of each of its shapes as a MASK."""
    picture, masks = scene(seed, side)
    return torch.from_numpy(picture).float()[None] / 255, [
        torch.from_numpy(mask)[None].float() for mask in masks
    ]


def middle(mask: torch.Tensor) -> tuple[float, float]:
    """The point of a shape that is farthest from its edge."""
    depth = cv2.distanceTransform(np.pad(mask[0].numpy().astype(np.uint8), 1), cv2.DIST_L2, 5)[
        1:-1, 1:-1
    ]
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    return float(x), float(y)


def clicks(model: fastsam.FastSAM, seeds: range, side: int = 256) -> Iterator[float]:
    for seed in seeds:
        image, shapes = shown(seed, side)
        for shape in shapes:
            try:
                yield iou(model.select(image, Clicks((middle(shape),))).mask, shape)
            except ArtMancerError:
                yield 0.0


def test_one_click_gets_a_shape_that_was_never_seen(model: fastsam.FastSAM) -> None:
    fits = np.array(list(clicks(model, range(500, 525))))
    assert fits.mean() >= 0.85 and (fits >= 0.85).mean() >= 0.85


def test_masks_of_a_large_picture_have_clean_edges(model: fastsam.FastSAM) -> None:
    """Sixteen times the size that the network works at:
    its own masks would be blocks of 64 pixels.
    """
    image, shapes = shown(510, 256)
    large = larger(image, (2048, 2048))
    shape = max(shapes, key=lambda one: float(one.sum()))
    x, y = middle(shape)
    found = model.select(large, Clicks(((8 * x + 4, 8 * y + 4),))).mask
    truth = functional.interpolate(shape[None], (2048, 2048))[0]
    assert found.shape == (1, 2048, 2048) and iou(found, truth) >= 0.85
    outline, _ = cv2.findContours(
        found[0].numpy().astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
    )
    runs = np.abs(np.diff(max(outline, key=len)[:, 0], axis=0)).max(1)
    assert np.median(runs) <= 8, "the outline turns every few pixels, not every 64"


def test_the_network_runs_once_for_a_picture(
    model: fastsam.FastSAM, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[int] = []
    network = model.network
    monkeypatch.setattr(model, "network", lambda picture: runs.append(1) or network(picture))
    image, shapes = shown(601)
    for shape in shapes:
        model.select(image, Clicks((middle(shape),)))
    model.select(image.clone(), Clicks((middle(shapes[0]),)))
    assert len(runs) == 1, "also for another tensor of the same content"
    image[0, 0, 0] = 1 - image[0, 0, 0]
    model.select(image, Clicks((middle(shapes[0]),)))
    assert len(runs) == 2, "a changed picture is another one"


def test_prompts_choose_among_the_masks(model: fastsam.FastSAM) -> None:
    image, shapes = shown(507)
    one, other = sorted(shapes, key=lambda shape: -float(shape.sum()))[:2]
    both = model.select(image, Clicks((middle(one), middle(other)))).mask
    assert iou(both, torch.maximum(one, other)) >= 0.8
    y, x = np.nonzero(one[0].numpy())
    box = (float(x.min()), float(y.min()), float(x.max() + 1), float(y.max() + 1))
    assert iou(model.select(image, Clicks(box=box)).mask, one) >= 0.8
    assert iou(model.select(image, Clicks(brush=one)).mask, one) >= 0.8
    found = model.select(image, Clicks())
    assert found.mask.any() and 0 <= found.score <= 1 and found.count >= 1


def larger(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return (
        functional.interpolate(image.movedim(-1, 1), size, mode="bicubic")
        .movedim(1, -1)
        .clamp(0, 1)
    )


def test_a_mask_holds_what_was_clicked_also_at_its_edge(model: fastsam.FastSAM) -> None:
    """The choice is made among small masks, whose edges lie up to some pixels off those
    that are drawn.
    """
    image, shapes = shown(510)
    everything = model.everything(larger(image, (1100, 1900)))
    random = np.random.default_rng(0)
    chosen = 0
    for shape in shapes:
        outline, _ = cv2.findContours(
            shape[0].numpy().astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
        )
        rim = max(outline, key=len)[:, 0] * [1900 / 256, 1100 / 256]
        for place in random.choice(rim, 40):
            (x, y), (p, q) = (
                np.clip(place + random.uniform(-9, 9, 2), 0, [1899, 1099]) for _ in range(2)
            )
            for choice in everything.choose(Clicks(((x, y),), ((p, q),))):
                mask = everything.draw(choice)[0]
                assert mask[int(y), int(x)] == 1 and mask[int(q), int(p)] == 0
                chosen += 1
    assert chosen > 20


@pytest.mark.parametrize("thickness", [4, 8, 14])
def test_a_thin_stroke_chooses_what_it_lies_on(model: fastsam.FastSAM, thickness: int) -> None:
    image, shapes = shown(507)
    shape = max(shapes, key=lambda one: float(one.sum()))
    x, y = (int(8 * one + 4) for one in middle(shape))
    stroke = np.zeros((2048, 2048), np.float32)
    cv2.line(stroke, (x - 80, y - 30), (x + 80, y + 30), 1, thickness)
    found = model.select(
        larger(image, (2048, 2048)), Clicks(brush=torch.from_numpy(stroke)[None])
    ).mask
    assert iou(found, functional.interpolate(shape[None], (2048, 2048))[0]) >= 0.8


def test_where_nothing_is_it_says_so(model: fastsam.FastSAM) -> None:
    with pytest.raises(
        ArtMancerError,
        match=r"None of the 0 masks in this image fits the clicks. Click on another part",
    ) as caught:
        model.select(torch.full((1, 200, 200, 3), 0.5), Clicks(((100, 100),)))
    assert caught.value.code == "object_not_found"


@pytest.mark.parametrize("size", [(1, 1), (100, 12000), (37, 501)])
def test_pictures_of_any_shape_are_taken(model: fastsam.FastSAM, size: tuple[int, int]) -> None:
    image = torch.rand(1, *size, 3, generator=torch.Generator().manual_seed(0))
    try:
        assert model.select(image, Clicks()).mask.shape == (1, *size)
    except ArtMancerError as error:
        assert error.code == "object_not_found"


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def test_files_that_are_no_model_are_refused_and_run_nothing(tmp_path: Path) -> None:
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
    with pytest.raises(ArtMancerError, match=r"There is no model 'gone.pt'") as caught:
        fastsam.load(tmp_path / "gone.pt")
    assert caught.value.code == "checkpoint_missing"


@pytest.mark.parametrize(
    ("said", "side"),
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
def test_the_side_it_was_trained_at_is_read_where_it_is_said(
    said: Any, side: int, tmp_path: Path
) -> None:
    from ultralytics.nn.tasks import torch_safe_load

    checkpoint, _ = torch_safe_load(str(WEIGHTS), safe_only=True)
    torch.save({"model": checkpoint["model"], "train_args": said}, tmp_path / "tiny.pt")
    assert fastsam.load(tmp_path / "tiny.pt").side == side


@pytest.mark.parametrize(
    "changed",
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
    changed: dict[str, Any], tmp_path: Path
) -> None:
    from support import onnx_models

    onnx_models.lookalike(tmp_path / "like.onnx")
    assert fastsam.load(tmp_path / "like.onnx").side == 64
    onnx_models.lookalike(tmp_path / "other.onnx", **changed)
    with pytest.raises(
        ArtMancerError, match=r"^'other.onnx' is not a FastSAM .*\. Choose another file\.$"
    ):
        fastsam.load(tmp_path / "other.onnx")


def test_a_library_that_ultralytics_misses_is_named(tmp_path: Path) -> None:
    (tmp_path / "ultralytics.py").write_text(
        "raise ImportError('libGL.so.1: cannot open shared object file')"
    )
    code = (
        "from pathlib import Path; from artmancer.masks import fastsam; "
        f"fastsam.load(Path({str(WEIGHTS)!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert (
        "FastSAM needs ultralytics (libGL.so.1: cannot open shared object file). Install it"
        in done.stderr
    )


def test_an_onnx_file_gives_the_same_masks_and_one_of_another_kind_is_refused(
    model: fastsam.FastSAM, tmp_path: Path
) -> None:
    from support import onnx_models

    onnx_models.segmenter(WEIGHTS, tmp_path / "tiny.onnx")
    exported = fastsam.load(tmp_path / "tiny.onnx")
    image, shapes = shown(507)
    click = Clicks((middle(shapes[-1]),))
    assert iou(exported.select(image, click).mask, model.select(image, click).mask) >= 0.99
    onnx_models.classifier(tmp_path / "other.onnx")
    with pytest.raises(ArtMancerError, match=r"'other.onnx' is not a FastSAM"):
        fastsam.load(tmp_path / "other.onnx")


def test_nothing_is_written_into_the_home_folder(tmp_path: Path) -> None:
    code = (
        "import torch; from pathlib import Path; from artmancer.masks import fastsam\n"
        "from artmancer.masks.clicks import Clicks\n"
        f"model = fastsam.load(Path({str(WEIGHTS)!r}))\n"
        "model.everything(torch.rand(1, 64, 64, 3))\n"
        "import os; assert not {'YOLO_CONFIG_DIR', 'YOLO_OFFLINE', "
        "'OMP_NUM_THREADS'} & set(os.environ)"
    )
    home = {**os.environ, "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "config")}
    for name in ("YOLO_CONFIG_DIR", "OMP_NUM_THREADS"):
        home.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", code], env=home, capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
