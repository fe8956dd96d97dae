"""/api/generate: edits and their jobs."""

import base64
import io
import json
import re
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.fake_comfyui import HELD_STEPS
from support.gateway import (
    FakeHost,
    Served,
    decoded,
    encoded,
    error,
    removal,
    settings,
    until,
)

from artmancer.gateway.local_jobs import IN_FLIGHT


def test_an_edit_answers_with_every_field_of_the_contract(gateway: Served) -> None:
    body = removal(angle=3, shade="red", mask_tool_type="brush")
    answer = gateway.http.post("/api/generate", json=body).json()
    assert answer["success"] is True
    assert answer["generation_time"] > 0
    assert re.fullmatch(r"(draft|qwen-image-edit)/removal", answer["model_used"])
    used = answer["parameters_used"]
    assert (used["seed"], used["width"], used["height"]) == (7, 600, 400)
    assert used["ignored"] == ["angle", "shade"]
    assert gateway.status(answer["request_id"])["status"] == "done"
    debug = answer["debug_info"]
    assert debug["input_image_size"] == debug["output_image_size"] == "600x400"
    assert debug["conditional_labels"] == ["mask", "background", "object"]
    assert debug["conditional_images"] is None
    assert debug["loaded_adapters"] == [] and debug["lora_adapter"] is None
    assert answer["report"]["outside_psnr"] == "infinite"
    assert answer["report"]["verdict"] in ("good", "look", "failed")
    assert decoded(answer["image"]).size == (600, 400)


@pytest.mark.parametrize("editor", ["auto", "draft", "lama"])
def test_the_editor_is_chosen_and_named(gateway: Served, editor: str) -> None:
    answer = gateway.http.post("/api/generate", json=removal(editor=editor)).json()
    assert answer["parameters_used"]["editor"] == editor
    assert answer["parameters_used"]["ignored"] == []
    assert re.fullmatch(r"(draft|lama)/removal", answer["model_used"])


def test_lama_refuses_other_edits_than_removals_and_an_unknown_editor_is_named(
    gateway: Served,
) -> None:
    body = removal(editor="lama", task_type="white_balance")
    answer = gateway.http.post("/api/generate", json=body)
    assert error(answer) == (422, "invalid_request")
    assert "only removes" in answer.json()["detail"]
    answer = gateway.http.post("/api/generate", json=removal(editor="magic"))
    assert error(answer) == (422, "invalid_request")
    assert answer.json()["details"]["field"] == "editor"


def test_older_clients_send_the_mask_as_the_first_conditional_image(gateway: Served) -> None:
    body = removal(conditional_images=[f"data:image/png;base64,{encoded('coffee_mask')}"])
    body["mask_image"] = None
    used = gateway.http.post("/api/generate", json=body).json()["parameters_used"]
    assert used["task_type"] == "removal"


def test_the_variant_follows_from_the_images_that_were_sent(gateway: Served) -> None:
    body = {"prompt": "balance it", "input_image": encoded("coffee")}
    used = gateway.http.post("/api/generate", json=body).json()["parameters_used"]
    assert used["task_type"] == "white_balance"
    assert 0 <= used["seed"] < 2**53
    body |= {"mask_image": encoded("coffee_mask"), "reference_image": encoded("chelsea")}
    used = gateway.http.post("/api/generate", json=body).json()["parameters_used"]
    assert used["task_type"] == "insertion"


def test_enable_debug_returns_the_conditions_and_writes_a_session(gateway: Served) -> None:
    answer = gateway.http.post("/api/generate", json=removal(enable_debug=True)).json()
    assert len(answer["debug_info"]["conditional_images"]) >= 1
    sessions = gateway.http.get("/api/debug/sessions").json()
    session = next(entry for entry in sessions if entry["name"].endswith(answer["request_id"][:8]))
    files = {"input_image.png", "mask_image.png", "image-0.png", "conditions-0.png"}
    assert files <= set(session["files"])
    url = f"/api/debug/sessions/{session['name']}"
    parameters = gateway.http.get(url).json()["parameters"]
    assert parameters["parameters"]["seed"] == 7 and parameters["seconds"]["running"] > 0
    image = gateway.http.get(f"{url}/images/image-0.png")
    assert image.headers["content-type"] == "image/png"
    assert image.content == base64.b64decode(answer["image"])
    archive = gateway.http.get(f"{url}/download").content
    assert len(zipfile.ZipFile(io.BytesIO(archive)).namelist()) == len(session["files"])


def test_the_same_images_are_uploaded_to_comfyui_once(fake: FakeHost, quick: Served) -> None:
    before = len(fake.fake.uploads)
    quick.http.post("/api/generate", json=removal(seed=1))
    quick.http.post("/api/generate", json=removal(seed=2))
    assert len(fake.fake.uploads) == before + 2
    body = json.dumps(fake.fake.posted[-1])
    assert encoded("coffee")[:100] not in body
    assert re.search(r"artmancer/[0-9a-f]{64}\.png \[temp\]", body)


def test_images_that_comfyui_lost_are_uploaded_again(fake: FakeHost, quick: Served) -> None:
    quick.http.post("/api/generate", json=removal())
    fake.fake.temp.clear()
    assert quick.http.post("/api/generate", json=removal()).status_code == 200


def test_every_parameter_reaches_the_graph(fake: FakeHost, quick: Served) -> None:
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
        recipe="image_edges",
        frame="photo",
        condition_size=0.5,
        context=2,
        resolution="768",
        fill_holes=True,
        widen=True,
        regions="apart",
        match_grain=True,
    )
    assert quick.http.post("/api/generate", json=body).status_code == 200
    graph = fake.fake.posted[-1]["prompt"]
    values = {
        node["inputs"]["name"]: node["inputs"].get("value", node["inputs"].get("image"))
        for node in graph.values()
        if node["class_type"].startswith("ArtMancer_Endpoint")
        and node["class_type"] != "ArtMancer_EndpointResult"
    }
    assert values["prompt"] == "take it away" and values["negative_prompt"] == "no"
    assert (values["num_inference_steps"], values["true_cfg_scale"], values["seed"]) == (3, 2.5, 5)
    assert (values["width"], values["height"], values["max_megapixels"]) == (512, 256, 1.0)
    assert values["grow_mask"] == 0 and values["brush_mask"] is True
    assert (values["recipe"], values["frame"], values["context"]) == ("image_edges", "photo", 2)
    assert (values["condition_size"], values["condition_megapixels"]) == ("megapixels", 0.5)
    assert (values["resolution"], values["fill_holes"], values["widen"]) == ("768", True, True)
    assert values["regions"] == "apart"
    assert values["match_grain"] is True
    assert values["extra_1"].startswith("artmancer/") and values["extra_2"] == "(none)"


def test_what_is_not_sent_follows_the_recipe(fake: FakeHost, quick: Served) -> None:
    assert quick.http.post("/api/generate", json=removal(condition_size="crop")).status_code == 200
    nodes = fake.fake.posted[-1]["prompt"].values()
    values = {
        node["inputs"]["name"]: node["inputs"]["value"]
        for node in nodes
        if node["class_type"].startswith("ArtMancer_Endpoint") and "value" in node["inputs"]
    }
    assert (values["num_inference_steps"], values["true_cfg_scale"]) == (0, 0)
    assert (values["recipe"], values["frame"], values["context"]) == ("auto", "auto", 1.5)
    assert (values["condition_size"], values["brush_mask"]) == ("crop", False)
    assert values["match_grain"] is False


def test_the_answer_tells_what_was_used_and_what_the_recipe_says(gateway: Served) -> None:
    body = removal(recipe="background_mask_fill", frame="crop", prompt="", num_inference_steps=3)
    answer = gateway.http.post("/api/generate", json=body).json()
    used = answer["parameters_used"]
    own = used["recipe_settings"]
    assert used["recipe"] == answer["report"]["recipe"] and used["recipe_reason"]
    names = {"prompt", "num_inference_steps", "true_cfg_scale", "frame", "condition_size"}
    assert names <= used.keys() and names <= own.keys()


@pytest.mark.comfyui
def test_a_real_comfyui_follows_the_requested_recipe(comfyui: Any, tmp_path: Path) -> None:
    with Served(settings(tmp_path, comfyui_url=comfyui.url)) as served:
        served.connected()
        body = removal(
            recipe="background_mask_fill", frame="crop", prompt="", num_inference_steps=3
        )
        answer = served.http.post("/api/generate", json=body | {"enable_debug": True}).json()
    used, own = answer["parameters_used"], answer["parameters_used"]["recipe_settings"]
    assert (used["recipe"], used["recipe_reason"]) == ("background_mask_fill", "asked")
    assert answer["debug_info"]["conditional_labels"] == ["background", "mask", "fill"]
    assert (used["prompt"], own["prompt"]) == ("remove object", "remove object")
    assert (used["num_inference_steps"], own["num_inference_steps"]) == (3, 10)
    assert (used["frame"], own["frame"]) == ("crop", "photo")
    assert (used["condition_size"], used["true_cfg_scale"]) == (1.0, 4.0)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"task_type": "white-balance", "mask_image": None}, 200),
        ({"task_type": "removal"}, 200),
        ({"task_type": "removal", "recipe": "background_mask_fill"}, 200),
        ({"task_type": "removal", "recipe": "mask_background_object"}, 422),
        ({"task_type": "insertion"}, 422),
    ],
)
def test_an_edit_that_needs_words_is_refused_without(
    fake: FakeHost, quick: Served, body: dict[str, Any], status: int
) -> None:
    answer = quick.http.post("/api/generate", json=removal(prompt="", **body))
    assert answer.status_code == status
    if status == 422:
        assert answer.json()["details"]["field"] == "prompt"


def test_the_first_scale_that_is_present_is_the_cfg_scale(gateway: Served) -> None:
    body = removal(true_cfg_scale=3, guidance_scale=5)
    used = gateway.http.post("/api/generate", json=body).json()["parameters_used"]
    assert used["true_cfg_scale"] == 3


def test_a_job_is_accepted_and_has_a_status_and_a_result(gateway: Served) -> None:
    job_id = gateway.submit(seed=21)
    assert gateway.ended(job_id)["progress"] == 1
    assert gateway.http.get(f"/api/generate/status/{job_id}").json()["status"] == "done"
    result = gateway.http.get(f"/api/generate/result/{job_id}").json()
    assert result["status"] == "done" and result["request_id"] == job_id
    image = gateway.http.get(f"/api/generate/result-image/{job_id}")
    assert image.content == base64.b64decode(result["image"])
    assert image.headers["content-type"] == "image/png"
    assert int(image.headers["content-length"]) == len(image.content) and image.headers["etag"]


def test_the_stream_can_be_split_without_a_parser(gateway: Served) -> None:
    job_id = gateway.submit(seed=22)
    with gateway.http.stream("GET", f"/api/generate/stream/{job_id}") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        raw = b"".join(stream.iter_raw())
    assert b"\r" not in raw and raw.endswith(b"\n\n")
    blocks = raw.removesuffix(b"\n\n").split(b"\n\n")
    assert all(block.startswith(b"data: {") and b"\n" not in block for block in blocks)
    events = [json.loads(block.removeprefix(b"data: ")) for block in blocks]
    fields = {
        *("task_id", "status", "progress", "current_step", "total_steps"),
        *("loading_message", "error", "queue_position"),
    }
    assert all(fields <= set(event) and event["error"] is None for event in events)
    assert [event["progress"] for event in events] == sorted(event["progress"] for event in events)
    assert "result" not in events[0] or len(events) == 1
    assert events[-1]["status"] == "done"
    assert events[-1]["debug_info"]["output_image_size"] == "600x400"
    assert decoded(events[-1]["result"]).size == (600, 400)


def test_a_stream_begins_with_the_current_status_and_repeats_it(
    fake: FakeHost, quick: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("artmancer.gateway.routes.answers.HEARTBEAT", 0.05)
    running = quick.submit(prompt="hold", seed=1)
    until(lambda: quick.status(running)["status"] == "processing")
    waiting = quick.submit(prompt="now", seed=2)
    events: list[dict[str, Any]] = []
    with quick.http.stream("GET", f"/api/generate/stream/{waiting}") as stream:
        for line in stream.iter_lines():
            if line:
                events.append(json.loads(line.removeprefix("data: ")))
            if len(events) == 5:
                fake.release()
    assert events[0]["status"] == "queued" and events[0]["queue_position"] == 1
    assert all(event["status"] == "queued" for event in events[:5])
    assert events[-1]["status"] == "done"


def test_the_status_counts_the_steps(fake: FakeHost, quick: Served) -> None:
    job_id = quick.submit(prompt="hold")
    until(lambda: quick.status(job_id)["current_step"] == HELD_STEPS)
    status = quick.status(job_id)
    assert status["status"] == "processing" and status["total_steps"] == 10
    assert 0 < status["progress"] < 1
    assert status["loading_message"] == "sampling" and status["queue_position"] is None


def test_a_job_of_another_route_has_its_result_there_only(fake: FakeHost, quick: Served) -> None:
    body = {"prompt": "x", "input_image": encoded("coffee")}
    job_id = quick.http.post("/api/workflows/generate/async", json=body).json()["task_id"]
    assert quick.ended(job_id)["status"] == "done"
    assert error(quick.http.get(f"/api/generate/result/{job_id}")) == (404, "not_found")
    assert quick.http.get(f"/api/jobs/{job_id}/result").status_code == 200


def test_a_job_that_is_not_finished_has_no_result(fake: FakeHost, quick: Served) -> None:
    job_id = quick.submit(prompt="hold")
    assert error(quick.http.get(f"/api/generate/result/{job_id}")) == (409, "not_finished")
    assert error(quick.http.get(f"/api/generate/result-image/{job_id}")) == (409, "not_finished")


def test_the_error_of_a_job_is_kept(fake: FakeHost, quick: Served) -> None:
    job_id = quick.submit(prompt="fail mask_empty")
    status = quick.ended(job_id)
    assert status["status"] == "error"
    assert status["error"].startswith("The prompt requested a failure")
    assert error(quick.http.get(f"/api/generate/result/{job_id}")) == (400, "mask_empty")
    with quick.http.stream("GET", f"/api/generate/stream/{job_id}") as stream:
        assert json.loads(stream.read().decode()[6:])["error"] == status["error"]


def test_cancel_ends_a_job_in_every_state(fake: FakeHost, quick: Served) -> None:
    running = quick.submit(prompt="hold", seed=1)
    until(lambda: quick.status(running)["status"] == "processing")
    waiting = [quick.submit(prompt="hold", seed=seed) for seed in range(2, 7)]
    for job_id in [*reversed(waiting), running]:
        url = f"/api/generate/async/cancel/{job_id}"
        answer = quick.http.post(url).json()
        assert answer["success"] is True and answer["task_id"] == job_id
        assert quick.status(job_id)["status"] == "cancelled"
        assert quick.http.post(url).json()["success"] is True
    assert quick.ended(quick.submit(seed=9))["status"] == "done"
    assert error(quick.http.get(f"/api/generate/result/{running}")) == (409, "not_finished")
    assert not fake.fake.waiting


def test_a_job_that_is_cancelled_before_comfyui_has_accepted_it_does_not_run(
    fake: FakeHost, quick: Served
) -> None:
    arrived = fake.fake.arrived
    fake.loop.call_soon_threadsafe(fake.fake.accepting.clear)
    try:
        job_id = quick.submit(prompt="hold")
        until(lambda: fake.fake.arrived > arrived)
        quick.http.post(f"/api/generate/async/cancel/{job_id}")
    finally:
        fake.loop.call_soon_threadsafe(fake.fake.accepting.set)
    assert quick.ended(quick.submit(seed=9))["status"] == "done"
    assert quick.status(job_id)["status"] == "cancelled"
    assert not fake.fake.waiting and fake.fake.running is None


def test_cancelling_a_finished_job_changes_nothing(gateway: Served) -> None:
    job_id = gateway.submit(seed=30)
    gateway.ended(job_id)
    assert gateway.http.post(f"/api/generate/async/cancel/{job_id}").json()["success"] is False
    assert gateway.status(job_id)["status"] == "done"


@pytest.mark.comfyui
def test_cancel_reaches_a_real_comfyui(comfyui: Any, tmp_path: Path) -> None:
    with Served(settings(tmp_path, comfyui_url=comfyui.url)) as served:
        served.connected()
        job_ids = [served.submit(seed=seed) for seed in range(100, 104)]
        for job_id in job_ids:
            served.http.post(f"/api/generate/async/cancel/{job_id}")
        assert served.ended(served.submit(seed=110))["status"] == "done"
        queue = comfyui.get("/queue")
        assert not queue["queue_running"] and not queue["queue_pending"]


def test_clients_take_turns(fake: FakeHost, tmp_path: Path) -> None:
    from artmancer.gateway.fair_queue import FairQueue
    from artmancer.gateway.job_store import LocalJob
    from artmancer.gateway.jobs import JobRecord

    queue = FairQueue()
    for number, client in enumerate("aaaabbc"):
        record = JobRecord(str(number), "w", "heavy", client, {}, [], {}, {}, 0.0)
        queue.put(LocalJob(record=record, graph={}, number=number))
    assert [job.number for job in queue] == [0, 4, 6, 1, 5, 2, 3]
    assert "".join(queue.take().record.client for _ in range(7)) == "abcabaa"


def test_the_error_of_a_full_queue_has_a_time_to_retry(fake: FakeHost, tmp_path: Path) -> None:
    with Served(settings(tmp_path, comfyui_url=fake.url, max_per_client=2)) as served:
        served.connected()
        job_ids = [served.submit(prompt="hold", seed=seed) for seed in range(2)]
        answer = served.http.post("/api/generate/async", json=removal())
        assert error(answer) == (429, "queue_full") and int(answer.headers["retry-after"]) > 0
        for job_id in job_ids:
            served.http.post(f"/api/generate/async/cancel/{job_id}")
        assert served.ended(served.submit())["status"] == "done"


def test_a_click_runs_before_queued_edits(fake: FakeHost, quick: Served) -> None:
    running = quick.submit(prompt="hold", seed=0)
    until(lambda: quick.status(running)["status"] == "processing")
    edits = [quick.submit(prompt="now", seed=seed) for seed in range(1, 5)]
    until(lambda: len(fake.fake.waiting) == IN_FLIGHT - 1)
    with ThreadPoolExecutor() as pool:
        body = {"image": encoded("coffee")}
        click = pool.submit(quick.http.post, "/api/smart-mask", json=body)
        until(lambda: len(fake.fake.waiting) == IN_FLIGHT)
        fake.release()
        assert click.result().status_code == 200
    for edit in edits:
        quick.ended(edit)
    click_id = click.result().json()["request_id"]
    order = [job_id for job_id in fake.fake.history if job_id in (running, click_id, *edits)]
    assert order == [running, click_id, *edits]


def test_a_click_does_not_wait_for_edits_in_another_comfyui(fake: FakeHost, tmp_path: Path) -> None:
    light_host = FakeHost()
    both_hosts = settings(tmp_path, comfyui_url=fake.url, comfyui_light_url=light_host.url)
    with Served(both_hosts) as served:
        served.connected()
        until(lambda: served.http.get("/api/system/health").json()["status"] == "healthy")
        edit = served.submit(prompt="hold")
        until(lambda: served.status(edit)["status"] == "processing")
        answer = served.http.post("/api/smart-mask", json={"image": encoded("coffee")})
        assert answer.status_code == 200
        assert served.status(edit)["status"] == "processing"
    light_host.die()


def test_health_lists_the_model_sets_and_which_are_complete(
    with_sets: tuple[FakeHost, Served],
) -> None:
    _, served = with_sets
    info = served.http.get("/api/health").json()["device_info"]
    assert info["editors"] == ["auto", "draft", "lama", "qwen", "fp8", "q4"]
    assert [(entry["name"], entry["complete"]) for entry in info["model_sets"]] == [
        ("fp8", True),
        ("q4", False),
    ]
    assert "a.gguf" in info["model_sets"][1]["reason"]


def test_a_model_set_reaches_load_editor_and_nothing_else(
    with_sets: tuple[FakeHost, Served],
) -> None:
    fake, served = with_sets
    assert served.http.post("/api/generate", json=removal(editor="fp8")).status_code == 200
    graph = fake.fake.posted[-1]["prompt"]
    (choice,) = [key for key, node in graph.items() if node["inputs"].get("value") == "fp8"]
    reached = [
        (node["class_type"], name)
        for node in graph.values()
        for name, value in node["inputs"].items()
        if value == [choice, 0]
    ]
    assert reached == [("ArtMancer_LoadEditor", "editor")]


@pytest.mark.parametrize(
    "name", ["q8", "../q4", "/etc/passwd", "fp8.json", "(model sets)", "FP8", "fp8\n"]
)
@pytest.mark.parametrize("path", ["generate", "workflows/generate"])
def test_an_unknown_model_set_is_refused_with_the_list(
    with_sets: tuple[FakeHost, Served], path: str, name: str
) -> None:
    fake, served = with_sets
    before = fake.fake.arrived
    answer = served.http.post(f"/api/{path}", json=removal(editor=name))
    assert error(answer) == (422, "invalid_request")
    details = answer.json()["details"]
    assert details["field"] == "editor"
    assert details["expected"] == "expected one of auto, draft, lama, qwen, fp8, q4"
    assert fake.fake.arrived == before


@pytest.mark.parametrize(
    ("output_format", "quality"),
    [("png", None), ("webp", None), ("webp", 40), ("jpeg", None), ("jpeg", 30)],
)
def test_the_result_comes_in_the_format_of_the_request(
    gateway: Served, output_format: str, quality: int | None
) -> None:
    plain = decoded(gateway.http.post("/api/generate", json=removal()).json()["image"])
    body = removal(output_format=output_format, output_quality=quality)
    answer = gateway.http.post("/api/generate", json=body).json()
    image = decoded(answer["image"])
    assert (image.format, image.size) == (output_format.upper(), plain.size)
    assert answer["parameters_used"]["output_format"] == output_format
    assert answer["parameters_used"]["ignored"] == []
    job_id = answer["request_id"]
    file = gateway.http.get(f"/api/generate/result-image/{job_id}")
    assert file.headers["content-type"] == f"image/{output_format}"
    assert base64.b64decode(answer["image"]) == file.content
    assert gateway.http.get(f"/api/generate/result/{job_id}").json()["image"] == answer["image"]
    events = gateway.http.get(f"/api/generate/stream/{job_id}").text
    assert json.loads(events.rpartition("data: ")[2])["result"] == answer["image"]
    if output_format == "png" or (output_format, quality) == ("webp", None):
        assert image.convert("RGB").tobytes() == plain.convert("RGB").tobytes()


def test_a_lower_quality_is_a_smaller_file_and_png_ignores_it(quick: Served) -> None:
    def size(**more: Any) -> int:
        answer = quick.http.post("/api/generate", json=removal(**more)).json()
        return len(answer["image"])

    for output_format in ("webp", "jpeg"):
        sizes = [size(output_format=output_format, output_quality=q) for q in (10, 60, 100)]
        assert sizes == sorted(sizes) and sizes[0] < sizes[2] / 2
    answer = quick.http.post("/api/generate", json=removal(output_quality=50))
    assert answer.json()["parameters_used"]["ignored"] == ["output_quality"]
    assert "output_quality" in answer.headers["Warning"]


@pytest.mark.parametrize("field", [{"output_format": "gif"}, {"output_quality": 0}])
def test_a_format_or_quality_out_of_range_is_refused(quick: Served, field: dict[str, Any]) -> None:
    answer = quick.http.post("/api/generate", json=removal(**field))
    assert error(answer) == (422, "invalid_request")
    assert answer.json()["details"]["field"] in field
