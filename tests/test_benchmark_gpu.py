"""The benchmark for a GPU, tried without one: on the CPU with a tiny base, and at the real width on
a GPU that is not there.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("diffusers", reason="diffusers 0.42 needs Python 3.11")

import torch
from safetensors.torch import load_file
from support import real_size, tiny_qwen
from support.fake_gpu import DEVICE, FakeGpu, FakeOffloader
from support.paths import ROOT

from artmancer.offload import Offloader
from artmancer.options import Sampling
from artmancer.qwen import adapters, memory, pipeline, speed

sys.path.append(str(ROOT / "benchmarks"))
import gpu
from report import Row

pytestmark = pytest.mark.slow

GB = 2**30


class NoMeter(gpu.Meter):
    """A CPU has no memory of its own to measure."""

    def reset_peak(self) -> None:
        pass

    def allocated(self) -> int:
        return 0

    def peak(self) -> int:
        return 0


class FakeMeter(gpu.Meter):
    """The memory of the GPU that is not there."""

    def __init__(self, fake: FakeGpu) -> None:
        self.fake = fake

    def reset_peak(self) -> None:
        self.fake.reset_peak()

    def allocated(self) -> int:
        return self.fake.memory

    def peak(self) -> int:
        return self.fake.peak


@pytest.fixture
def bench(tiny_base: Path, tmp_path: Path) -> gpu.Bench:
    """A benchmark of the tiny base on the CPU."""
    bench = gpu.Bench(
        torch.device("cpu"), tmp_path, NoMeter(), blocks=2, side=64, steps=(1, 2), matrix_side=64
    )
    bench.base = pipeline.load(tiny_base, "fp32", Offloader("cpu"))
    return bench


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Run the graphs that torch traces as they are, without making code; collect them."""
    from diffusers import QwenImageTransformer2DModel

    compile_blocks = QwenImageTransformer2DModel.compile_repeated_blocks
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    def compile_eager(transformer: Any, **options: Any) -> None:
        compile_blocks(transformer, backend=backend, **options)

    monkeypatch.setattr(QwenImageTransformer2DModel, "compile_repeated_blocks", compile_eager)
    torch.compiler.reset()
    yield graphs
    torch.compiler.reset()


def rows_of(bench: gpu.Bench, title: str) -> dict[str, Row]:
    """Return the rows of a part by name; all are measured."""
    rows = {row.name: row for row in gpu.PARTS[title](bench)}
    assert rows
    assert all(row.value is not None for row in rows.values()), rows
    return rows


def value(rows: dict[str, Row], end: str) -> float:
    """Return the value of the row whose name ends so."""
    (row,) = (row for name, row in rows.items() if name.endswith(end))
    assert row.value is not None
    return row.value


def titles(start: str) -> list[str]:
    return [title for title in gpu.PARTS if title.startswith(start)]


# The run


def test_rows_come_as_soon_as_they_are_measured_and_are_kept(
    bench: gpu.Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "table.txt"

    def first(bench: gpu.Bench) -> Iterator[Row]:
        yield Row("one", 1.0, "s")
        assert "one" in file.read_text()
        assert "one" in capsys.readouterr().out
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gpu.record(gpu.measure({"first": first}, bench, time.monotonic() + 99), file, True)
    assert f"torch {torch.__version__}" in file.read_text()
    assert "1.00 s" in file.read_text()


def test_a_part_that_fails_is_a_row_and_the_next_part_runs(bench: gpu.Bench) -> None:
    def broken(bench: gpu.Bench) -> Iterator[Row]:
        yield Row("before", 1.0, "s")
        raise RuntimeError("CUDA error\nno kernel image")

    def sound(bench: gpu.Bench) -> Iterator[Row]:
        yield Row("after", 2.0, "s")

    parts = {"broken": broken, "sound": sound}
    rows = [*gpu.measure(parts, bench, time.monotonic() + 99)]
    assert [row.name for row in rows] == ["before", "broken", "after"]
    assert (rows[1].value, rows[1].note) == (None, "no kernel image")


def test_parts_are_skipped_when_the_time_is_used_up(
    bench: gpu.Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(gpu.time, "monotonic", lambda: now)

    def slow(bench: gpu.Bench) -> Iterator[Row]:
        nonlocal now
        now += 8
        yield Row("slow", 8.0, "s")

    rows = [*gpu.measure({"1": slow, "2": slow, "3": slow}, bench, 10.0)]
    assert [row.value for row in rows] == [8.0, 8.0, None]
    assert gpu.line(rows[2], 5) == "3      not measured: no time left"


def test_parts_run_in_the_order_of_their_importance() -> None:
    numbers = [title.split()[0] for title in gpu.PARTS if title not in gpu_extras()]
    assert numbers == sorted(numbers)
    assert set(numbers) == set("1234567")
    assert [*gpu.PARTS][-len(gpu_extras()) :] == gpu_extras()


def gpu_extras() -> list[str]:
    return [title for title in gpu.PARTS if title.endswith(tuple(gpu.MORE_CASES))]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA GPU")
def test_without_a_gpu_nothing_is_measured_and_nothing_fails() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py")]
    run = subprocess.run([*command, "--json"], capture_output=True, text=True, cwd=ROOT, check=True)
    rows = json.loads(run.stdout)
    assert [row["name"] for row in rows] == [*gpu.PARTS]
    assert {(row["value"], row["note"]) for row in rows} == {(None, "there is no CUDA GPU")}


# The parts, on the CPU


@pytest.mark.parametrize("title", titles("1"))
def test_our_picture_is_that_of_diffusers_pipeline(bench: gpu.Bench, title: str) -> None:
    rows = rows_of(bench, title)
    assert value(rows, "largest difference") < 0.1
    assert value(rows, "deviation of the picture") > 1
    assert len(bench.base.pipeline.transformer.transformer_blocks) == 2


def test_a_picture_that_is_not_that_of_diffusers_pipeline_misses_the_limit(
    bench: gpu.Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny_qwen, "stock", lambda *_: torch.rand(1, 64, 64, 3))
    rows = rows_of(bench, "1 parity, all blocks")
    assert [row.ok for row in rows.values()] == [False, True, True]


def test_both_pipelines_draw_the_same_noise_in_16_bits(tiny_base: Path, bench: gpu.Bench) -> None:
    bench.base = pipeline.load(tiny_base, "bf16", Offloader("cpu"))
    rows = rows_of(bench, "1 parity, all blocks")
    # Other noise moves it by more than a tenth of the picture's deviation.
    assert value(rows, "mean difference") < value(rows, "deviation of the picture") / 50


@pytest.mark.parametrize(
    "name",
    [
        *("eager", "fp8", "diffusers' pipeline at equal size"),
        *("both passes in one batch", "step cache first block 0.1"),
    ],
)
def test_every_case_of_speed_gives_its_rows_and_leaves_the_base_as_it_was(
    bench: gpu.Bench, name: str
) -> None:
    (title,) = titles(f"2 speed, 512 px, conditions: 3, {name}")
    transformer = bench.base.pipeline.transformer
    layers = {key: type(layer) for key, layer in transformer.named_modules()}
    rows = rows_of(bench, title)
    assert len(rows) == (2 if "cache" in name else 3)
    assert {key: type(layer) for key, layer in transformer.named_modules()} == layers
    assert bench.base.memory.mode == memory.ALL_ON_GPU
    assert "load_part" not in vars(bench.base.memory)


def test_a_compiled_step_is_measured(bench: gpu.Bench, graphs: list[Any]) -> None:
    rows_of(bench, "2 speed, 1024 px, conditions: 1, compiled")
    assert graphs


def test_a_step_takes_the_time_of_the_steps_between() -> None:
    clock = iter([0.0, 3.0, 10.0, 21.0])

    def edit(sampling: Sampling) -> torch.Tensor:
        return torch.zeros(1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sampler.time.perf_counter", lambda: next(clock))
        # 3 seconds for 2 steps and 11 for 6.
        assert gpu.seconds_per_step(edit, Sampling(), (2, 6)) == 2


def test_the_limits_of_speed_are_for_fast_cards(bench: gpu.Bench, graphs: list[Any]) -> None:
    for card, limit in (("NVIDIA H100 80GB HBM3", gpu.LARGEST_EDIT), ("NVIDIA L40S", None)):
        bench.card = card
        rows = gpu.PARTS["3 Lightning, compiled"](bench)
        assert next(rows).limit == limit
        rows.close()


def test_the_profile_shares_the_time_among_kinds_of_operations(bench: gpu.Bench) -> None:
    rows = rows_of(bench, "2 profile")
    shares = {
        name.split(": ")[1]: row.value for name, row in rows.items() if "time by operation" in name
    }
    assert sum(share or 0 for share in shares.values()) == pytest.approx(100)
    assert all(shares[kind] for kind in ("matmul", "attention", "elementwise", "copies"))


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ("mm", "matmul"),
        ("addmm", "matmul"),
        ("bmm", "matmul"),
        ("_flash_attention_forward", "attention"),
        ("_scaled_dot_product_cudnn_attention", "attention"),
        ("cudnn_convolution", "convolution"),
        ("copy_", "copies"),
        ("cat", "copies"),
        ("mul", "elementwise"),
        ("native_layer_norm", "elementwise"),
    ],
)
def test_operations_have_their_kind(operation: str, kind: str) -> None:
    assert gpu.kind_of(operation) == kind


def test_an_edit_like_lightnings_is_timed_with_and_without_its_encoders(
    bench: gpu.Bench,
) -> None:
    rows = rows_of(bench, "3 Lightning, eager")
    assert len(rows) == 2
    names = [name for name in load_file(bench.acceleration()) if name.endswith("lora_A.weight")]
    # 12 layers in each of 2 blocks.
    assert len(names) == 24
    assert [path.name for path in bench.base.adapters] == ["acceleration.safetensors"]
    assert bench.base.active == {}


def test_switching_counts_the_graphs_that_are_compiled(bench: gpu.Bench, graphs: list[Any]) -> None:
    part = gpu.PARTS["4 switching LoRAs"](bench)
    next(part)
    before = len(graphs)
    rows = {row.name: row for row in part}
    assert before > 0
    assert value(rows, "graphs compiled in 9 switches") == len(graphs) - before
    assert bench.base.active == {}


def test_the_cost_of_loras_is_measured_for_none_one_and_two(
    bench: gpu.Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = []
    activate = adapters.activate

    def count(base: pipeline.Base, strengths: dict[Path, float]) -> None:
        counts.append(len(strengths))
        activate(base, strengths)

    monkeypatch.setattr(adapters, "activate", count)
    assert len(rows_of(bench, "4 cost of LoRAs")) == 3
    assert counts == [0, 1, 2, 0]


@pytest.mark.parametrize("title", titles("5"))
def test_the_memory_of_each_model_has_a_row(bench: gpu.Bench, title: str) -> None:
    rows = rows_of(bench, title)
    assert [name.split("of the ")[1] for name in rows] == ["text encoder", "transformer", "vae"]


@pytest.mark.parametrize("title", titles("6"))
def test_the_leaner_modes_leave_no_private_memory_behind(bench: gpu.Bench, title: str) -> None:
    rows = rows_of(bench, title)
    assert len(rows) == 6
    assert all(row.ok for row in rows.values())
    assert bench.base.memory.mode == memory.ALL_ON_GPU


def test_a_cancel_in_a_step_leaves_the_next_edit_exact(bench: gpu.Bench) -> None:
    rows = rows_of(bench, "7 cancel")
    assert all(row.ok for row in rows.values())


# The real width, on a GPU that is not there


def bench_without_gpu(folder: Path) -> gpu.Bench:
    """Make the real models with two blocks on a GPU of 80 GB that is not there."""
    tiny_qwen.save_base(folder / "base")
    fake = FakeGpu()
    bench = gpu.Bench(DEVICE, folder, FakeMeter(fake), blocks=2)
    bench.peak_flops = 1e15
    with fake, pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "Offloader", lambda _: FakeOffloader(fake, 80 * GB))
        assert bench.base.device == DEVICE
    return bench


@pytest.fixture(scope="module")
def short_bench(tmp_path_factory: pytest.TempPathFactory) -> gpu.Bench:
    """The real models with two blocks and an eighth of the text encoder's layers."""
    with pytest.MonkeyPatch.context() as patch:
        for config, changes in zip(
            (real_size.TEXT, real_size.VISION), real_size.FEW_LAYERS, strict=True
        ):
            for name, value in changes.items():
                patch.setitem(config, name, value)
        return bench_without_gpu(tmp_path_factory.mktemp("real"))


@pytest.fixture
def no_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the checks that need a GPU."""
    # Weights that are not there need no room.
    monkeypatch.setattr(gpu, "check_room", lambda base: None)
    # A kernel's results are compared with the default's, and there are none.
    monkeypatch.setattr(speed, "_attention_error", lambda base: 0.0)


@pytest.fixture
def fake_bench(short_bench: gpu.Bench, no_checks: None) -> Iterator[gpu.Bench]:
    with short_bench.meter.fake:
        yield short_bench


def gigabytes(bench: gpu.Bench) -> float:
    """Return the size of all models' weights."""
    models = bench.base.memory.parts.values()
    return sum(weight.nbytes for model in models for weight in model.parameters()) / GB


def test_the_real_models_stay_below_the_estimates_of_memory(
    tmp_path: Path, no_checks: None
) -> None:
    bench = bench_without_gpu(tmp_path)
    models = bench.base.memory.parts
    for model in models.values():
        assert {(p.device, p.dtype) for p in model.parameters()} == {(DEVICE, torch.bfloat16)}
    # The real text encoder has 8.3 billion weights, a block of the transformer 0.34 billion.
    counts = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
    assert counts["text_encoder"] == pytest.approx(8.3e9, rel=0.01)
    assert counts["transformer"] == pytest.approx(2 * 0.34e9, rel=0.1)
    with bench.meter.fake:
        rows = rows_of(bench, "5 memory, 512 px, conditions: 3")
    assert all(row.ok and row.value for row in rows.values()), rows


@pytest.mark.parametrize("name", ["eager", "attention cudnn", "fp8"])
def test_speed_is_measured_at_the_real_width(fake_bench: gpu.Bench, name: str) -> None:
    weights = gigabytes(fake_bench)
    rows = rows_of(fake_bench, f"2 speed, 512 px, conditions: 3, {name}")
    assert weights < value(rows, "peak memory") < weights + 3


def test_the_cost_of_loras_is_measured_at_the_real_width(fake_bench: gpu.Bench) -> None:
    assert len(rows_of(fake_bench, "4 cost of LoRAs")) == 3
    lora = load_file(fake_bench.acceleration())
    down = lora["transformer.transformer_blocks.1.img_mlp.net.2.lora_A.weight"]
    assert down.shape == (64, 4 * 3072)


def test_one_model_at_a_time_sends_each_model_once(fake_bench: gpu.Bench) -> None:
    rows = rows_of(fake_bench, f"6 {memory.ONE_AT_A_TIME}")
    sent = value(rows, "first edit: weights sent to the GPU")
    assert sent == pytest.approx(gigabytes(fake_bench), rel=0.01)


# The machine


def test_a_machine_with_the_wheels_has_all_that_is_needed(tmp_path: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    (packages,) = re.findall(r"^GPU_PACKAGES := (.+)$", makefile, re.MULTILINE)
    code = f"""
from support import bare_machine, tiny_qwen
bare_machine.hide(["torch", "torchvision", "transformers", "peft"], {packages.split()})
from pathlib import Path
import gpu
folder = Path({str(tmp_path)!r})
tiny_qwen.save_base(folder / "base")
bench = gpu.Bench(gpu.torch.device("cpu"), folder, gpu.Meter(), blocks=2, side=64)
bench.base = gpu.pipeline.load(folder / "base", "fp32", gpu.Offloader("cpu"))
for title in ("1 parity, 1 block", "3 Lightning, eager", "7 cancel"):
    print(len([*gpu.PARTS[title](bench)]))
"""
    path = os.pathsep.join(str(ROOT / name) for name in ("tests", "benchmarks", "."))
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert run.stdout.split() == ["3", "2", "2"], run.stderr[-2000:]
