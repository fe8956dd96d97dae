"""The gateway's routes, against a fake ComfyUI and, where one can be had, a real one."""

import base64
import io
import json
import re
import shutil
import sys
import threading
import time
import uuid
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import ExifTags, Image
from support.fake_modal import FakeModal
from support.gateway import GRAPHS, FakeHost, Served, encoded, free_port, removal, settings, until
from support.paths import EXAMPLES, FAKE_COMFYUI, ROOT

from artmancer.errors import CODES
from artmancer.hosting.web import web_app

REAL = pytest.param("real", marks=pytest.mark.comfyui)


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeHost]:
    host = FakeHost()
    yield host
    host.die()


@pytest.fixture(scope="module")
def modal_served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The gateway as it runs on Modal, its workers in processes of their own."""
    folder = tmp_path_factory.mktemp("modal")
    command = [
        sys.executable,
        str(FAKE_COMFYUI),
        "{port}",
        "{folder}/told.log",
    ]
    made = settings(folder / "data", debug=True)
    with FakeModal(folder, command) as modal:
        app = web_app(modal.remote(), folder / "checkpoints", modal.results, nothing, nothing, made)
        with Served(made, app) as served:
            yield served.connected()


async def nothing() -> None:
    pass


@pytest.fixture(scope="module", params=["fake", REAL, "modal"])
def gateway(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    if request.param == "modal":
        yield request.getfixturevalue("modal_served")
        return
    host = request.getfixturevalue("comfyui" if request.param == "real" else "fake")
    data = tmp_path_factory.mktemp("gateway")
    with Served(settings(data, comfyui_url=host.url, debug=True)) as served:
        yield served.connected()


@pytest.fixture
def quick(fake: FakeHost, tmp_path: Path) -> Iterator[Served]:
    """One in front of the fake ComfyUI, with nothing in it."""
    with Served(settings(tmp_path / "data", comfyui_url=fake.url)) as served:
        yield served.connected()


def picture(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


def error(answer: httpx.Response) -> tuple[int, str]:
    said = answer.json()
    assert set(said) == {"detail", "error_type", "details"}
    assert (
        said["detail"].endswith(".")
        and str(ROOT) not in said["detail"]
        and "Traceback" not in said["detail"]
    )
    return answer.status_code, said["error_type"]


class TestEdits:
    def test_an_edit_answers_with_every_field_of_the_contract(self, gateway: Served) -> None:
        said = gateway.http.post(
            "/api/generate", json=removal(angle=3, colour="red", mask_tool_type="brush")
        ).json()
        assert said["success"] is True
        assert said["generation_time"] > 0
        assert re.fullmatch(r"(draft|qwen-image-edit)/removal", said["model_used"])
        used = said["parameters_used"]
        assert (used["seed"], used["width"], used["height"]) == (7, 600, 400)
        assert used["ignored"] == ["angle", "colour"]
        assert gateway.status(said["request_id"])["status"] == "done"
        debug = said["debug_info"]
        assert debug["input_image_size"] == debug["output_image_size"] == "600x400"
        assert (
            debug["conditional_labels"] == ["mask", "background", "object"]
            and debug["conditional_images"] is None
        )
        assert debug["loaded_adapters"] == [] and debug["lora_adapter"] is None
        assert said["report"]["outside_psnr"] == "infinite"
        assert picture(said["image"]).size == (600, 400)

    def test_older_clients_send_the_mask_as_the_first_conditional_image(
        self, gateway: Served
    ) -> None:
        body = removal(conditional_images=[f"data:image/png;base64,{encoded('coffee_mask')}"])
        body["mask_image"] = None
        assert (
            gateway.http.post("/api/generate", json=body).json()["parameters_used"]["task_type"]
            == "removal"
        )

    def test_the_task_follows_from_what_was_sent(self, gateway: Served) -> None:
        body = {"prompt": "balance it", "input_image": encoded("coffee")}
        used = gateway.http.post("/api/generate", json=body).json()["parameters_used"]
        assert used["task_type"] == "white_balance"
        assert 0 <= used["seed"] < 2**53
        body |= {"mask_image": encoded("coffee_mask"), "reference_image": encoded("chelsea")}
        assert (
            gateway.http.post("/api/generate", json=body).json()["parameters_used"]["task_type"]
            == "insertion"
        )

    def test_enable_debug_answers_the_conditions_and_writes_a_session(
        self, gateway: Served
    ) -> None:
        said = gateway.http.post("/api/generate", json=removal(enable_debug=True)).json()
        assert len(said["debug_info"]["conditional_images"]) >= 1
        sessions = gateway.http.get("/api/debug/sessions").json()
        found = next(one for one in sessions if one["name"].endswith(said["request_id"][:8]))
        assert {"input_image.png", "mask_image.png", "image-0.png", "conditions-0.png"} <= set(
            found["files"]
        )
        about = gateway.http.get(f"/api/debug/sessions/{found['name']}").json()["parameters"]
        assert about["parameters"]["seed"] == 7 and about["seconds"]["running"] > 0
        shown = gateway.http.get(f"/api/debug/sessions/{found['name']}/images/image-0.png")
        assert shown.headers["content-type"] == "image/png" and shown.content == base64.b64decode(
            said["image"]
        )
        archive = gateway.http.get(f"/api/debug/sessions/{found['name']}/download").content
        assert len(zipfile.ZipFile(io.BytesIO(archive)).namelist()) == len(found["files"])

    def test_the_same_pictures_are_sent_to_comfyui_once(
        self, fake: FakeHost, quick: Served
    ) -> None:
        before = len(fake.fake.uploads)
        quick.http.post("/api/generate", json=removal(seed=1))
        quick.http.post("/api/generate", json=removal(seed=2))
        assert len(fake.fake.uploads) == before + 2
        sent = json.dumps(fake.fake.posted[-1])
        assert encoded("coffee")[:100] not in sent and re.search(
            r"artmancer/[0-9a-f]{64}\.png \[temp\]", sent
        )

    def test_pictures_that_vanished_from_comfyui_are_sent_again(
        self, fake: FakeHost, quick: Served
    ) -> None:
        quick.http.post("/api/generate", json=removal())
        fake.fake.temp.clear()
        assert quick.http.post("/api/generate", json=removal()).status_code == 200

    def test_every_parameter_reaches_the_graph(self, fake: FakeHost, quick: Served) -> None:
        extra = [encoded("coffee_mask"), encoded("chelsea")]
        body = removal(
            prompt="take it away",
            negative_prompt="no",
            num_inference_steps=3,
            guidance_scale=2.5,
            seed=5,
            width=512,
            height=256,
            input_quality="resized",
            mask_tool_type="brush",
            conditional_images=extra,
        )
        assert quick.http.post("/api/generate", json=body).status_code == 200
        graph = fake.fake.posted[-1]["prompt"]
        sent = {
            node["inputs"]["name"]: node["inputs"].get("value", node["inputs"].get("image"))
            for node in graph.values()
            if node["class_type"].startswith("ArtMancer_Endpoint")
            and node["class_type"] != "ArtMancer_EndpointResult"
        }
        assert sent["prompt"] == "take it away" and sent["negative_prompt"] == "no"
        assert (sent["num_inference_steps"], sent["true_cfg_scale"], sent["seed"]) == (3, 2.5, 5)
        assert (sent["width"], sent["height"], sent["max_megapixels"]) == (512, 256, 1.0)
        assert sent["grow_mask"] > 0
        assert sent["extra_1"].startswith("artmancer/") and sent["extra_2"] == "(none)"

    def test_the_first_scale_that_is_present_is_the_cfg_scale(self, gateway: Served) -> None:
        said = gateway.http.post(
            "/api/generate", json=removal(true_cfg_scale=3, guidance_scale=5)
        ).json()
        assert said["parameters_used"]["true_cfg_scale"] == 3


class TestJobs:
    def test_a_job_is_accepted_watched_and_fetched(self, gateway: Served) -> None:
        task = gateway.submit(seed=21)
        assert gateway.ended(task)["progress"] == 1
        assert gateway.http.get(f"/api/generate/status/{task}").json()["status"] == "done"
        said = gateway.http.get(f"/api/generate/result/{task}").json()
        assert said["status"] == "done" and said["request_id"] == task
        image = gateway.http.get(f"/api/generate/result-image/{task}")
        assert image.content == base64.b64decode(said["image"])
        assert image.headers["content-type"] == "image/png"
        assert int(image.headers["content-length"]) == len(image.content) and image.headers["etag"]

    def test_the_stream_can_be_split_by_hand(self, gateway: Served) -> None:
        task = gateway.submit(seed=22)
        with gateway.http.stream("GET", f"/api/generate/stream/{task}") as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            raw = b"".join(stream.iter_raw())
        assert b"\r" not in raw and raw.endswith(b"\n\n")
        blocks = raw.removesuffix(b"\n\n").split(b"\n\n")
        assert all(block.startswith(b"data: {") and b"\n" not in block for block in blocks)
        events = [json.loads(block.removeprefix(b"data: ")) for block in blocks]
        fields = {
            *(
                "task_id",
                "status",
                "progress",
                "current_step",
                "total_steps",
                "loading_message",
                "error",
            ),
            "queue_position",
        }
        assert all(fields <= set(event) and event["error"] is None for event in events)
        assert [event["progress"] for event in events] == sorted(
            event["progress"] for event in events
        )
        assert "result" not in events[0] or len(events) == 1
        assert (
            events[-1]["status"] == "done"
            and events[-1]["debug_info"]["output_image_size"] == "600x400"
        )
        assert picture(events[-1]["result"]).size == (600, 400)

    def test_a_stream_begins_with_the_present_status_and_beats(
        self, fake: FakeHost, quick: Served, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("artmancer.gateway.routes.answers.HEARTBEAT", 0.1)
        first = quick.submit(prompt="slow 1", seed=1)
        until(lambda: quick.status(first)["status"] == "processing")
        task = quick.submit(prompt="slow 0.1", seed=2)
        with quick.http.stream("GET", f"/api/generate/stream/{task}") as stream:
            events = [json.loads(line[6:]) for line in stream.iter_lines() if line]
        assert events[0]["status"] == "queued" and events[0]["queue_position"] == 1
        assert len([event for event in events if event["status"] == "queued"]) > 4

    def test_steps_are_counted(self, fake: FakeHost, quick: Served) -> None:
        task = quick.submit(prompt="slow 1")
        until(lambda: quick.status(task)["current_step"] >= 3)
        now = quick.status(task)
        assert (
            now["status"] == "processing" and now["total_steps"] == 10 and 0 < now["progress"] < 1
        )
        assert now["loading_message"] == "sampling" and now["queue_position"] is None

    def test_an_edit_by_another_route_is_asked_for_there(
        self, fake: FakeHost, quick: Served
    ) -> None:
        body = {"prompt": "x", "input_image": encoded("coffee")}
        task = quick.http.post("/api/workflows/generate/async", json=body).json()["task_id"]
        assert quick.ended(task)["status"] == "done"
        assert error(quick.http.get(f"/api/generate/result/{task}")) == (404, "not_found")
        assert quick.http.get(f"/api/jobs/{task}/result").status_code == 200

    def test_what_is_not_finished_has_no_result(self, fake: FakeHost, quick: Served) -> None:
        task = quick.submit(prompt="slow 1")
        assert error(quick.http.get(f"/api/generate/result/{task}")) == (409, "not_finished")
        assert error(quick.http.get(f"/api/generate/result-image/{task}")) == (409, "not_finished")

    def test_a_failure_is_kept(self, fake: FakeHost, quick: Served) -> None:
        task = quick.submit(prompt="fail mask_empty")
        status = quick.ended(task)
        assert status["status"] == "error" and status["error"].startswith("It was asked to fail")
        assert error(quick.http.get(f"/api/generate/result/{task}")) == (400, "mask_empty")
        with quick.http.stream("GET", f"/api/generate/stream/{task}") as stream:
            assert json.loads(stream.read().decode()[6:])["error"] == status["error"]

    def test_cancel_ends_a_job_in_every_state(self, fake: FakeHost, quick: Served) -> None:
        running = quick.submit(prompt="slow 5", seed=1)
        until(lambda: quick.status(running)["status"] == "processing")
        others = [quick.submit(prompt="slow 5", seed=seed) for seed in range(2, 7)]
        for task in [*reversed(others), running]:
            said = quick.http.post(f"/api/generate/async/cancel/{task}").json()
            assert said["success"] is True and said["task_id"] == task
            assert quick.status(task)["status"] == "cancelled"
            assert quick.http.post(f"/api/generate/async/cancel/{task}").json()["success"] is True
        assert quick.ended(quick.submit(seed=9), 5)["status"] == "done"
        assert error(quick.http.get(f"/api/generate/result/{running}")) == (409, "not_finished")
        assert not fake.fake.waiting

    def test_cancelling_what_is_done_changes_nothing(self, gateway: Served) -> None:
        task = gateway.submit(seed=30)
        gateway.ended(task)
        assert gateway.http.post(f"/api/generate/async/cancel/{task}").json()["success"] is False
        assert gateway.status(task)["status"] == "done"

    @pytest.mark.comfyui
    def test_cancel_reaches_a_real_comfyui(self, comfyui: Any, tmp_path: Path) -> None:
        with Served(settings(tmp_path, comfyui_url=comfyui.url)) as served:
            served.connected()
            tasks = [served.submit(seed=seed) for seed in range(100, 104)]
            for task in tasks:
                served.http.post(f"/api/generate/async/cancel/{task}")
            assert served.ended(served.submit(seed=110))["status"] == "done"
            queue = comfyui.get("/queue")
            assert not queue["queue_running"] and not queue["queue_pending"]

    def test_clients_take_turns(self, fake: FakeHost, tmp_path: Path) -> None:
        from artmancer.gateway.fair_queue import FairQueue
        from artmancer.gateway.job_store import LocalJob
        from artmancer.gateway.jobs import JobRecord

        queue = FairQueue()
        for number, client in enumerate("aaaabbc"):
            record = JobRecord(str(number), "w", "heavy", client, {}, [], {}, {}, 0.0)
            queue.put(LocalJob(record=record, graph={}, number=number))
        assert [job.number for job in queue] == [0, 4, 6, 1, 5, 2, 3]
        assert "".join(queue.take().record.client for _ in range(7)) == "abcabaa"

    def test_a_full_queue_says_when_to_come_back(self, fake: FakeHost, tmp_path: Path) -> None:
        with Served(settings(tmp_path, comfyui_url=fake.url, max_per_client=2)) as served:
            served.connected()
            tasks = [served.submit(prompt="slow 3", seed=seed) for seed in range(2)]
            answer = served.http.post("/api/generate/async", json=removal())
            assert error(answer) == (429, "queue_full") and int(answer.headers["retry-after"]) > 0
            for task in tasks:
                served.http.post(f"/api/generate/async/cancel/{task}")
            served.ended(served.submit())

    def test_a_click_goes_before_the_edits_that_wait(self, fake: FakeHost, quick: Served) -> None:
        for seed in range(5):
            quick.submit(prompt="slow 0.4", seed=seed)
        began = time.monotonic()
        assert (
            quick.http.post("/api/smart-mask", json={"image": encoded("coffee")}).status_code == 200
        )
        assert time.monotonic() - began < 1.2 and fake.fake.waiting

    def test_a_click_does_not_wait_where_it_has_a_comfyui_of_its_own(
        self, fake: FakeHost, tmp_path: Path
    ) -> None:
        other = FakeHost()
        with Served(
            settings(tmp_path, comfyui_url=fake.url, comfyui_light_url=other.url)
        ) as served:
            served.connected()
            until(lambda: served.http.get("/api/system/health").json()["status"] == "healthy")
            task = served.submit(prompt="slow 2")
            until(lambda: served.status(task)["status"] == "processing")
            assert (
                served.http.post("/api/smart-mask", json={"image": encoded("coffee")}).status_code
                == 200
            )
            assert served.status(task)["status"] == "processing"


class TestLight:
    def test_welcome(self, gateway: Served) -> None:
        assert set(gateway.http.get("/api/").json()) == {"message", "version"}

    def test_a_click_gives_a_mask_and_the_picture_need_not_be_sent_again(
        self, gateway: Served
    ) -> None:
        body = {
            "image": encoded("coffee"),
            "points": [[300, 200]],
            "labels": [1],
            "model_type": "draft",
        }
        said = gateway.http.post("/api/smart-mask", json=body).json()
        assert said["success"] and picture(said["mask_base64"]).size == (600, 400)
        assert said["candidates"] >= 1 and 0 <= said["score"] <= 1
        again = {
            **body,
            "image": None,
            "image_id": said["image_id"],
            "border_adjustment": 4,
            "use_blur": True,
        }
        assert (
            gateway.http.post("/api/smart-mask", json=again).json()["image_id"] == said["image_id"]
        )

    def test_the_main_object_is_detected(self, gateway: Served) -> None:
        said = gateway.http.post("/api/smart-mask/detect", json={"image": encoded("coffee")}).json()
        assert picture(said["mask_base64"]).size == (600, 400)

    def test_a_click_can_be_given_up(self, fake: FakeHost, quick: Served) -> None:
        quick.submit(prompt="slow 3")
        request_id = "0f7dd1f6-5b5e-4d8b-8f4e-2f0a8a1f7a11"
        answers: list[httpx.Response] = []
        body = {"image": encoded("coffee"), "request_id": request_id}
        click = threading.Thread(
            target=lambda: answers.append(httpx.post(f"{quick.url}/api/smart-mask", json=body))
        )
        click.start()
        until(lambda: quick.http.post(f"/api/smart-mask/cancel/{request_id}").status_code == 200)
        click.join(10)
        assert error(answers[0]) == (409, "not_finished")

    def test_a_picture_that_is_gone_has_to_be_sent_again(self, gateway: Served) -> None:
        for name in (
            "0" * 64 + ".png",
            "../jobs.sqlite",
            "..%2fjobs.sqlite",
            "x\0y",
            "/etc/passwd",
        ):
            answer = gateway.http.post("/api/smart-mask", json={"image_id": name})
            assert error(answer) == (404, "not_found")

    def test_an_object_is_extracted(self, gateway: Served) -> None:
        body = {"image": encoded("coffee"), "mask": encoded("coffee_mask")}
        said = gateway.http.post("/api/image-utils/extract-object", json=body).json()
        assert said["success"] and picture(said["extracted_image"])

    def test_a_shadow_is_previewed(self, gateway: Served) -> None:
        body = {
            "extracted_image": encoded("coffee"),
            "mask": encoded("coffee_mask"),
            "shadow_opacity": 0.3,
        }
        said = gateway.http.post("/api/image-utils/add-shadow-preview", json=body).json()
        assert said["success"] and picture(said["preview_image"]).size == (600, 400)

    @pytest.mark.parametrize("method", ["auto", "manual", "ai"])
    def test_the_white_balance_is_corrected(self, gateway: Served, method: str) -> None:
        file = {"file": ("coffee.png", (EXAMPLES / "coffee.png").read_bytes(), "image/png")}
        form = {"method": method, "temperature": "20", "tint": "-5"}
        said = gateway.http.post("/api/image-utils/white-balance", files=file, data=form).json()
        assert (
            said["success"]
            and said["method_used"] == method
            and said["parameters"]["temperature"] == 20
        )
        assert said["original_image"] == encoded("coffee")
        assert picture(said["corrected_image"]).size == (600, 400)

    def test_the_cache_is_cleared(self, gateway: Served) -> None:
        said = gateway.http.post("/api/clear-cache").json()
        assert said["success"] is True and said["freed_bytes"] >= 0


class TestAnyWorkflow:
    def test_every_graph_has_its_schema(self, gateway: Served) -> None:
        found = {one["name"]: one for one in gateway.http.get("/api/workflows").json()["workflows"]}
        assert set(found) == {path.stem for path in GRAPHS.glob("*.json")}
        assert all(one["served"] for one in found.values()), found
        steps = found["generate"]["schema"]["properties"]["num_inference_steps"]
        assert (steps["type"], steps["default"], steps["minimum"], steps["maximum"]) == (
            "integer",
            10,
            1,
            100,
        )
        assert steps["description"]
        assert found["generate"]["schema"]["required"] == ["input_image", "prompt"]

    def test_a_workflow_runs_under_its_name(self, gateway: Served) -> None:
        body = {"image": encoded("coffee"), "temperature": 30}
        said = gateway.http.post("/api/workflows/white-balance", json=body).json()
        assert picture(said["outputs"]["image"]).size == (600, 400)
        task = gateway.http.post("/api/workflows/white-balance/async", json=body).json()["task_id"]
        assert gateway.ended(task)["status"] == "done"
        assert gateway.http.get(f"/api/jobs/{task}/result").json()["outputs"] == said["outputs"]
        with gateway.http.stream("GET", f"/api/jobs/{task}/stream") as stream:
            assert json.loads(stream.read().decode()[6:])["outputs"] == said["outputs"]
        assert gateway.http.post(f"/api/jobs/{task}/cancel").json()["success"] is False

    def test_a_graph_dropped_into_the_folder_is_served_at_once(
        self, fake: FakeHost, tmp_path: Path
    ) -> None:
        folder = tmp_path / "graphs"
        shutil.copytree(GRAPHS, folder)
        with Served(settings(tmp_path / "data", comfyui_url=fake.url, workflows=folder)) as served:
            served.connected()
            assert error(served.http.post("/api/workflows/warm", json={})) == (404, "not_found")
            text = (
                (GRAPHS / "white-balance.json").read_text().replace('"temperature"', '"warmth"', 1)
            )
            (folder / "warm.json").write_text(text)
            found = {
                one["name"]: one for one in served.http.get("/api/workflows").json()["workflows"]
            }
            assert found["warm"]["served"]
            document = served.http.get("/openapi.json").json()
            assert "/api/workflows/warm" in document["paths"]
            said = served.http.post("/api/workflows/warm", json={"image": encoded("coffee")})
            assert said.status_code == 200
            (folder / "warm.json").unlink()
            assert error(served.http.post("/api/workflows/warm", json={})) == (404, "not_found")

    @pytest.mark.parametrize(
        ("spoil", "why"),
        [
            (lambda graph: graph["99"].update(inputs={"image": ["98", 0]}), "not there"),
            (lambda graph: graph["99"]["inputs"].update(image=["99", 0]), "form a cycle"),
            (lambda graph: graph["99"].update(class_type="NotInstalled"), "does not have"),
            (
                lambda graph: graph["99"].update(
                    class_type="LoadImage", inputs={"image": "secret.png"}
                ),
                "reads a file",
            ),
            (
                lambda graph: graph["99"]["inputs"].update(width="../../etc/passwd"),
                "path on the host",
            ),
            (lambda graph: graph["99"]["inputs"].update(width="/etc/passwd"), "path on the host"),
            (
                lambda graph: graph["99"]["inputs"].update(width=[{"a": "C:\\x"}]),
                "path on the host",
            ),
            (
                lambda graph: graph["1"]["inputs"].update(name="a", required=1, help=float("inf")),
                "is no number",
            ),
            (lambda graph: graph["1"]["inputs"].update(name="a b"), "field's name"),
            (lambda graph: graph["1"]["inputs"].update(help="\ud800"), "not JSON"),
            (lambda graph: graph.update({"98": _text(max_length=-1)}), "max_length"),
            (
                lambda graph: graph.update({"98": _text(), "99": _save(["98", 0])}),
                "a caller would choose",
            ),
            (
                lambda graph: graph.update(
                    {"98": _text(), "97": _joined("98"), "99": _save(["97", 0])}
                ),
                "would choose",
            ),
            (
                lambda graph: [
                    graph.pop(k) for k, n in list(graph.items()) if "Result" in n["class_type"]
                ],
                "Result",
            ),
        ],
    )
    def test_a_graph_that_must_not_run_is_listed_with_the_reason(
        self, fake: FakeHost, tmp_path: Path, spoil: Any, why: str
    ) -> None:
        folder = tmp_path / "graphs"
        folder.mkdir()
        graph = json.loads((GRAPHS / "white-balance.json").read_text())
        graph["99"] = {
            "class_type": "ImageScale",
            "inputs": {"image": ["1", 0], "width": 64, "height": 64},
        }
        spoil(graph)
        (folder / "bad.json").write_text(json.dumps(graph))
        with Served(settings(tmp_path / "data", comfyui_url=fake.url, workflows=folder)) as served:
            served.connected()
            [found] = served.http.get("/api/workflows").json()["workflows"]
            assert found["served"] is False and why in found["reason"]
            body = {"image": encoded("coffee")}
            assert error(served.http.post("/api/workflows/bad", json=body)) == (
                500,
                "generation_failed",
            )

    def test_a_graph_nested_deep_is_no_bug(self, fake: FakeHost, tmp_path: Path) -> None:
        deep: Any = 1
        for _ in range(500):
            deep = [deep]
        graph = json.loads((GRAPHS / "white-balance.json").read_text())
        graph["99"] = {
            "class_type": "ImageScale",
            "inputs": {"image": ["1", 0], "width": deep, "height": 64},
        }
        (tmp_path / "graphs").mkdir()
        (tmp_path / "graphs" / "deep.json").write_text(json.dumps(graph))
        made = settings(tmp_path / "data", comfyui_url=fake.url, workflows=tmp_path / "graphs")
        with Served(made) as served:
            served.connected()
            assert (
                served.http.post(
                    "/api/workflows/deep", json={"image": encoded("coffee")}
                ).status_code
                == 200
            )

    def test_a_picture_that_lay_in_the_graph_is_nobody_elses(
        self, fake: FakeHost, quick: Served
    ) -> None:
        workflow = quick.app.state.gateway.workflows.get("generate")
        workflow.graph["2"]["inputs"]["image"] = "family.png"
        quick.http.post("/api/generate", json={"prompt": "x", "input_image": encoded("coffee")})
        assert fake.fake.posted[-1]["prompt"]["2"]["inputs"]["image"] == "(none)"

    @pytest.mark.parametrize(
        "text", ["", "[]", "{", "null", '{"1": 5}', "[" * 100_000, '{"nodes": [], "links": []}']
    )
    def test_what_is_no_graph_is_listed_with_the_reason(
        self, tmp_path: Path, fake: FakeHost, text: str
    ) -> None:
        (tmp_path / "graphs").mkdir()
        (tmp_path / "graphs" / "bad.json").write_text(text)
        (tmp_path / "graphs" / "link.json").symlink_to(GRAPHS / "white-balance.json")
        made = settings(tmp_path / "data", comfyui_url=fake.url, workflows=tmp_path / "graphs")
        with Served(made) as served:
            [found] = served.connected().http.get("/api/workflows").json()["workflows"]
            assert found["name"] == "bad" and not found["served"] and found["reason"]

    @pytest.mark.parametrize(
        "name", ["..", "%2e%2e", "..%2f..%2fetc%2fpasswd", "a%00b", "generate.json", "GENERATE"]
    )
    def test_a_name_leads_nowhere_else(self, gateway: Served, name: str) -> None:
        assert gateway.http.post(f"/api/workflows/{name}", json={}).status_code in (404, 405)
        assert gateway.http.get(f"/api/debug/sessions/{name}").status_code == 404
        assert gateway.http.get(f"/api/debug/sessions/{name}/images/{name}").status_code == 404
        assert gateway.http.get(f"/api/jobs/{name}").status_code == 404
        assert gateway.http.get(f"/api/generate/result-image/{name}").status_code in (404, 405)


def _text(**more: Any) -> dict[str, Any]:
    inputs = {
        "value": "x",
        "name": "words",
        "help": "",
        "max_length": 100,
        "required": False,
        **more,
    }
    return {"class_type": "ArtMancer_EndpointText", "inputs": inputs}


def _joined(key: str) -> dict[str, Any]:
    return {
        "class_type": "StringConcatenate",
        "inputs": {"string_a": [key, 0], "string_b": "", "delimiter": ""},
    }


def _save(prefix: list[Any]) -> dict[str, Any]:
    return {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": prefix}}


class TestErrors:
    """Each code of the table, from a client's side."""

    def test_a_value_outside_its_range_is_named(self, gateway: Served) -> None:
        for change in (
            {"num_inference_steps": 0},
            {"num_inference_steps": 101},
            {"true_cfg_scale": 0.4},
            {"guidance_scale": 21},
            {"width": 255},
            {"height": 2049},
            {"seed": -1},
            {"seed": 2**53},
            {"prompt": "x" * 4001},
            {"task_type": "dance"},
            {"input_quality": "best"},
            {"input_image": 5},
            {"conditional_images": "abc"},
        ):
            answer = gateway.http.post("/api/generate", json=removal(**change))
            assert error(answer) == (422, "invalid_request"), change
            details = answer.json()["details"]
            assert (
                details["field"] == next(iter(change)) and details["expected"] and "got" in details
            )

    def test_what_was_expected_and_what_came_is_told_to_programs(self, quick: Served) -> None:
        utils, image = "/api/image-utils", encoded("coffee")
        for path, body, field in (
            ("/api/smart-mask", {"points": [[1, 2]]}, "image"),
            ("/api/smart-mask", {"image": image, "request_id": "x"}, "request_id"),
            (f"{utils}/remove-background", {"image": image, "model": "mine"}, "model"),
        ):
            answer = quick.http.post(path, json=body)
            assert error(answer) == (422, "invalid_request")
            details = answer.json()["details"]
            assert details["field"] == field and details["expected"] and details["got"]

    def test_names_nobody_knows_are_told_again_in_part(self, quick: Served) -> None:
        body = removal(**{"x" * 5000: 1, **{f"y{n}": 1 for n in range(100)}})
        ignored = quick.http.post("/api/generate", json=body).json()["parameters_used"]["ignored"]
        assert len(ignored) == 50 and max(map(len, ignored)) == 80

    def test_a_missing_field_is_named(self, gateway: Served) -> None:
        answer = gateway.http.post("/api/generate", json={"prompt": "x"})
        assert (
            error(answer) == (422, "invalid_request")
            and answer.json()["details"]["field"] == "input_image"
        )

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"{",
            b"[]",
            b"null",
            b"5",
            b"\xff\xfe",
            b'{"prompt": ' + b"[" * 100_000,
            b'{"prompt": NaN}',
        ],
    )
    def test_a_body_that_is_no_request(self, gateway: Served, body: bytes) -> None:
        for path in ("/api/generate", "/api/smart-mask", "/api/workflows/white-balance"):
            answer = gateway.http.post(
                path, content=body, headers={"content-type": "application/json"}
            )
            assert error(answer) == (422, "invalid_request")

    def test_where_no_body_came_it_says_what_should(self, gateway: Served) -> None:
        answer = gateway.http.post("/api/generate")
        assert error(answer) == (422, "invalid_request")
        assert "the body: expected a JSON object; got nothing" in answer.json()["detail"]

    @pytest.mark.parametrize(
        "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None]
    )
    def test_json_routes_want_json(self, gateway: Served, kind: str | None) -> None:
        headers = {"content-type": kind} if kind else {}
        for path in ("/api/generate", "/api/workflows/white-balance"):
            answer = gateway.http.post(path, content=json.dumps(removal()), headers=headers)
            assert error(answer) == (422, "invalid_request")

    @pytest.mark.parametrize(
        "text",
        [
            "hello",
            "*" * 64,
            base64.b64encode(b"hello").decode(),
            "data:image/png,abc",
            "data:image/png;base64,%%%",
            "",
            base64.b64encode(b"\x89PNG\r\n\x1a\n").decode(),
            base64.b64encode(b"GIF89a").decode(),
            base64.b64encode(b"<svg xmlns='http://www.w3.org/2000/svg'/>").decode(),
        ],
    )
    def test_what_is_no_picture(self, gateway: Served, text: str) -> None:
        answer = gateway.http.post("/api/generate", json=removal(input_image=text))
        assert error(answer) == (400, "invalid_image")

    @pytest.mark.parametrize(
        "kind", ["I;16", "P", "LA", "RGBA", "CMYK", "1", "turned", "1x1", "GIF"]
    )
    def test_pictures_of_every_kind_are_read(self, gateway: Served, kind: str) -> None:
        size, exif = ((1, 1) if kind == "1x1" else (60, 40)), Image.Exif()
        mode = kind if kind in ("I;16", "P", "LA", "RGBA", "CMYK", "1") else "RGB"
        if kind == "turned":
            exif[ExifTags.Base.Orientation] = 6
        saved = io.BytesIO()
        format = "GIF" if kind == "GIF" else "JPEG" if kind in ("CMYK", "turned") else "PNG"
        Image.new(mode, size, 7 if mode in ("I;16", "P", "1") else None).save(
            saved, format, exif=exif
        )
        body = {"prompt": "balance", "input_image": base64.b64encode(saved.getvalue()).decode()}
        said = gateway.http.post("/api/generate", json=body).json()
        assert said["debug_info"]["input_image_size"] == (
            "40x60" if kind == "turned" else f"{size[0]}x{size[1]}"
        )

    def test_a_bomb_is_not_unpacked(self, gateway: Served) -> None:
        saved = io.BytesIO()
        Image.new("1", (30_000, 30_000)).save(saved, "PNG")
        body = {"prompt": "balance", "input_image": base64.b64encode(saved.getvalue()).decode()}
        assert error(gateway.http.post("/api/generate", json=body)) == (413, "image_too_large")

    def test_a_picture_that_is_too_large(self, gateway: Served) -> None:
        buffer = io.BytesIO()
        Image.new("1", (16385, 10)).save(buffer, "PNG")
        body = removal(input_image=base64.b64encode(buffer.getvalue()).decode())
        assert error(gateway.http.post("/api/generate", json=body)) == (413, "image_too_large")

    def test_a_body_that_is_too_large_is_refused_while_it_comes(self, gateway: Served) -> None:
        def endless() -> Iterator[bytes]:
            yield b'{"prompt": "'
            for _ in range(60):
                yield b"x" * 2**20

        headers = {"content-type": "application/json"}
        answer = gateway.http.post("/api/generate", content=endless(), headers=headers)
        assert error(answer) == (413, "image_too_large")
        answer = gateway.http.post(
            "/api/generate", content=b"x" * (40 * 2**20 + 1), headers=headers
        )
        assert error(answer) == (413, "image_too_large")

    def test_a_body_that_does_not_come(
        self, fake: FakeHost, quick: Served, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("artmancer.gateway.middleware.BODY_PAUSE_TIMEOUT", 0.3)

        def slow() -> Iterator[bytes]:
            yield b'{"prompt": '
            time.sleep(1)
            yield b'"x"}'

        answer = quick.http.post(
            "/api/generate", content=slow(), headers={"content-type": "application/json"}
        )
        assert error(answer) == (504, "timeout")

    def test_a_body_that_comes_drop_by_drop(
        self, fake: FakeHost, quick: Served, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("artmancer.gateway.middleware.BODY_TIMEOUT", 0.5)

        def drops() -> Iterator[bytes]:
            for _ in range(40):
                yield b" "
                time.sleep(0.05)

        headers = {"content-type": "application/json"}
        assert error(quick.http.post("/api/generate", content=drops(), headers=headers)) == (
            504,
            "timeout",
        )

    def test_no_mask(self, gateway: Served) -> None:
        body = removal(task_type="removal")
        del body["mask_image"]
        for path in ("/api/generate", "/api/generate/async"):
            assert error(gateway.http.post(path, json=body)) == (400, "mask_missing")

    @pytest.mark.comfyui
    def test_what_a_real_run_refuses(self, comfyui: Any, tmp_path: Path) -> None:
        black = io.BytesIO()
        Image.new("L", (600, 400)).save(black, "PNG")
        small = io.BytesIO()
        Image.new("L", (60, 40), 255).save(small, "PNG")
        with Served(settings(tmp_path, comfyui_url=comfyui.url)) as served:
            served.connected()
            for change, expected in (
                ({"mask_image": base64.b64encode(black.getvalue()).decode()}, (400, "mask_empty")),
                (
                    {"mask_image": base64.b64encode(small.getvalue()).decode()},
                    (422, "invalid_request"),
                ),
                ({"task_type": "insertion"}, (400, "reference_missing")),
                (
                    {"input_image": encoded("coffee")[:4000]},
                    (400, "invalid_image"),
                ),  # cut off behind its header
            ):
                assert error(served.http.post("/api/generate", json=removal(**change))) == expected
            body = {"image": encoded("coffee"), "model_type": "fastsam"}
            assert error(served.http.post("/api/smart-mask", json=body)) == (
                503,
                "checkpoint_missing",
            )
            body = {"image": encoded("coffee"), "model": "u2net"}
            answer = served.http.post("/api/image-utils/remove-background", json=body)
            assert error(answer) == (503, "checkpoint_missing")
            assert str(comfyui.base) not in answer.text

    @pytest.mark.parametrize(
        "code", [code for code in CODES if code not in ("unauthorized", "queue_full")]
    )
    def test_every_code_of_a_run_comes_through(
        self, fake: FakeHost, quick: Served, code: str
    ) -> None:
        answer = quick.http.post("/api/generate", json=removal(prompt=f"fail {code}"))
        assert error(answer) == (CODES[code].status, code)

    def test_a_bug_in_the_gateway_is_counted_and_readable_for_an_allowed_page(
        self, fake: FakeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with Served(settings(tmp_path, comfyui_url=fake.url)) as served:
            served.connected()
            monkeypatch.setattr(
                "artmancer.gateway.routes.generate.BRUSH_GROWTH", property()
            )  # nothing for JSON
            answer = served.http.post(
                "/api/generate",
                json=removal(mask_tool_type="brush"),
                headers={"origin": "http://localhost:3000"},
            )
            assert (
                error(answer) == (500, "generation_failed")
                and "its log" in answer.json()["detail"].lower()
            )
            assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"
            assert 'route="/api/generate",status="500"' in served.http.get("/metrics").text

    def test_a_bug_in_a_node_is_no_secret_and_no_stack_trace(
        self, fake: FakeHost, quick: Served
    ) -> None:
        answer = quick.http.post("/api/generate", json=removal(prompt="crash"))
        assert error(answer) == (500, "generation_failed")
        assert "failed: It was asked to fail, in fake_comfyui.py" in answer.json()["detail"]

    def test_without_comfyui(self, tmp_path: Path) -> None:
        with Served(settings(tmp_path, comfyui_url=f"http://127.0.0.1:{free_port()}")) as served:
            assert served.http.get("/ping").json() == {"status": "healthy"}
            health = served.http.get("/api/health")
            assert health.status_code == 200
            assert health.json()["status"] == "degraded" and "ComfyUI" in health.json()["reason"]
            assert served.http.get("/api/system/health").json()["status"] == "degraded"
            assert error(served.http.post("/api/generate", json=removal())) == (
                503,
                "comfyui_unavailable",
            )
            assert error(served.http.post("/api/clear-cache")) == (503, "comfyui_unavailable")

    def test_what_takes_too_long(self, fake: FakeHost, tmp_path: Path) -> None:
        with Served(settings(tmp_path, comfyui_url=fake.url, heavy_timeout=1)) as served:
            served.connected()
            answer = served.http.post("/api/generate", json=removal(prompt="slow 30"))
            assert error(answer) == (504, "timeout")
            task = served.submit(prompt="slow 30")
            assert served.ended(task, 5)["status"] == "error"
            assert error(served.http.get(f"/api/generate/result/{task}")) == (504, "timeout")
            assert served.ended(served.submit(), 5)["status"] == "done"

    def test_unknown_ids_and_routes(self, gateway: Served) -> None:
        for path in ("status/x", "result/x", "result-image/x", "stream/x"):
            assert error(gateway.http.get(f"/api/generate/{path}")) == (404, "not_found")
        assert error(gateway.http.post("/api/generate/async/cancel/x")) == (404, "not_found")
        assert error(gateway.http.get("/api/nothing")) == (404, "not_found")
        assert gateway.http.get("/api/generate").status_code == 405


class TestDoor:
    def test_a_token_is_asked_for_everywhere_but_at_ping(
        self, fake: FakeHost, tmp_path: Path
    ) -> None:
        with Served(settings(tmp_path, comfyui_url=fake.url, api_token="s3cret")) as served:
            assert served.http.get("/ping").status_code == 200
            for path in (
                "/",
                "/api/",
                "/api/health",
                "/docs",
                "/openapi.json",
                "/metrics",
                "/api/workflows",
            ):
                assert error(served.http.get(path)) == (401, "unauthorized")
                wrong = {"authorization": "Bearer s3cre"}
                assert error(served.http.get(path, headers=wrong)) == (401, "unauthorized")
            assert error(served.http.post("/api/generate", json={})) == (401, "unauthorized")
            served.http.headers["authorization"] = "Bearer s3cret"
            assert served.connected().http.post("/api/generate", json=removal()).status_code == 200

    def test_only_allowed_origins_are_let_in(self, quick: Served) -> None:
        def preflight(origin: str) -> httpx.Response:
            headers = {"origin": origin, "access-control-request-method": "POST"}
            return quick.http.options("/api/generate", headers=headers)

        allowed = "http://localhost:3000"
        assert preflight(allowed).headers["access-control-allow-origin"] == allowed
        assert preflight("http://evil.example").status_code == 400
        answer = quick.http.get("/api/", headers={"origin": allowed})
        assert answer.headers["access-control-allow-origin"] == allowed
        file = {"file": ("coffee.png", (EXAMPLES / "coffee.png").read_bytes(), "image/png")}
        answer = quick.http.post(
            "/api/image-utils/white-balance", files=file, headers={"origin": "http://evil.example"}
        )
        assert (
            error(answer) == (401, "unauthorized")
            and "access-control-allow-origin" not in answer.headers
        )

    def test_a_role_serves_its_part(self, fake: FakeHost, tmp_path: Path) -> None:
        with Served(settings(tmp_path / "a", comfyui_url=fake.url, role="light")) as served:
            served.connected()
            assert served.http.post("/api/generate", json=removal()).status_code in (404, 405)
            assert (
                served.http.post("/api/smart-mask", json={"image": encoded("coffee")}).status_code
                == 200
            )
            found = {
                one["name"]: one for one in served.http.get("/api/workflows").json()["workflows"]
            }
            assert not found["generate"]["served"] and found["smart-mask"]["served"]
        with Served(settings(tmp_path / "b", comfyui_url=fake.url, role="heavy")) as served:
            served.connected()
            assert served.http.post("/api/smart-mask", json={}).status_code in (404, 405)
            assert served.http.post("/api/generate", json=removal()).status_code == 200

    def test_the_light_part_has_its_white_balance_by_model_made_where_edits_run(
        self, fake: FakeHost, tmp_path: Path
    ) -> None:
        with Served(settings(tmp_path, comfyui_url=fake.url, role="light")) as served:
            served.connected()
            file = {"file": ("coffee.png", (EXAMPLES / "coffee.png").read_bytes(), "image/png")}
            answer = served.http.post(
                "/api/image-utils/white-balance", files=file, data={"method": "ai"}
            )
            assert answer.json()["method_used"] == "ai"

    def test_health_says_what_works(self, gateway: Served) -> None:
        until(
            lambda: gateway.http.get("/api/health").json()["device_info"]["queue_length"] == 0, 30
        )
        said = gateway.http.get("/api/health").json()
        assert (
            said["status"] == "healthy"
            and said["device"] == "cpu"
            and said["model_loaded"] is False
        )
        about = said["device_info"]
        assert about["comfyui_version"] and about["memory_total"]
        assert set(about["missing"]) == {"insertion", "removal", "white_balance"}
        said = gateway.http.get("/api/system/health").json()
        assert {name: one["status"] for name, one in said["services"].items()} == {
            "generation": "healthy",
            "segmentation": "healthy",
            "image-utils": "healthy",
        }

    def test_metrics_count(self, gateway: Served) -> None:
        gateway.http.post("/api/generate", json=removal())
        text = gateway.http.get("/metrics").text
        assert re.search(r'artmancer_jobs_total{state="done",workflow="generate"} [1-9]', text)
        assert (
            'artmancer_host_up{lane="heavy"} 1.0' in text and "artmancer_job_seconds_bucket" in text
        )

    def test_the_log_holds_no_pictures_and_no_prompts(
        self, fake: FakeHost, quick: Served, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("INFO")
        quick.http.post("/api/generate", json=removal(prompt="a secret wish"))
        assert "job accepted" in caplog.text
        assert "secret wish" not in caplog.text and encoded("coffee")[:40] not in caplog.text

    def test_debug_sessions_are_off_unless_asked_for(self, quick: Served) -> None:
        assert quick.http.get("/api/debug/status").json() == {
            "enabled": False,
            "sessions": 0,
            "bytes": 0,
        }
        assert error(quick.http.get("/api/debug/sessions")) == (404, "not_found")

    def test_a_debug_session_holds_pictures_that_were_sent_and_nothing_else(
        self, fake: FakeHost, tmp_path: Path
    ) -> None:
        (tmp_path / "secret.png").write_bytes(b"secret")
        with Served(settings(tmp_path / "data", comfyui_url=fake.url, debug=True)) as served:
            served.connected().http.post(
                "/api/generate",
                json=removal(enable_debug=True, prompt=str(tmp_path / "secret.png")),
            )
            served.http.post("/api/generate", json=removal(enable_debug=True, prompt="x" * 4000))
            found = served.http.get("/api/debug/sessions").json()
            assert len(found) == 2
            assert not any("prompt" in file for one in found for file in one["files"])

    def test_debug_sessions_never_lead_outside(self, fake: FakeHost, tmp_path: Path) -> None:
        with Served(settings(tmp_path, comfyui_url=fake.url, debug=True)) as served:
            served.connected().http.post("/api/generate", json=removal(enable_debug=True))
            session = next((tmp_path / "debug").iterdir())
            (tmp_path / "secret.png").write_bytes(b"secret")
            (session / "link.png").symlink_to(tmp_path / "secret.png")
            (tmp_path / "debug" / "20260101-000000-00000000").symlink_to(tmp_path)
            url = f"/api/debug/sessions/{session.name}"
            for name in (
                "link.png",
                "../../secret.png",
                "..%2f..%2fsecret.png",
                "%2e%2e",
                "parameters.json",
                "a%00b",
            ):
                assert served.http.get(f"{url}/images/{name}").status_code == 404
            assert "link.png" not in served.http.get(url).json()["files"]
            names = zipfile.ZipFile(
                io.BytesIO(served.http.get(f"{url}/download").content)
            ).namelist()
            assert not any("link" in name for name in names)
            assert (
                served.http.get("/api/debug/sessions/20260101-000000-00000000").status_code == 404
            )
            assert [one["name"] for one in served.http.get("/api/debug/sessions").json()] == [
                session.name
            ]
            assert served.http.post("/api/debug/cleanup?keep_last_n=0").json()["removed"] == 1
            assert (tmp_path / "secret.png").is_file() and served.http.get(url).status_code == 404


class TestRestarts:
    def test_a_gateway_that_starts_again_knows_every_job(
        self, fake: FakeHost, tmp_path: Path
    ) -> None:
        made = settings(tmp_path, comfyui_url=fake.url)
        with Served(made) as served:
            done = served.connected().submit(seed=1)
            served.ended(done)
            failed = served.submit(prompt="fail mask_empty")
            served.ended(failed)
            tasks = [served.submit(prompt="slow 0.5", seed=seed) for seed in range(2, 7)]
            until(lambda: served.status(tasks[0])["status"] == "processing")
        posted = len(fake.fake.posted)
        with Served(made) as served:
            served.connected()
            assert served.status(done)["status"] == "done"
            assert served.http.get(f"/api/generate/result/{done}").json()["success"]
            assert served.status(failed)["status"] == "error"
            assert all(served.ended(task)["status"] == "done" for task in tasks)
        assert (
            len(fake.fake.posted) - posted <= len(tasks) - 1
        )  # what ComfyUI had was not sent again

    def test_a_job_runs_again_once_when_comfyui_dies(self, tmp_path: Path) -> None:
        host = FakeHost()
        with Served(settings(tmp_path, comfyui_url=host.url)) as served:
            served.connected()
            tasks = [served.submit(prompt="slow 1", seed=seed) for seed in range(3)]
            until(lambda: served.status(tasks[0])["current_step"] > 2)
            host.die()
            until(lambda: served.http.get("/api/health").json()["status"] == "degraded", 5)
            assert served.status(tasks[0])["status"] == "queued"
            host.start()
            assert [served.ended(task)["status"] for task in tasks] == ["done"] * 3
            task = served.submit(prompt="slow 1", seed=9)
            for _ in range(2):
                until(lambda: served.status(task)["current_step"] > 2)
                host.die()
                until(lambda: served.http.get("/api/health").json()["status"] == "degraded", 5)
                host.start()
            assert (
                served.ended(task)["status"] == "error"
                and "stopped twice" in served.status(task)["error"]
            )

    def test_a_result_that_comfyui_lost_is_made_again_once(
        self, fake: FakeHost, quick: Served
    ) -> None:
        fake.fake.vanishing = 1
        assert quick.ended(quick.submit(seed=8))["status"] == "done"
        fake.fake.vanishing = 2
        assert quick.ended(quick.submit(seed=9))["status"] == "error"

    def test_an_end_that_nobody_told_is_noticed(self, fake: FakeHost, quick: Served) -> None:
        task = quick.submit(prompt="slow 1")
        until(lambda: quick.status(task)["status"] == "processing")
        # as ComfyUI does when a client's last connection closes after its new one opened
        fake.fake.sockets.clear()
        assert quick.ended(task, 15)["status"] == "done"

    def test_a_job_that_somebody_took_out_of_comfyuis_queue_is_handed_over_again(
        self, fake: FakeHost, quick: Served, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("artmancer.gateway.comfy_runner._CHECK_SECONDS", 0.2)
        with Served(settings(quick.settings.data / "more", comfyui_url=fake.url)) as served:
            served.connected()
            tasks = [served.submit(prompt="slow 1", seed=seed) for seed in range(3)]
            until(lambda: len(fake.fake.waiting) == 2)
            fake.fake.waiting.clear()
            for task in tasks:
                assert served.ended(task, 20)["status"] == "done"

    def test_a_second_gateway_does_not_take_the_folder(self, fake: FakeHost, quick: Served) -> None:
        from artmancer.errors import ArtMancerError
        from artmancer.gateway.job_store import JobStore

        with pytest.raises(ArtMancerError, match="Stop the gateway that uses it"):
            JobStore(quick.settings.data)

    def test_old_results_and_pictures_go(
        self, fake: FakeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("artmancer.gateway.local_jobs._TIDY_SECONDS", 0.1)
        monkeypatch.setattr("artmancer.gateway.upload_store._GRACE_SECONDS", 0)
        made = settings(tmp_path, comfyui_url=fake.url, result_hours=1 / 3600, picture_gigabytes=0)
        with Served(made) as served:
            task = served.connected().submit(prompt="slow 0.5")
            assert served.ended(task)["status"] == "done"
            until(lambda: served.http.get(f"/api/jobs/{task}").status_code == 404, 5)
            until(lambda: not list((tmp_path / "pictures").iterdir()))
            assert not list((tmp_path / "results").iterdir())


def shapes(run: Any) -> list[tuple[str, tuple[str, ...]]]:
    """The kinds of a run's messages and their fields, each once, in order of appearance."""
    seen = [
        (event["type"], tuple(sorted(event["data"])))
        for event in run.events
        if event["type"] != "progress_state"
    ]
    return list(dict.fromkeys(seen))


@pytest.mark.comfyui
def test_the_fake_says_what_a_real_one_says(comfyui: Any) -> None:
    host = FakeHost()
    fake = object.__new__(type(comfyui))
    fake.url = host.url
    graph = json.loads((GRAPHS / "white-balance.json").read_text())
    runs = []
    for server in (comfyui, fake):
        with httpx.Client(base_url=server.url, trust_env=False) as http:
            file = {"image": ("a.png", (EXAMPLES / "coffee.png").read_bytes(), "image/png")}
            said = http.post(
                "/upload/image", files=file, data={"type": "temp", "subfolder": "artmancer"}
            ).json()
            assert said == {"name": "a.png", "subfolder": "artmancer", "type": "temp"}
            graph["1"]["inputs"]["image"] = "artmancer/a.png [temp]"
            for node in graph.values():
                if node["class_type"] == "ArtMancer_EndpointResult":
                    node["inputs"]["folder"] = "temp"
            runs.append(server.run(graph))
            graph["1"]["inputs"]["image"] = "artmancer/none.png [temp]"
            refused = http.post(
                "/prompt", json={"prompt": graph, "prompt_id": str(uuid.uuid4()), "client_id": "x"}
            )
            assert refused.status_code == 400
            runs.append(refused.json()["node_errors"]["1"]["errors"][0]["details"])
            runs.append(sorted(http.get("/queue").json()))
    assert runs[1] == runs[4] and runs[2] == runs[5]
    assert set(shapes(runs[3])) <= set(shapes(runs[0]))
    [real], [faked] = ([*run.outputs.values()] for run in (runs[0], runs[3]))
    assert set(real["images"][0]) == set(faked["images"][0])
    host.die()
