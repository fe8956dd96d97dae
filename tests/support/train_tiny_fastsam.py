"""Train tiny_fastsam.pt, a FastSAM small enough for the tests: YOLOv8-seg, one class, on the scenes
of shapes.py.

    python tests/support/train_tiny_fastsam.py [WEIGHTS]

It needs ultralytics and takes about an hour on two cores. At the end it clicks on shapes of unseen
scenes and reports how well the predicted masks fit.
"""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from shapes import scene
from torch import Tensor

# ultralytics reads these variables at its import: no settings in the home folder, no network,
# no pip, no pickled code.
os.environ["YOLO_CONFIG_DIR"] = tempfile.mkdtemp()
os.environ["YOLO_OFFLINE"] = "True"
os.environ["YOLO_AUTOINSTALL"] = "False"
os.environ["ULTRALYTICS_SAFE_LOAD"] = "True"

SIDE = 256
"""Side of a scene in pixels."""

BATCH = 16
"""Scenes in a training step."""

STEPS = 2500
"""Training steps."""

FIRST_TRAINING_SEED = 10_000
"""Seed from which training takes its scenes; the check takes scenes of smaller seeds."""


def main() -> None:
    """Train, save and measure the model."""
    default = Path(__file__).parents[1] / "assets" / "tiny_fastsam.pt"
    weights = Path(sys.argv[1]) if len(sys.argv) > 1 else default
    save(train(), weights)
    fits = measure(weights)
    report(f"{weights}: {weights.stat().st_size / 1e6:.1f} MB")
    report(
        f"{len(fits)} clicks: mean IoU {np.mean(fits):.3f}, "
        f"at least 0.85 for {np.mean(np.array(fits) >= 0.85):.0%}"
    )


def train() -> Any:
    """Return a trained SegmentationModel."""
    from ultralytics.cfg import get_cfg
    from ultralytics.nn.tasks import SegmentationModel, yaml_model_load

    torch.manual_seed(0)
    layers = yaml_model_load("yolov8-seg.yaml")
    # The smallest published model, yolov8n-seg, is twice as wide.
    size = {"depth_multiple": 0.33, "width_multiple": 0.125}
    config = {"nc": 1, **size, "backbone": layers["backbone"], "head": layers["head"]}
    model = SegmentationModel(config, verbose=False)
    model.names = {0: "object"}
    model.args = get_cfg(overrides={"overlap_mask": False})
    model.train()

    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=4e-3, total_steps=STEPS, pct_start=0.1
    )
    for step in range(STEPS):
        first_seed = FIRST_TRAINING_SEED + step * BATCH
        losses, parts = model(batch(range(first_seed, first_seed + BATCH)))
        optimizer.zero_grad()
        losses.sum().div(BATCH).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10)
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            values = " ".join(f"{name} {value:.3f}" for name, value in parts.items())
            report(f"{step + 1}/{STEPS} {values}")
    return model


def batch(seeds: range) -> dict[str, Tensor]:
    """Return scenes with the boxes and masks of their shapes, in the form of ultralytics' loss."""
    images, image_indices, boxes, masks = [], [], [], []
    for index, seed in enumerate(seeds):
        image, shapes = scene(seed, SIDE)
        images.append(torch.from_numpy(image).permute(2, 0, 1) / 255)
        for mask in shapes:
            x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
            image_indices.append(index)
            boxes.append([x + width / 2, y + height / 2, width, height])
            masks.append(
                cv2.resize(
                    mask.astype(np.float32), (SIDE // 4, SIDE // 4), interpolation=cv2.INTER_AREA
                )
            )
    return {
        "img": torch.stack(images),
        "batch_idx": torch.tensor(image_indices),
        "cls": torch.zeros(len(image_indices), 1),
        "bboxes": torch.tensor(boxes) / SIDE,
        "masks": torch.from_numpy(np.stack(masks)),
    }


def save(model: Any, path: Path) -> None:
    """Write only the parts that FastSAM(path) needs, in half precision."""
    model.criterion = None
    model.args = {"task": "segment", "imgsz": SIDE}
    torch.save({"model": model.requires_grad_(False).eval().half(), "train_args": model.args}, path)


def measure(weights: Path, clicks: int = 100) -> list[float]:
    """Return the IoU of the best mask for one click on each of `clicks` unseen shapes; 0 without a
    mask.
    """
    from ultralytics import FastSAM

    model = FastSAM(weights)
    fits: list[float] = []
    for seed in range(FIRST_TRAINING_SEED):
        image, shapes = scene(seed, SIDE)
        for mask in shapes:
            (result,) = model.predict(
                image[..., ::-1],
                points=[inside(mask)],
                labels=[1],
                retina_masks=True,
                verbose=False,
            )
            predictions = [] if result.masks is None else result.masks.data.bool().numpy()
            ious = [(mask & other).sum() / (mask | other).sum() for other in predictions]
            fits.append(max(ious, default=0.0))
            if len(fits) == clicks:
                return fits
    return fits


def inside(mask: NDArray[np.bool_]) -> list[int]:
    """Return the point (x, y) of a mask that is farthest from its edge."""
    depth = cv2.distanceTransform(np.pad(mask.astype(np.uint8), 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    return [int(x), int(y)]


def report(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
