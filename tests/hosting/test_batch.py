"""A batch on Modal: each photo once, whatever happens to calls and workers."""

import asyncio
import json
import os
import pickle
import signal
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from modal_proto import api_pb2
from PIL import Image
from support.fake_modal import FakeModal, StandIn
from support.modal_server import ModalServer

from artmancer import cli
from artmancer.batch.run import Run
from artmancer.hosting import batch
from artmancer.hosting.batch import Map, make_parser

REPORT = {
    "editor": "draft/removal",
    "seconds": {"edit": 1.5, "stitch": 0.5},
    "verdict": "good",
    "verdict_reasons": [],
}
"""The part of a report that a batch reads."""


def save_photos(folder: Path, count: int, side: int = 32) -> Path:
    """Write photos that differ, with their masks."""
    folder.mkdir(parents=True, exist_ok=True)
    mask = Image.new("L", (side, side))
    mask.paste(255, (8, 8, 20, 20))
    for number in range(count):
        Image.new("RGB", (side, side), (number % 256, number // 256, 9)).save(
            folder / f"{number:03}.png"
        )
        mask.save(folder / f"{number:03}_mask.png")
    return folder


def run(
    map_orders: Map, remote: StandIn, source: Path, out: Path, *more: str, containers: int = 1
) -> int:
    """Run the command with a map and a remote of the test's own."""
    parser = make_parser(lambda _: map_orders, lambda: remote, containers, 3)
    arguments = ["--input", str(source), "--output", str(out), "--task", "removal", *more]
    return cli.run(parser.parse_args(arguments))


def entries_of(out: Path) -> dict[str, dict[str, Any]]:
    """Return the lines of results.jsonl by photo; expect one for each photo."""
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    entries = {line["photo"]: line for line in lines}
    assert len(entries) == len(lines)
    return entries


def fake_map(result: Callable[[dict[str, Any]], Any]) -> Map:
    """Make a map without workers.

    Parameters
    ----------
    result : returns the output for an order; an exception is returned or raised
    """

    async def map_orders(
        orders: AsyncIterator[dict[str, Any]], /, *, order_outputs: bool, return_exceptions: bool
    ) -> AsyncIterator[Any]:
        async for order in orders:
            yield result(order)

    return map_orders


def done(order: dict[str, Any]) -> dict[str, Any]:
    """Return a worker's answer, with the photo itself as the result."""
    photo = order["pictures"][order["record"]["inputs"]["input_image"]]
    return {
        "job": order["record"]["id"],
        "started": 0.0,
        "finished": 2.0,
        "values": {"report": json.dumps(REPORT)},
        "images": {"image": [photo]},
    }


@pytest.fixture
def remote(tmp_path: Path) -> StandIn:
    return StandIn(None, tmp_path / "volume")


@pytest.mark.slow
def test_each_photo_is_edited_once_while_calls_raise_and_a_worker_is_killed(tmp_path: Path) -> None:
    source, out = save_photos(tmp_path / "in", 20), tmp_path / "out"
    with FakeModal(tmp_path / "modal", share=0.05, call_share=0.1) as modal:
        killing = threading.Timer(0.5, modal.kill, ["heavy"])
        killing.start()
        for _ in range(3):
            if run(modal.map, modal.remote(), source, out, "--json") == 0:
                break
        killing.join()
    entries = entries_of(out)
    assert len(entries) == 20
    for name, entry in entries.items():
        assert entry["status"] == "done", entry
        assert (out / entry["output"]).read_bytes() == (source / name).read_bytes()
    assert len(list((out / "edited").iterdir())) == 20


def test_large_images_go_over_the_volume(
    tmp_path: Path, modal: FakeModal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "VOLUME_BYTES", 1)
    source, out = save_photos(tmp_path / "in", 2), tmp_path / "out"
    assert run(modal.map, modal.remote(), source, out) == 0
    assert len(list(modal.results.glob("batch-*/*.png"))) == 3, "two photos and their one mask"
    assert all(path.read_bytes() for path in (out / "edited").iterdir())


def test_the_photos_whose_calls_failed_are_told_from_the_others(
    tmp_path: Path, remote: StandIn
) -> None:
    source, out = save_photos(tmp_path / "in", 12), tmp_path / "out"
    failing = {9, 4}

    def result(order: dict[str, Any]) -> Any:
        photo = order["pictures"][order["record"]["inputs"]["input_image"]]
        number = next(i for i in range(12) if (source / f"{i:03}.png").read_bytes() == photo)
        return RuntimeError("the GPU is gone") if number in failing else done(order)

    assert run(fake_map(result), remote, source, out) == 1
    failed = {name: entry for name, entry in entries_of(out).items() if entry["status"] == "failed"}
    assert sorted(failed) == ["004.png", "009.png"]
    assert "the GPU is gone" in failed["004.png"]["error"]["detail"]
    failing.clear()
    assert run(fake_map(result), remote, source, out) == 0
    assert {entry["status"] for entry in entries_of(out).values()} == {"done"}


def test_modal_that_does_not_answer_ends_the_run_with_a_sentence_and_the_next_goes_on(
    tmp_path: Path, remote: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = save_photos(tmp_path / "in", 12), tmp_path / "out"
    outcomes: list[None] = []

    def result(order: dict[str, Any]) -> Any:
        outcomes.append(None)
        if len(outcomes) > 3:
            raise ConnectionError("no network")
        return done(order)

    assert run(fake_map(result), remote, source, out) == 1
    assert "Modal does not answer (no network)" in capsys.readouterr().err
    first = entries_of(out)
    assert {entry["status"] for entry in first.values()} == {"done"} and len(first) == 3
    assert run(fake_map(done), remote, source, out) == 0
    second = entries_of(out)
    assert len(second) == 12 and {name: second[name] for name in first} == first


def test_a_second_ctrl_c_waits_for_no_call(
    tmp_path: Path,
    remote: StandIn,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, out = save_photos(tmp_path / "in", 9), tmp_path / "out"
    stopped = threading.Event()

    def stop(batch: Run, original: Callable[[Run], None] = Run.stop) -> None:
        original(batch)
        stopped.set()

    monkeypatch.setattr(Run, "stop", stop)

    async def silent(
        orders: AsyncIterator[dict[str, Any]], /, *, order_outputs: bool, return_exceptions: bool
    ) -> AsyncIterator[Any]:
        yield done(await anext(orders))
        os.kill(os.getpid(), signal.SIGINT)
        # Of two signals at once, Python delivers one.
        await asyncio.to_thread(stopped.wait)
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.Event().wait()

    assert run(silent, remote, source, out) == 130
    assert "9 photos: 1 edited (1 good), 8 left" in capsys.readouterr().out
    assert run(fake_map(done), remote, source, out) == 0
    assert len(entries_of(out)) == 9


def test_a_row_with_a_mistake_is_refused_before_it_is_sent(tmp_path: Path, remote: StandIn) -> None:
    save_photos(tmp_path / "in", 1)
    (tmp_path / "in" / "text.png").write_text("no image")
    rows = [
        {"input_image": "in/000.png", "mask_image": "in/000_mask.png", "context": 99},
        {"input_image": "in/000.png", "mask_image": "in/000_mask.png", "grow": 4},
        {"input_image": "in/000.png"},
        {"input_image": "in/text.png", "mask_image": "in/000_mask.png"},
    ]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    sent: list[dict[str, Any]] = []
    assert run(fake_map(sent.append), remote, tmp_path / "list.jsonl", tmp_path / "out") == 1
    errors = [entry["error"]["error_type"] for entry in entries_of(tmp_path / "out").values()]
    assert sorted(errors) == ["invalid_image", "invalid_request", "invalid_request", "mask_missing"]
    assert not sent


def test_a_run_says_what_it_costs_as_soon_as_edits_were_measured(
    tmp_path: Path, remote: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = save_photos(tmp_path / "in", 2), tmp_path / "out"
    assert run(fake_map(done), remote, source, out, "--price", "0.001") == 0
    assert "2 photos to edit. No edit was measured yet" in capsys.readouterr().out
    save_photos(source, 5)
    assert run(fake_map(done), remote, source, out, "--price", "0.5") == 0
    printed = capsys.readouterr().out
    assert "3 photos x 2.00 s (mean of 2 edits in results.jsonl) = 6 s of a worker" in printed
    assert "x 0.5 = 3.00" in printed
    save_photos(source, 6)
    assert run(fake_map(done), remote, source, out) == 0
    assert "With --price" in capsys.readouterr().out


class MapServer(ModalServer):
    """A server that runs a map: a photo gives itself, and the last input fails."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.outputs: list[api_pb2.FunctionGetOutputsItem] = []
        self.failing = inputs - 1
        self.answers["FunctionMap"] = api_pb2.FunctionMapResponse(function_call_id="fc-map")
        self.answers["FunctionPutInputs"] = self.take_inputs
        self.answers["FunctionGetOutputs"] = self.give_outputs

    def take_inputs(self, request: Any) -> Any:
        for item in request.inputs:
            (order,), _ = pickle.loads(item.input.args)
            status, value = api_pb2.GenericResult.GENERIC_STATUS_SUCCESS, done(order)
            if item.idx == self.failing:
                status, value = api_pb2.GenericResult.GENERIC_STATUS_FAILURE, RuntimeError("lost")
            result = api_pb2.GenericResult(status=status, data=pickle.dumps(value))
            self.outputs.append(
                api_pb2.FunctionGetOutputsItem(
                    idx=item.idx,
                    input_id=f"in-{item.idx}",
                    result=result,
                    data_format=api_pb2.DATA_FORMAT_PICKLE,
                )
            )
        return api_pb2.FunctionPutInputsResponse(
            inputs=[
                api_pb2.FunctionPutInputsResponseItem(idx=item.idx, input_id=f"in-{item.idx}")
                for item in request.inputs
            ]
        )

    def give_outputs(self, request: Any) -> Any:
        outputs, self.outputs = self.outputs, []
        return api_pb2.FunctionGetOutputsResponse(outputs=outputs, last_entry_id="1-0")


@pytest.mark.slow
def test_modals_own_client_runs_the_map_on_workers_of_the_apps_own(tmp_path: Path) -> None:
    source, out = save_photos(tmp_path / "in", 4), tmp_path / "out"
    server = MapServer(4)
    arguments = ["--input", str(source), "--output", str(out), "--max-containers", "7"]
    process = server.modal("run", "modal_comfy.py::batch", *arguments, "--task", "removal")
    assert process.returncode == 1, process.stdout + process.stderr
    assert "4 photos: 3 edited (3 good), 1 could not be edited" in process.stdout
    states = sorted(entry["status"] for entry in entries_of(out).values())
    assert states == ["done", "done", "done", "failed"]
    (bound,) = server.requests["FunctionBindParams"]
    assert bound.function_options.concurrency_limit == 7
    assert len(server.requests["FunctionMap"]) == 1
