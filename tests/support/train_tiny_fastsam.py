"""Train tiny_fastsam.pt, a FastSAM small enough for the tests: YOLOv8-seg, one class, on the scenes
of shapes.py.

    python tests/support/train_tiny_fastsam.py [WEIGHTS]

It needs ultralytics and takes about an hour on two cores. At the end it clicks into shapes it was
not trained on and says how well the masks that come back fit.
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

# ultralytics reads these when it is imported: no settings in the home folder, no network, no pip,
# no pickled code.
os.environ["YOLO_CONFIG_DIR"] = tempfile.mkdtemp()
os.environ["YOLO_OFFLINE"] = "True"
os.environ["YOLO_AUTOINSTALL"] = "False"
os.environ["ULTRALYTICS_SAFE_LOAD"] = "True"

SIDE = 256
BATCH = 16
STEPS = 2500
UNSEEN = 10_000  # training takes the seeds from here on, the check those below


def main() -> None:
    weights = (
        Path(sys.argv[1])
        if len(sys.argv) > 1
        else Path(__file__).parents[1] / "assets" / "tiny_fastsam.pt"
    )
    save(train(), weights)
    fits = measure(weights)
    report(f"{weights}: {weights.stat().st_size / 1e6:.1f} MB")
    report(
        f"{len(fits)} clicks: mean IoU {np.mean(fits):.3f}, "
        f"at least 0.85 for {np.mean(np.array(fits) >= 0.85):.0%}"
    )


def train() -> Any:
    """A trained SegmentationModel."""
    from ultralytics.cfg import get_cfg
    from ultralytics.nn.tasks import SegmentationModel, yaml_model_load

    torch.manual_seed(0)
    layers = yaml_model_load("yolov8-seg.yaml")
    size = {
        "depth_multiple": 0.33,
        "width_multiple": 0.125,
    }  # the smallest there is, yolov8n-seg, is twice as wide
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
        losses, parts = model(batch(range(UNSEEN + step * BATCH, UNSEEN + (step + 1) * BATCH)))
        optimizer.zero_grad()
        losses.sum().div(BATCH).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10)
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            report(
                f"{step + 1}/{STEPS} "
                + " ".join(f"{name} {value:.3f}" for name, value in parts.items())
            )
    return model


def batch(seeds: range) -> dict[str, Tensor]:
    """Scenes with their shapes' boxes and masks, as the loss of ultralytics takes them."""
    pictures, owners, boxes, masks = [], [], [], []
    for owner, seed in enumerate(seeds):
        picture, shapes = scene(seed, SIDE)
        pictures.append(torch.from_numpy(picture).permute(2, 0, 1) / 255)
        for mask in shapes:
            x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
            owners.append(owner)
            boxes.append([x + width / 2, y + height / 2, width, height])
            masks.append(
                cv2.resize(
                    mask.astype(np.float32), (SIDE // 4, SIDE // 4), interpolation=cv2.INTER_AREA
                )
            )
    return {
        "img": torch.stack(pictures),
        "batch_idx": torch.tensor(owners),
        "cls": torch.zeros(len(owners), 1),
        "bboxes": torch.tensor(boxes) / SIDE,
        "masks": torch.from_numpy(np.stack(masks)),
    }


def save(model: Any, path: Path) -> None:
    """Write what FastSAM(path) needs and nothing else, in half precision."""
    model.criterion = None
    model.args = {"task": "segment", "imgsz": SIDE}
    torch.save({"model": model.requires_grad_(False).eval().half(), "train_args": model.args}, path)


def measure(weights: Path, clicks: int = 100) -> list[float]:
    """The IoU of the best mask at one click in each of so many unseen shapes;
    0 where no mask comes back.
    """
    from ultralytics import FastSAM

    model = FastSAM(weights)
    fits: list[float] = []
    for seed in range(UNSEEN):
        picture, shapes = scene(seed, SIDE)
        for mask in shapes:
            (result,) = model.predict(
                picture[..., ::-1],
                points=[inside(mask)],
                labels=[1],
                retina_masks=True,
                verbose=False,
            )
            found = [] if result.masks is None else result.masks.data.bool().numpy()
            fits.append(
                max(((mask & one).sum() / (mask | one).sum() for one in found), default=0.0)
            )
            if len(fits) == clicks:
                return fits
    return fits


def inside(mask: NDArray[np.bool_]) -> list[int]:
    """The point (x, y) of a mask that is farthest from its edge."""
    depth = cv2.distanceTransform(np.pad(mask.astype(np.uint8), 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    return [int(x), int(y)]


def report(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
