"""Benchmark of an edit with Qwen-Image-Edit, compared with diffusers' own pipeline on the same
components with the same seed.

It runs on the CPU, with a base of the real width (24 heads of 128), one transformer block, a small
VAE and random weights. benchmarks/gpu.py measures the real size on a GPU.

Usage: python benchmarks/sampler.py [--json] [--tries N] [--save]
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch
from PIL import Image
from report import THREADS, Row, finish, table
from support import tiny_qwen
from torch.nn import functional

from artmancer import images
from artmancer.conditions import prepare
from artmancer.edit import edit
from artmancer.offload import Offloader
from artmancer.options import Sampling
from artmancer.progress import no_progress
from artmancer.qwen import adapters, pipeline, sampler
from artmancer.qwen.editor import QwenEditor

ROOT = Path(__file__).parents[1]

WIDE = {"heads": 24, "head_dim": 128}
"""The real transformer's width."""

IMAGES = [
    Image.open(ROOT / "workflows" / "examples" / name).convert("RGB")
    for name in ("astronaut.png", "coffee.png", "chelsea.png")
]


def sample_request(side: int) -> sampler.SampleRequest:
    """Make a request for a square image of this side in pixels, with three conditioning images."""
    crops = [image.resize((side, side)) for image in IMAGES]
    return sampler.SampleRequest("remove the lamp", crops, side, side, seed=0)


def ours(base: pipeline.Base, request: sampler.SampleRequest, sampling: Sampling) -> torch.Tensor:
    """Sample an image with our sampler, with an empty cache."""
    base.cache.clear()
    return sampler.sample(base, request, sampling, no_progress)


def seconds(call: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def stock_pipeline_rows(base: pipeline.Base, tries: int) -> Iterator[Row]:
    """Compare with diffusers' own pipeline."""
    two_steps = Sampling(steps=2)
    without_cfg = Sampling(steps=2, cfg=1.0)
    request = sample_request(512)
    stock_seconds = seconds(lambda: tiny_qwen.stock(base.pipeline, request, without_cfg))
    our_seconds = seconds(lambda: ours(base, request, without_cfg))
    yield Row("512x512, 3 conditions, 2 steps: diffusers' pipeline", stock_seconds, "s")
    yield Row("512x512, 3 conditions, 2 steps: ours", our_seconds, "s")
    yield Row("as many times faster, at least", stock_seconds / our_seconds, "x", 3.5)

    request = sample_request(256)
    expected = tiny_qwen.stock(base.pipeline, request, two_steps, 256 * 256)
    difference = (ours(base, request, two_steps) - expected).abs().max()
    yield Row("equal condition size, 256x256: largest difference", float(difference), "", 1e-4)
    for side, sampling in ((256, two_steps), (512, without_cfg)):
        ratio = best_time_ratio(base, sample_request(side), sampling, tries)
        name = (
            f"equal condition size, {side}x{side}, 3 conditions: "
            f"our time over diffusers', best of {tries}"
        )
        yield Row(name, ratio, "x", 1.02)


def best_time_ratio(
    base: pipeline.Base, request: sampler.SampleRequest, sampling: Sampling, tries: int
) -> float:
    """Return our time over diffusers' at equal condition size.

    Each is the fastest of its tries, which alternate: other load on the machine only adds time.
    """
    calls = {
        "ours": lambda: ours(base, request, sampling),
        "stock": lambda: tiny_qwen.stock(
            base.pipeline, request, sampling, request.height * request.width
        ),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for index in range(tries):
        for name in calls if index % 2 else reversed(calls):
            times[name].append(seconds(calls[name]))
    return min(times["ours"]) / min(times["stock"])


@contextmanager
def timed_models(base: pipeline.Base) -> Iterator[dict[str, list[float]]]:
    """Record the seconds of every call of the transformer, the VAE's two halves and the text
    encoder.
    """
    loaded = base.pipeline
    methods = [
        (loaded.transformer, "forward", "transformer"),
        (loaded.text_encoder, "forward", "text encoder"),
        (loaded.vae, "encode", "VAE encoder"),
        (loaded.vae, "decode", "VAE decoder"),
    ]
    times: dict[str, list[float]] = {name: [] for _, _, name in methods}

    def wrap(call: Callable[..., Any], name: str) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = call(*args, **kwargs)
            times[name].append(time.perf_counter() - start)
            return result

        return wrapped

    for module, attribute, name in methods:
        setattr(module, attribute, wrap(getattr(module, attribute), name))
    yield times
    for module, attribute, _ in methods:
        delattr(module, attribute)


def overhead_rows(base: pipeline.Base) -> Iterator[Row]:
    """Compare the time of an edit with the time spent inside its models."""
    request = sample_request(256)
    four_steps = Sampling(steps=4)
    base.cache.clear()
    with timed_models(base) as times:
        whole = seconds(lambda: sampler.sample(base, request, four_steps, no_progress))
    yield Row(
        "256x256, 4 steps: our loop over its models' own time",
        whole / sum(map(sum, times.values())),
        "x",
        1.03,
    )
    with timed_models(base) as times:
        sampler.sample(base, replace(request, seed=1), four_steps, no_progress)
    yield Row("the same with another seed: text encoder calls", len(times["text encoder"]), "", 0)
    yield Row("the same with another seed: VAE encoder calls", len(times["VAE encoder"]), "", 0)


def read_bytes() -> int:
    """Return the bytes that this process has read through system calls so far."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("rchar")))


def switching_rows(folder: Path, base: pipeline.Base) -> Iterator[Row]:
    """Compare switching between two checkpoints with loading the base."""
    loras = [
        tiny_qwen.save_lora(folder / f"{seed}.safetensors", folder / "base", seed=seed)
        for seed in (1, 2)
    ]
    for lora in loras:
        adapters.activate(base, {lora: 1.0})
    for lora in loras:
        lora.unlink()
    maps = Path("/proc/self/maps").read_text()
    before = read_bytes()
    switches = [
        seconds(lambda lora=lora: adapters.activate(base, {lora: 1.0})) for lora in loras * 5
    ]
    # The bytes that read_bytes itself reads are subtracted.
    read = read_bytes() - before - len(Path("/proc/self/io").read_bytes())
    adapters.activate(base, {})
    load = statistics.median(seconds(lambda: pipeline.load(folder / "base")) for _ in range(3))
    switch = statistics.median(switches)
    yield Row("loading the base anew", 1000 * load, "ms")
    yield Row("switching the variant", 1000 * switch, "ms")
    yield Row("switching over loading, as many times faster, at least", load / switch, "x", 50)
    yield Row("bytes read in ten switches, after the files were deleted", read, "B", 0)
    yield Row(
        "deleted files that are still mapped into memory",
        sum(str(lora) in maps for lora in loras),
        "",
        0,
    )


def image_size_rows(base: pipeline.Base) -> Iterator[Row]:
    """Compare an edit of the same size in a small and in a large image."""
    editor = QwenEditor(base, "removal")
    sampling = Sampling(steps=2, cfg=1.0)
    times: dict[int, float] = {}
    side = 360
    photo = images.load(ROOT / "workflows/examples/astronaut.png").image.movedim(-1, 1)
    for width, height in ((1024, 1024), (7680, 4320)):
        image = functional.interpolate(photo, (height, width)).movedim(1, -1).contiguous()
        mask = torch.zeros(1, height, width)
        mask[:, 300 : 300 + side, 300 : 300 + side] = 1
        base.cache.clear()
        times[width] = seconds(
            lambda image=image, mask=mask: edit(editor, prepare(image, mask), sampling=sampling)
        )
        yield Row(f"a {side}-pixel edit in {width}x{height}", times[width], "s")
    yield Row("the 8K edit over the 1K edit", times[7680] / times[1024], "x", 1.15)


def main() -> int:
    """Run all benchmarks and print their rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--tries", type=int, default=5, help="repetitions; default: %(default)s")
    parser.add_argument("--save", action="store_true", help="keep the table in benchmarks/results")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny_qwen.save_base(folder / "base", layers=1, **WIDE)
        base = pipeline.load(folder / "base", "fp32", Offloader("cpu"))
        rows = [
            *stock_pipeline_rows(base, options.tries),
            *overhead_rows(base),
            *switching_rows(folder, base),
            *image_size_rows(base),
        ]
    if options.save:
        (ROOT / "benchmarks" / "results" / "sampler.txt").write_text(table(rows) + "\n")
    return finish(rows, options.json)


if __name__ == "__main__":
    sys.exit(main())
