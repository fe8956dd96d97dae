"""Table of GPUs: what "auto" chooses for Qwen-Image-Edit on each, and what an edit moves.

The real size on a GPU that is not there, see tests/support/fake_gpu.py: the bytes are counted, and
nothing is computed.

Usage: python benchmarks/cards.py [--json]
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch
from PIL import Image
from report import Row, finish, private_memory
from support import real_size
from support.fake_gpu import FakeGpu, FakeOffloader

from artmancer.options import MEMORY_MODES, Sampling
from artmancer.progress import no_progress
from artmancer.qwen import eight_bits, memory, pipeline, sampler

GB = 2**30
CARDS = (24, 32, 40, 48, 80)
"""Memory of the GPUs, in GB. CUDA and other programs take one of them."""

SIDES = (512, 1024)
"""Sides of the edited squares, in pixels. Each has three conditioning images."""


COMFYUI_CARDS = (8, 12, 16, 24)
"""Memory of the GPUs for ComfyUI's own model files, in GB. Other programs take one of them."""

FORMATS = {"bf16": 16.0, "fp8": 8.0, "GGUF Q8_0": 8.5, "GGUF Q4_0": 4.5}
"""Bits of a weight in ComfyUI's model files, by format. In GGUF's, 32 weights share a scale of 16
bits.
"""


def load(folder: Path, gpu: FakeGpu, precision: str) -> pipeline.Base:
    """Load the base; in fp8, round its blocks without their data."""
    base = pipeline.load(folder, "bf16", FakeOffloader(gpu, 80 * GB))
    if precision == "fp8":
        with gpu:
            gpu.to_fake(base.pipeline.transformer)
            eight_bits.round_blocks(base.pipeline.transformer, torch.bfloat16, no_progress)
    return base


def card_rows(folder: Path, bases: dict[str, pipeline.Base], gpu: FakeGpu) -> Iterator[Row]:
    """Show what "auto" chooses on each card, and in bf16, which it always took before."""
    for card in CARDS:
        offloader = FakeOffloader(gpu, (card - 1) * GB)
        chosen = pipeline.precision_for(folder, "auto", offloader).name
        for side in SIDES:
            for label, precision in (("before: bf16", "bf16"), (f"auto: {chosen}", chosen)):
                placed = bases[precision].memory
                placed.offloader = offloader
                placed.mode = MEMORY_MODES[0]
                mode, _ = placed.fitting_mode(4 * side**2)
                weights = memory.model_bytes(placed.parts["transformer"])
                sent = weights if mode == MEMORY_MODES[2] else 0
                name = f"{card} GB, {side} px, {label}, {mode}: sent in each step"
                yield Row(name, sent / GB, "GB")


def file_rows(base: pipeline.Base) -> Iterator[Row]:
    """Show the sizes of ComfyUI's own model files, and how much of the transformer does not fit
    beside the activations of an edit: ComfyUI streams that part in every step. Computed, not
    measured: from the number of weights, all of them in one format.
    """
    # The base is in bf16.
    counts = {name: memory.model_bytes(model) / 2 for name, model in base.memory.parts.items()}
    for name, bits in FORMATS.items():
        for part in ("transformer", "text_encoder"):
            yield Row(f"{name}: weights of the {part}", counts[part] * bits / 8 / GB, "GB")
    for card in COMFYUI_CARDS:
        for side in SIDES:
            free = (card - 1) * GB - memory.activation_bytes("transformer", 4 * side**2)
            for name, bits in FORMATS.items():
                streamed = max(0.0, counts["transformer"] * bits / 8 - free)
                row = f"{card} GB, {side} px, Editor from Model, {name}: streamed in each step"
                yield Row(row, streamed / GB, "GB")


def moving_rows(base: pipeline.Base, gpu: FakeGpu) -> Iterator[Row]:
    """Count the bytes that three edits move in the modes that load whole models."""
    images = [Image.new("RGB", (512, 512), (shade, 99, 1)) for shade in range(3)]
    with gpu:
        for mode, card in zip(MEMORY_MODES[:2], (80, 48), strict=True):
            base.memory.offloader = FakeOffloader(gpu, (card - 1) * GB)
            base.memory.set_mode(mode, 4 * 512 * 512)
            base.cache.clear()
            gpu.sent = gpu.fetched = 0
            before = private_memory() or 0
            for seed in range(3):
                request = sampler.SampleRequest(f"edit {seed}", images, 512, 512, seed)
                sampler.sample(base, request, Sampling(steps=1, cfg=1.0), no_progress)
            for part in base.memory.parts.values():
                base.memory.offloader.unload(part)
            name = f"three edits with new prompts, {mode}"
            yield Row(f"{name}: sent to the GPU", gpu.sent / GB, "GB")
            yield Row(f"{name}: copied back", gpu.fetched / GB, "GB", 0.1)
            grown = (private_memory() or 0) - before
            yield Row(f"{name}: more private memory afterwards", grown / GB, "GB", 1)


def peak_rows(base: pipeline.Base, gpu: FakeGpu) -> Iterator[Row]:
    """Show the most bytes on the GPU at once, and what "auto" asks for, by mode."""
    images = [Image.new("RGB", (512, 512), (shade, 99, 1)) for shade in range(3)]
    request = sampler.SampleRequest("edit 2", images, 512, 512, 0)
    precision = "fp8" if memory.model_bytes(base.memory.parts["transformer"]) < 30 * GB else "bf16"
    with gpu:
        for mode in MEMORY_MODES[:2]:
            capacity = 80 if mode == MEMORY_MODES[0] else 1
            base.memory.offloader = FakeOffloader(gpu, capacity * GB)
            base.memory.set_mode(mode, 4 * 512 * 512)
            start = gpu.memory
            for part in memory.PARTS:
                base.memory.load_part(part, 0, no_progress)
            gpu.reset_peak()
            sampler.sample(base, request, Sampling(steps=1, cfg=1.0), no_progress)
            for part in base.memory.parts.values():
                base.memory.offloader.unload(part)
            name = f"512 px, {precision}, {mode}"
            yield Row(f"{name}: peak", (gpu.peak - start) / GB, "GB")
            needed = base.memory.needed_bytes(4 * 512 * 512)[mode]
            yield Row(f"{name}: free memory that auto asks for", needed / GB, "GB")


def main() -> int:
    """Count, and print the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    gpu = FakeGpu()
    with tempfile.TemporaryDirectory() as name:
        folder = real_size.save_base(Path(name) / "base")
        bases = {precision: load(folder, gpu, precision) for precision in ("bf16", "fp8")}
        bases["fp8"].cache = bases["bf16"].cache
        rows = [
            *card_rows(folder, bases, gpu),
            *file_rows(bases["bf16"]),
            *moving_rows(bases["bf16"], gpu),
            *peak_rows(bases["bf16"], gpu),
            *peak_rows(bases["fp8"], gpu),
        ]
    return finish(rows, options.json)


if __name__ == "__main__":
    sys.exit(main())
