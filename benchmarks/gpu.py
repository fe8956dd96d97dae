"""Benchmark of an edit with Qwen-Image-Edit at the real size, on a CUDA GPU: 60 blocks, the real
VAE and text encoder, random weights in bfloat16.

The parts run in the order of PARTS, the most important first. Each row is printed and stored as
soon as it is measured, so that a run that is cut off keeps what it has.

Usage: python benchmarks/gpu.py [--json] [--seconds N] [--results FOLDER]
"""

import argparse
import gc
import re
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch
from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as stock_module
from report import THREADS, Row, finish, heading, line, private_memory, table
from safetensors.torch import save_file
from sampler import ROOT, sample_request, seconds
from support import real_size, tiny_qwen
from torch import Tensor, nn

from artmancer.offload import Offloader, model_bytes
from artmancer.options import ONE_MEGAPIXEL, Sampling
from artmancer.progress import Progress, no_progress
from artmancer.qwen import adapters, eight_bits, memory, pipeline, sampler, speed
from artmancer.qwen.editor import ACCELERATED_SHIFT

GB = 2**30

BLOCKS = real_size.TRANSFORMER["num_layers"]
"""Blocks of the real transformer."""

SECONDS = 480
"""Time for all parts, in seconds."""

NO_TIME = "no time left"
NO_GPU = "there is no CUDA GPU"

NAME_WIDTH = 96
"""Width of the names in the table that is printed while the parts run."""

FAST_CARDS = re.compile(r"H[12]00")
"""Names of the cards that the limits of speed are for."""

LARGEST_STEP = 0.31
"""Seconds of a step at 512 x 512 with three conditioning images and CFG, on FAST_CARDS."""

LARGEST_EDIT = 1.0
"""Seconds of an edit in 4 steps with CFG 1, on FAST_CARDS."""


class Meter:
    """The memory of a CUDA GPU, in bytes."""

    def reset_peak(self) -> None:
        torch.cuda.reset_peak_memory_stats()

    def allocated(self) -> int:
        return torch.cuda.memory_allocated()

    def peak(self) -> int:
        return torch.cuda.max_memory_allocated()


@dataclass
class Bench:
    """The models that are measured, and how much is measured.

    Attributes
    ----------
    device : the device that they compute on
    folder : folder with the tokenizer's base, and for files of LoRAs
    meter : measures the memory of the device
    card : name of the device
    blocks : blocks of the transformer
    side : side of the smaller images in pixels; the larger ones have twice as much
    steps : two numbers of steps: the difference of their times is that of the steps between
    matrix_side : rows of the matrices that measure the device's peak
    """

    device: torch.device
    folder: Path
    meter: Meter
    card: str = ""
    blocks: int = BLOCKS
    side: int = 512
    steps: tuple[int, int] = (2, 6)
    matrix_side: int = 8192

    @cached_property
    def base(self) -> pipeline.Base:
        return real_base(self.folder, self.device, self.blocks)

    @cached_property
    def peak_flops(self) -> float:
        return peak_flops(self.device, self.matrix_side)

    def loaded(self) -> pipeline.Base:
        """Return the base with all its models on the device."""
        self.base.memory.set_mode(memory.ALL_ON_GPU, 0)
        for part in memory.PARTS:
            self.base.memory.load_part(part, 0, no_progress)
        return self.base

    def request(self, scale: int = 1, conditions: int = 3) -> sampler.SampleRequest:
        """Make a request for an image of this number of sides, with these conditioning images."""
        request = sample_request(scale * self.side)
        return replace(request, conditions=request.conditions[:conditions])

    def limit(self, value: float) -> float | None:
        """Return a limit of speed, None: it is not for this card."""
        return value if FAST_CARDS.search(self.card) else None

    def lora(self, name: str, rank: int, layers: tuple[str, ...]) -> Path:
        """Return a file with a random LoRA of this rank for these layers of every block; write it
        at the first call.
        """
        path = self.folder / f"{name}.safetensors"
        if not path.exists():
            save_lora(path, self.base.pipeline.transformer, rank, layers)
        return path

    def acceleration(self) -> Path:
        """Return the file of a LoRA of Lightning's rank and layers."""
        return self.lora("acceleration", 64, (*ATTENTION_LAYERS, *OTHER_LAYERS))

    def checkpoints(self) -> list[Path]:
        """Return the files of three LoRAs like those of the checkpoints."""
        return [self.lora(f"checkpoint-{number}", 16, ATTENTION_LAYERS) for number in range(3)]


ATTENTION_LAYERS = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0")
"""Layers of a block that most LoRAs change."""

OTHER_LAYERS = (
    *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
    *("img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2"),
)
"""Layers of a block that Lightning changes as well."""


def real_base(folder: Path, device: torch.device, blocks: int) -> pipeline.Base:
    """Make the real models in bfloat16, with random weights that are made on the device.

    Parameters
    ----------
    folder : a base whose tokenizer, processor and noise schedule are used
    """
    base = pipeline.load(folder / "base", "bf16", Offloader(device))
    loaded = base.pipeline
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            parts = {
                "transformer": QwenImageTransformer2DModel(
                    **{**real_size.TRANSFORMER, "num_layers": blocks}
                ),
                "text_encoder": tiny_qwen.text_encoder(
                    loaded.tokenizer,
                    {**real_size.TEXT, "initializer_range": 0.02},
                    {**real_size.VISION, "initializer_range": 0.02},
                ),
                "vae": AutoencoderKLQwenImage(**real_size.VAE),
            }
    finally:
        torch.set_default_dtype(torch.float32)
    loaded.register_modules(
        **{name: part.eval().requires_grad_(False) for name, part in parts.items()}
    )
    base.memory = memory.Memory(loaded, base.memory.offloader)
    return base


def save_lora(path: Path, transformer: nn.Module, rank: int, layers: tuple[str, ...]) -> None:
    """Write a random LoRA; its changes are small beside the weights."""
    weights: dict[str, Tensor] = {}
    for name, module in transformer.named_modules():
        # PEFT's layer around a layer has the same name.
        if not name.startswith("transformer_blocks.") or not name.endswith(layers):
            continue
        down = torch.randn(rank, module.in_features) / module.in_features**0.5
        up = torch.randn(module.out_features, rank) / 100
        weights[f"transformer.{name}.lora_A.weight"] = down.bfloat16()
        weights[f"transformer.{name}.lora_B.weight"] = up.bfloat16()
    save_file(weights, path)


def peak_flops(device: torch.device, side: int) -> float:
    """Measure the device's bfloat16 peak, in FLOP a second, with products of square matrices."""
    matrix = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    products = 10

    def multiply() -> None:
        # tolist waits for the GPU.
        torch.stack([(matrix @ matrix)[0, 0] for _ in range(products)]).tolist()

    return products * 2 * side**3 / min(seconds(multiply) for _ in range(5))


def forward_flops(tokens: int, blocks: int) -> float:
    """Return the FLOP of one forward pass of the real transformer: 13.6 GFLOP a token in the linear
    layers of 60 blocks, and attention over vectors of 3,072.
    """
    return blocks / BLOCKS * 13.6e9 * tokens + blocks * 4 * tokens**2 * 3072


def sample(base: pipeline.Base, request: sampler.SampleRequest, sampling: Sampling) -> Tensor:
    """Sample an image with the settings of speed."""
    with speed.settings(base, sampling):
        return sampler.sample(base, request, sampling, no_progress)


def size_name(request: sampler.SampleRequest) -> str:
    count = len(request.conditions)
    return f"{request.width}x{request.height}, {count} condition{'s' * (count > 1)}"


# 1: parity


@contextmanager
def float32_noise() -> Iterator[None]:
    """Make diffusers' pipeline draw its noise in 32 bits, as ours does: the same seed gives other
    numbers in 16 bits.
    """
    draw = stock_module.randn_tensor

    def draw_float32(shape: Any, dtype: Any = None, **options: Any) -> Tensor:
        noise: Tensor = draw(shape, dtype=torch.float32, **options)
        return noise.to(dtype)

    stock_module.randn_tensor = draw_float32
    try:
        yield
    finally:
        stock_module.randn_tensor = draw


@contextmanager
def first_blocks(transformer: Any, count: int) -> Iterator[None]:
    """Run only the first blocks of the transformer."""
    blocks = transformer.transformer_blocks
    transformer.transformer_blocks = blocks[:count]
    try:
        yield
    finally:
        transformer.transformer_blocks = blocks


def parity_rows(bench: Bench, blocks: int) -> Iterator[Row]:
    """Compare our picture with that of diffusers' pipeline, in levels of 255."""
    base = bench.loaded()
    request = bench.request()
    sampling = Sampling(steps=2)
    with first_blocks(base.pipeline.transformer, blocks), float32_noise():
        base.cache.clear()
        ours = sample(base, request, sampling)
        expected = tiny_qwen.stock(base.pipeline, request, sampling, bench.side**2).float().cpu()
    difference = 255 * (ours - expected).abs()
    name = f"{size_name(request)}, blocks: {blocks}: ours and diffusers'"
    yield Row(f"{name}, mean difference", float(difference.mean()), "levels", 1.0)
    yield Row(f"{name}, largest difference", float(difference.max()), "levels")
    yield Row(f"{name}, deviation of the picture", 255 * float(expected.std()), "levels")


# 2: speed


@dataclass(frozen=True)
class Case:
    """A way to sample.

    Attributes
    ----------
    sampling : its settings
    kind : "ours"; "stock": diffusers' pipeline; "fp8": the transformer in 8 bits; "batch": both
        passes of classifier-free guidance in one batch
    """

    sampling: Sampling
    kind: str = "ours"


CASES = {
    "eager": Case(Sampling()),
    "compiled": Case(Sampling(compile=True)),
    "attention cudnn": Case(Sampling(attention="cudnn")),
    "fp8": Case(Sampling(), "fp8"),
    "diffusers' pipeline at one megapixel": Case(Sampling(condition_pixels=ONE_MEGAPIXEL), "stock"),
    "diffusers' pipeline at equal size": Case(Sampling(), "stock"),
}
"""Ways to sample, by the name of the row."""

MORE_CASES = {
    "both passes in one batch": Case(Sampling(), "batch"),
    "step cache first block 0.1": Case(Sampling(step_cache=0.1)),
    "step cache taylor 0.5": Case(Sampling(step_cache=0.5, step_cache_kind="taylor")),
}
"""Ways to sample that are measured last."""


@contextmanager
def prepared(base: pipeline.Base, kind: str) -> Iterator[None]:
    """Prepare the base for a kind of case."""
    transformer = base.pipeline.transformer
    if kind == "fp8":
        try:
            eight_bits.round_blocks(transformer, transformer.dtype, no_progress)
            yield
        finally:
            eight_bits.restore(transformer, transformer.dtype)
    elif kind == "batch":
        # The sampler puts both passes into one batch where the weights are streamed.
        base.memory.mode = memory.GROUP_OFFLOAD
        base.memory.load_part = lambda *_: None
        try:
            yield
        finally:
            base.memory.mode = memory.ALL_ON_GPU
            del base.memory.load_part
    else:
        yield


def seconds_per_step(
    call: Callable[[Sampling], Tensor], sampling: Sampling, steps: tuple[int, int]
) -> float:
    """Measure the seconds of one step of an edit.

    Parameters
    ----------
    call : makes the edit with these settings
    steps : see Bench
    """
    few, many = steps
    # The first run warms up, or compiles.
    call(replace(sampling, steps=few))
    times = [
        # The copy to the CPU waits for the GPU.
        seconds(lambda count=count: call(replace(sampling, steps=count)).cpu())
        for count in steps
    ]
    return (times[1] - times[0]) / (many - few)


def peak_rows(bench: Bench) -> Iterator[Row]:
    """Measure what the device can do."""
    yield Row("measured bf16 peak", bench.peak_flops / 1e12, "TFLOP/s")


def speed_rows(bench: Bench, name: str, case: Case, scale: int, conditions: int) -> Iterator[Row]:
    """Measure the time and the memory of a step."""
    base = bench.loaded()
    request = bench.request(scale, conditions)
    sampling = case.sampling
    prompt = sampler._encode_prompt(base, request.prompt, request.conditions, lambda *_: None)

    def edit(settings: Sampling) -> Tensor:
        if case.kind == "stock":
            area = settings.condition_pixels or request.width * request.height
            # Without these settings the blocks would stay as the last part compiled them.
            with speed.settings(base, settings):
                return tiny_qwen.stock(base.pipeline, request, settings, area)
        return sample(base, request, settings)

    with prepared(base, case.kind):
        bench.meter.reset_peak()
        step = seconds_per_step(edit, sampling, bench.steps)
        peak = bench.meter.peak()
    name = f"{size_name(request)}, {name}"
    is_limited = (scale, conditions, case) == (1, 3, CASES["compiled"])
    limit = bench.limit(LARGEST_STEP) if is_limited else None
    yield Row(f"{name}: seconds a step", step, "s", limit)
    yield Row(f"{name}: peak memory", peak / GB, "GB")
    if not sampling.step_cache:
        # A token is a patch of 16 x 16 pixels.
        tokens = request.pixels(sampling.condition_pixels) // 16**2 + prompt.shape[1]
        # Two passes a step, for classifier-free guidance.
        share = 2 * forward_flops(tokens, bench.blocks) / step / bench.peak_flops
        if is_limited and bench.limit(1):
            yield Row(f"{name}: share of the measured bf16 peak, at least", share, "", 0.5)
        else:
            yield Row(f"{name}: share of the measured bf16 peak", share, "")


OPERATIONS = {
    "attention": r"attention",
    "convolution": r"conv",
    "matmul": r"(add|b|badd)?mm|_scaled_mm|(mat|add)mv?|linear",
    "copies": r"copy|cat$|clone|contiguous|stack|fill_?|zero_|index|empty",
}
"""Patterns of torch's names of operations by kind; all others are elementwise."""


def kind_of(operation: str) -> str:
    """Return the kind of an operation, by its name without aten::."""
    for kind, pattern in OPERATIONS.items():
        whole = kind == "matmul"
        if re.fullmatch(pattern, operation) if whole else re.search(pattern, operation):
            return kind
    return "elementwise"


def profile_rows(bench: Bench) -> Iterator[Row]:
    """Measure the share of each kind of operation in the device's time, and name the largest."""
    from torch.profiler import ProfilerActivity, profile

    base = bench.loaded()
    request = bench.request()
    sampling = Sampling(steps=2)
    sample(base, request, sampling)
    is_cuda = bench.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_cuda else [])]
    with profile(activities=activities) as profiler:
        sample(base, request, sampling)
    times = {}
    for event in profiler.key_averages():
        # The kernels that an operation starts count as the operation's own time on the device.
        if event.key.startswith("aten::"):
            spent = event.self_device_time_total if is_cuda else event.self_cpu_time_total
            times[event.key.removeprefix("aten::")] = spent
    total = sum(times.values())
    kinds = dict.fromkeys([*OPERATIONS, "elementwise"], 0.0)
    for operation, spent in times.items():
        kinds[kind_of(operation)] += spent
    for kind, spent in kinds.items():
        yield Row(
            f"{size_name(request)}, eager, time by operation: {kind}", 100 * spent / total, "%"
        )
    for operation in sorted(times, key=times.__getitem__, reverse=True)[:8]:
        share = 100 * times[operation] / total
        yield Row(f"the same: {operation} ({kind_of(operation)})", share, "%")


# 3 and 4: LoRAs


def lightning_rows(bench: Bench, compiled: bool) -> Iterator[Row]:
    """Measure an edit in 4 steps from the images to the picture."""
    base = bench.loaded()
    request = replace(bench.request(), shift=ACCELERATED_SHIFT)
    sampling = Sampling(steps=4, cfg=1.0, compile=compiled)
    adapters.activate(base, {bench.acceleration(): 1.0}, in_slots=compiled)
    try:
        sample(base, request, sampling)
        again = seconds(lambda: sample(base, replace(request, seed=1), sampling))
        base.cache.clear()
        whole = seconds(lambda: sample(base, request, sampling))
    finally:
        adapters.activate(base, {})
    name = f"{size_name(request)}, 4 steps, CFG 1, LoRA of rank 64, {kind_name(compiled)}"
    limit = bench.limit(LARGEST_EDIT) if compiled else None
    yield Row(f"{name}: encode, sample, decode", whole, "s", limit)
    yield Row(f"{name}: sample, decode", again, "s")


def kind_name(compiled: bool) -> str:
    return "compiled" if compiled else "eager"


def switching_rows(bench: Bench) -> Iterator[Row]:
    """Measure switching among three LoRAs with compiled blocks."""
    import torch._dynamo.config
    from torch._dynamo.utils import counters

    base = bench.loaded()
    request = bench.request()
    sampling = Sampling(steps=1, cfg=1.0, compile=True)
    files = bench.checkpoints()

    def edit() -> None:
        sample(base, request, sampling)

    def activate(file: Path) -> None:
        adapters.activate(base, {file: 1.0}, in_slots=True)

    def attach() -> None:
        for file in files:
            activate(file)
            edit()

    try:
        # Without it torch would stop to compile after some changes, and count no more graphs.
        with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
            yield Row("compiled: reading three LoRAs, an edit after each", seconds(attach), "s")
            steady = statistics.median(seconds(edit) for _ in range(3))
            graphs = counters["stats"]["unique_graphs"]
            switches, edits = [], []
            for file in files * 3:
                switches.append(seconds(partial(activate, file)))
                edits.append(seconds(edit))
            graphs = counters["stats"]["unique_graphs"] - graphs
    finally:
        adapters.activate(base, {})
    yield Row("compiled: switching a LoRA, median of 9", 1000 * statistics.median(switches), "ms")
    yield Row("compiled: switching a LoRA, slowest of 9", 1000 * max(switches), "ms")
    yield Row("compiled: an edit of 1 step, no switch before it", steady, "s")
    yield Row("compiled: an edit of 1 step after a switch, slowest of 9", max(edits), "s")
    yield Row("compiled: graphs compiled in 9 switches", graphs, "", 0)


def lora_cost_rows(bench: Bench) -> Iterator[Row]:
    """Measure a step with no LoRA, one and two."""
    base = bench.loaded()
    request = bench.request()
    files = [bench.acceleration(), bench.checkpoints()[0]]
    try:
        for count in range(3):
            adapters.activate(base, dict.fromkeys(files[:count], 1.0))
            edit = partial(sample, base, request)
            step = seconds_per_step(edit, Sampling(), bench.steps)
            ranks = ["none", "rank 64", "rank 64 and rank 16"][count]
            yield Row(f"{size_name(request)}, eager, LoRAs: {ranks}: seconds a step", step, "s")
    finally:
        adapters.activate(base, {})


# 5: memory


def memory_rows(bench: Bench, scale: int, conditions: int) -> Iterator[Row]:
    """Compare the peak memory of each model's activations with the estimate that the memory mode is
    chosen by.
    """
    base = bench.loaded()
    request = bench.request(scale, conditions)
    weights = bench.meter.allocated()
    peaks = dict.fromkeys(memory.PARTS, 0)
    estimates = dict.fromkeys(memory.PARTS, 0)
    running = ""
    load_part = base.memory.load_part

    def note(name: str = "", pixels: int = 0, progress: Progress = no_progress) -> None:
        nonlocal running
        if running:
            peaks[running] = max(peaks[running], bench.meter.peak() - weights)
        running = name
        if name:
            load_part(name, pixels, progress)
            estimates[name] = max(estimates[name], memory.activation_bytes(name, pixels))
            bench.meter.reset_peak()

    base.cache.clear()
    base.memory.load_part = note
    try:
        sample(base, request, Sampling(steps=2))
        note()
    finally:
        del base.memory.load_part
    for part, peak in peaks.items():
        name = f"{size_name(request)}: activations of the {part.replace('_', ' ')}"
        yield Row(name, peak / GB, "GB", estimates[part] / GB)


# 6 and 7: leaner memory modes


@dataclass
class Moves:
    """Bytes of weights that went to the device."""

    size: int = 0


@contextmanager
def counted_moves(base: pipeline.Base, capacity: int) -> Iterator[Moves]:
    """Count the weights that go to the device, which has room for this number of bytes."""
    offloader, parts = base.memory.offloader, base.memory.parts
    moves = Moves()
    load = offloader.load

    def counted(model: nn.Module, activations: int, progress: Progress) -> None:
        moves.size += model_bytes(model) - model_bytes(model, offloader.device)
        load(model, activations, progress)

    def stream(model: nn.Module, _: object) -> None:
        if base.memory.mode == memory.GROUP_OFFLOAD:
            moves.size += model_bytes(model)

    hooks = [
        parts[name].register_forward_pre_hook(stream) for name in ("text_encoder", "transformer")
    ]
    offloader.load = counted
    offloader.available_memory = lambda: (
        capacity - sum(model_bytes(part, offloader.device) for part in parts.values())
    )
    try:
        yield moves
    finally:
        del offloader.load, offloader.available_memory
        for hook in hooks:
            hook.remove()


def check_room(base: pipeline.Base) -> None:
    """Raise MemoryError where the computer's memory is too small for the weights on the device."""
    path = Path("/proc/meminfo")
    if not path.exists():
        return
    weights = sum(model_bytes(part) for part in base.memory.parts.values())
    lines = path.read_text().splitlines()
    free = 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    if weights > 0.9 * free:
        raise MemoryError(f"the models have {weights / GB:.0f} GB, {free / GB:.0f} GB are free")


def unload(base: pipeline.Base) -> None:
    """Move all models to the CPU."""
    base.memory.set_mode(memory.ALL_ON_GPU, 0)
    for part in base.memory.parts.values():
        base.memory.offloader.unload(part)
    gc.collect()


def moving_rows(bench: Bench, mode: str) -> Iterator[Row]:
    """Measure two edits in a memory mode, on a device that is just large enough for one model."""
    base = bench.base
    check_room(base)
    request = bench.request()
    pixels = request.pixels(None)
    capacity = max(
        model_bytes(part) + memory.activation_bytes(name, pixels)
        for name, part in base.memory.parts.items()
    )
    unload(base)
    before = private_memory()
    try:
        for count in ("first", "second"):
            # Another prompt is encoded anew.
            new = replace(request, prompt=f"{mode}, {count} edit")
            with counted_moves(base, capacity) as moves:
                base.memory.set_mode(mode, pixels)
                spent = seconds(lambda new=new: sample(base, new, Sampling(steps=2)))
            name = f"{size_name(request)}, 2 steps, {mode}, {count} edit"
            yield Row(f"{name}: seconds", spent, "s")
            yield Row(f"{name}: weights sent to the GPU", moves.size / GB, "GB")
    finally:
        unload(base)
    after = private_memory()
    grown = None if before is None or after is None else (after - before) / GB
    yield Row(f"{mode}: private memory before the edits", before and before / GB, "GB")
    yield Row(f"{mode}: private memory that the edits left behind", grown, "GB", 0.5)


def cancel_rows(bench: Bench) -> Iterator[Row]:
    """Cancel in the middle of a step while the weights are streamed, and compare the edit after it
    with the same edit before it.
    """
    base = bench.base
    check_room(base)
    request = bench.request()
    sampling = Sampling(steps=1, cfg=1.0)
    blocks = base.pipeline.transformer.transformer_blocks

    def cancel(*_: object) -> None:
        raise InterruptedError

    base.memory.set_mode(memory.GROUP_OFFLOAD, request.pixels(None))
    try:
        expected = sample(base, request, sampling)
        hook = blocks[len(blocks) // 2].register_forward_pre_hook(cancel)
        is_canceled = False
        try:
            sample(base, replace(request, seed=1), sampling)
        except InterruptedError:
            is_canceled = True
        finally:
            hook.remove()
        difference = (sample(base, request, sampling) - expected).abs().max()
    finally:
        unload(base)
    name = f"{size_name(request)}, {memory.GROUP_OFFLOAD}, a cancel in the middle of a step"
    yield Row(f"{name}: cancels, at least", float(is_canceled), "", 1)
    yield Row(f"{name}: difference of the next edit", float(difference), "", 0)


# The run

Part = Callable[[Bench], Iterator[Row]]
"""A function that measures some rows."""


def speed_parts(cases: dict[str, Case], scale: int, conditions: int) -> dict[str, Part]:
    """Return a part for each case at a size."""
    size = f"{512 * scale} px, conditions: {conditions}"
    return {
        f"2 speed, {size}, {name}": partial(
            speed_rows, name=name, case=case, scale=scale, conditions=conditions
        )
        for name, case in cases.items()
    }


# At 1024 x 1024 the conditions have one megapixel each, and both ways to run diffusers' are one.
LARGE_CASES = {name: CASES[name] for name in CASES if "one megapixel" not in name}

PARTS: dict[str, Part] = {
    "1 parity, 1 block": partial(parity_rows, blocks=1),
    "1 parity, all blocks": lambda bench: parity_rows(bench, bench.blocks),
    "2 bf16 peak": peak_rows,
    **speed_parts(CASES, 1, 3),
    **speed_parts(LARGE_CASES, 2, 1),
    "2 profile": profile_rows,
    "3 Lightning, eager": partial(lightning_rows, compiled=False),
    "3 Lightning, compiled": partial(lightning_rows, compiled=True),
    "4 switching LoRAs": switching_rows,
    "4 cost of LoRAs": lora_cost_rows,
    "5 memory, 512 px, conditions: 3": partial(memory_rows, scale=1, conditions=3),
    "5 memory, 1024 px, conditions: 1": partial(memory_rows, scale=2, conditions=1),
    "5 memory, 1024 px, conditions: 3": partial(memory_rows, scale=2, conditions=3),
    f"6 {memory.ONE_AT_A_TIME}": partial(moving_rows, mode=memory.ONE_AT_A_TIME),
    f"6 {memory.GROUP_OFFLOAD}": partial(moving_rows, mode=memory.GROUP_OFFLOAD),
    "7 cancel": cancel_rows,
    **speed_parts(MORE_CASES, 1, 3),
}
"""All parts, the most important first."""


def measure(parts: dict[str, Part], bench: Bench, deadline: float) -> Iterator[Row]:
    """Measure the parts in order. One that fails has its error as a row, and one that would start
    after the deadline is skipped.

    Parameters
    ----------
    deadline : time on the monotonic clock, in seconds
    """
    for title, part in parts.items():
        if time.monotonic() >= deadline:
            yield Row(title, None, "", note=NO_TIME)
            continue
        try:
            yield from part(bench)
        # Whatever fails, the next part may work.
        except Exception as error:  # noqa: BLE001
            traceback.print_exc(limit=-6)
            last_line = "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]
            yield Row(title, None, "", note=last_line)
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def record(rows: Iterator[Row], file: Path, is_printed: bool) -> list[Row]:
    """Print and store each row as soon as it is measured; return all of them."""
    done: list[Row] = []
    if is_printed:
        sys.stdout.write(heading(NAME_WIDTH) + "\n")
    for row in rows:
        done.append(row)
        if is_printed:
            sys.stdout.write(line(row, NAME_WIDTH) + "\n")
            sys.stdout.flush()
        file.write_text(table(done) + "\n")
    return done


def main() -> int:
    """Run all parts and print their rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--seconds", type=int, default=SECONDS, help="time for all parts; default: %(default)s"
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=ROOT / "benchmarks" / "results",
        help="folder for the table; default: benchmarks/results",
    )
    options = parser.parse_args()
    deadline = time.monotonic() + options.seconds
    if not torch.cuda.is_available():
        return finish([Row(title, None, "", note=NO_GPU) for title in PARTS], options.json)
    torch.set_num_threads(THREADS)
    card = torch.cuda.get_device_name()
    file = options.results / f"gpu-{re.sub('[^A-Za-z0-9]+', '-', card)}.txt"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny_qwen.save_base(folder / "base")
        bench = Bench(torch.device("cuda", 0), folder, Meter(), card)
        rows = record(measure(PARTS, bench, deadline), file, not options.json)
    if options.json:
        finish(rows, True)
    is_failed = any(row.ok is False or row.note not in ("", NO_TIME) for row in rows)
    return 1 if is_failed else 0


if __name__ == "__main__":
    sys.exit(main())
