"""Error answers to a client: every error code, and requests that are refused."""

import base64
import gzip
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import ExifTags, Image
from support.gateway import (
    GRAPHS,
    WAIT_TIMEOUT,
    FakeHost,
    Served,
    encoded,
    error,
    free_port,
    removal,
    settings,
)
from support.paths import EXAMPLES

from artmancer.errors import CODES


def test_a_field_with_a_value_outside_its_range_is_named(gateway: Served) -> None:
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
        assert details["field"] == next(iter(change)) and details["expected"] and "got" in details


def test_the_details_have_the_expected_and_the_received_value(quick: Served) -> None:
    image = encoded("coffee")
    for path, body, field in (
        ("/api/smart-mask", {"points": [[1, 2]]}, "image"),
        ("/api/smart-mask", {"image": image, "request_id": "x"}, "request_id"),
        ("/api/image-utils/remove-background", {"image": image, "model": "mine"}, "model"),
    ):
        answer = quick.http.post(path, json=body)
        assert error(answer) == (422, "invalid_request")
        details = answer.json()["details"]
        assert details["field"] == field and details["expected"] and details["got"]


def test_the_list_of_unknown_fields_is_limited(quick: Served) -> None:
    body = removal(**{"x" * 5000: 1, **{f"y{n}": 1 for n in range(100)}})
    ignored = quick.http.post("/api/generate", json=body).json()["parameters_used"]["ignored"]
    assert len(ignored) == 50 and max(map(len, ignored)) == 80


def test_fields_without_effect_are_named_at_once(gateway: Served) -> None:
    body = removal(sed=1, webhook="x", angle=3, **{"öl\n": 1})
    accepted = gateway.http.post("/api/generate/async", json=body)
    assert accepted.status_code == 202
    assert accepted.json()["ignored"] == ["angle", "sed", "webhook", "öl\n"]
    answer = gateway.http.post("/api/generate", json=body)
    for response in (accepted, answer):
        warning = response.headers["warning"]
        assert warning.startswith('299 - "without effect: angle, sed, webhook, ')
    assert "warning" not in gateway.http.post("/api/generate", json=removal()).headers


def test_unknown_fields_of_masks_and_tools_are_named(quick: Served) -> None:
    image, mask = encoded("coffee"), encoded("coffee_mask")
    for path, body in (
        ("smart-mask", {"image": image}),
        ("smart-mask/detect", {"image": image}),
        ("image-utils/remove-background", {"image": image}),
        ("image-utils/extract-object", {"image": image, "mask": mask}),
        ("image-utils/add-shadow-preview", {"extracted_image": image}),
    ):
        answer = quick.http.post(f"/api/{path}", json={**body, "webhook": "x", "öl\n": 1})
        assert answer.status_code == 200, answer.text
        assert answer.headers["warning"] == r'299 - "without effect: webhook, ?xf6l?"', path
        assert "warning" not in quick.http.post(f"/api/{path}", json=body).headers


def test_unknown_fields_of_a_form_are_named(quick: Served) -> None:
    file = {"file": ("coffee.png", (EXAMPLES / "coffee.png").read_bytes(), "image/png")}
    for form, warning in (
        ({"tint": "5", "tin": "5", "webhook": "x"}, '299 - "without effect: tin, webhook"'),
        ({"method": "manual"}, None),
    ):
        answer = quick.http.post("/api/image-utils/white-balance", files=file, data=form)
        assert answer.status_code == 200, answer.text
        assert answer.headers.get("warning") == warning


def test_an_unknown_field_of_a_workflow_is_refused_by_its_name(quick: Served) -> None:
    for path in ("white-balance", "white-balance/async"):
        body = {"image": encoded("coffee"), "webhook": "x"}
        answer = quick.http.post(f"/api/workflows/{path}", json=body)
        assert error(answer) == (422, "invalid_request")
        assert answer.json()["detail"] == "webhook: expected no field of this name; got 'x'."


def test_a_warning_about_many_fields_fits_into_a_header_that_proxies_take(quick: Served) -> None:
    body = removal(**{f"{'ö' * 70}{n}": 1 for n in range(60)})
    answer = quick.http.post("/api/generate/async", json=body)
    # nginx takes 4 KiB of headers by default.
    assert 500 < len(answer.headers["warning"]) < 2000
    assert len(answer.json()["ignored"]) == 50


def test_a_missing_field_is_named(gateway: Served) -> None:
    answer = gateway.http.post("/api/generate", json={"prompt": "x"})
    assert error(answer) == (422, "invalid_request")
    assert answer.json()["details"]["field"] == "input_image"


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
def test_a_body_that_is_no_json_object_is_refused(gateway: Served, body: bytes) -> None:
    for path in ("/api/generate", "/api/smart-mask", "/api/workflows/white-balance"):
        answer = gateway.http.post(path, content=body, headers={"content-type": "application/json"})
        assert error(answer) == (422, "invalid_request")


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"", "There is no body; expected a JSON object."),
        (b'{"prompt": "x', "The body is not JSON: it ends too early."),
        (b'\xef\xbb\xbf{"prompt": 1}', "The body is not JSON: it begins with a byte order mark."),
        ('{"prompt": 1}'.encode("utf-16"), "The body is not JSON: it is in UTF-16."),
        ('{"prompt": 1}'.encode("utf-16-le"), "The body is not JSON: it is in UTF-16."),
        (gzip.compress(b"{}", mtime=0), "The body is not JSON: it is compressed with gzip."),
        (b'{"image": "\\ud800"}', "The body is not JSON: a character in it is not valid."),
        (b'{"image": "\xe4"}', "The body is not JSON: a character in it is not valid."),
        (b'{"image" 1}', "The body is not JSON: there is a mistake in line 1, column 10."),
        (b"[1]", "body: expected a JSON object; got [1]."),
        (b"{}", "The field 'IMAGE' is missing. Send it."),
    ],
)
def test_what_is_wrong_with_a_body_is_said_in_a_sentence(
    gateway: Served, body: bytes, sentence: str
) -> None:
    paths = {"/api/image-utils/remove-background": "image", "/api/workflows/white-balance": "image"}
    for path, field in paths.items():
        answer = gateway.http.post(path, content=body, headers={"content-type": "application/json"})
        assert error(answer) == (422, "invalid_request")
        assert answer.json()["detail"].startswith(sentence.replace("IMAGE", field)), path
        named = field if "missing" in sentence else "body"
        assert answer.json()["details"]["field"] == named


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"width": 1}, "width: expected a number of at least 256; got 1."),
        ({"width": 300.5}, "width: expected a whole number; got 300.5."),
        ({"seed": "x"}, "seed: expected a whole number; got 'x'."),
        ({"prompt": "x" * 5000}, "prompt: expected at most 4,000 characters; got a text of 5,000 "),
        ({"prompt": None}, "prompt: expected a text; got None."),
        ({"enable_debug": "maybe"}, "enable_debug: expected true or false; got 'maybe'."),
        ({"mask_tool_type": "x"}, "mask_tool_type: expected 'brush' or 'box'; got 'x'."),
        ({"conditional_images": ["x"] * 5}, "conditional_images: expected at most 4 items; got ["),
    ],
)
def test_a_wrong_value_is_said_in_a_sentence(
    gateway: Served, change: dict[str, Any], sentence: str
) -> None:
    answer = gateway.http.post("/api/generate", json=removal(**change))
    assert error(answer) == (422, "invalid_request")
    assert answer.json()["detail"].startswith(sentence)


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None]
)
def test_json_routes_refuse_other_content_types(gateway: Served, kind: str | None) -> None:
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
def test_a_text_that_is_no_image_is_refused(gateway: Served, text: str) -> None:
    answer = gateway.http.post("/api/generate", json=removal(input_image=text))
    assert error(answer) == (400, "invalid_image")


@pytest.mark.parametrize("kind", ["I;16", "P", "LA", "RGBA", "CMYK", "1", "turned", "1x1", "GIF"])
def test_images_of_every_kind_are_read(gateway: Served, kind: str) -> None:
    width, height = (1, 1) if kind == "1x1" else (60, 40)
    mode = kind if kind in ("I;16", "P", "LA", "RGBA", "CMYK", "1") else "RGB"
    color = 7 if mode in ("I;16", "P", "1") else None
    exif = Image.Exif()
    if kind == "turned":
        exif[ExifTags.Base.Orientation] = 6
    file = io.BytesIO()
    format = "GIF" if kind == "GIF" else "JPEG" if kind in ("CMYK", "turned") else "PNG"
    Image.new(mode, (width, height), color).save(file, format, exif=exif)
    body = {"prompt": "balance", "input_image": base64.b64encode(file.getvalue()).decode()}
    result = gateway.http.post("/api/generate", json=body).json()
    expected_size = f"{height}x{width}" if kind == "turned" else f"{width}x{height}"
    assert result["debug_info"]["input_image_size"] == expected_size


@pytest.mark.slow
def test_a_decompression_bomb_is_not_decoded(gateway: Served) -> None:
    file = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(file, "PNG")
    body = {"prompt": "balance", "input_image": base64.b64encode(file.getvalue()).decode()}
    assert error(gateway.http.post("/api/generate", json=body)) == (413, "image_too_large")


def test_an_image_that_is_too_large_is_refused(gateway: Served) -> None:
    file = io.BytesIO()
    Image.new("1", (16385, 10)).save(file, "PNG")
    body = removal(input_image=base64.b64encode(file.getvalue()).decode())
    assert error(gateway.http.post("/api/generate", json=body)) == (413, "image_too_large")


def test_a_body_that_is_too_large_is_refused_while_it_arrives(gateway: Served) -> None:
    def endless() -> Iterator[bytes]:
        yield b'{"prompt": "'
        for _ in range(60):
            yield b"x" * 2**20

    headers = {"content-type": "application/json"}
    answer = gateway.http.post("/api/generate", content=endless(), headers=headers)
    assert error(answer) == (413, "image_too_large")
    answer = gateway.http.post("/api/generate", content=b"x" * (40 * 2**20 + 1), headers=headers)
    assert error(answer) == (413, "image_too_large")


def test_a_body_with_a_long_pause_times_out(
    fake: FakeHost, quick: Served, monkeypatch: pytest.MonkeyPatch
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


def test_a_body_that_arrives_too_slowly_times_out(
    fake: FakeHost, quick: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("artmancer.gateway.middleware.BODY_TIMEOUT", 0.5)

    def spaces() -> Iterator[bytes]:
        for _ in range(40):
            yield b" "
            time.sleep(0.05)

    headers = {"content-type": "application/json"}
    answer = quick.http.post("/api/generate", content=spaces(), headers=headers)
    assert error(answer) == (504, "timeout")


def test_an_edit_that_needs_a_mask_is_refused_without_it(gateway: Served) -> None:
    body = removal(task_type="removal")
    del body["mask_image"]
    for path in ("/api/generate", "/api/generate/async"):
        assert error(gateway.http.post(path, json=body)) == (400, "mask_missing")


@pytest.mark.comfyui
def test_a_real_comfyuis_errors_have_their_codes(comfyui: Any, tmp_path: Path) -> None:
    empty_mask = io.BytesIO()
    Image.new("L", (600, 400)).save(empty_mask, "PNG")
    small_mask = io.BytesIO()
    Image.new("L", (60, 40), 255).save(small_mask, "PNG")
    with Served(settings(tmp_path, comfyui_url=comfyui.url)) as served:
        served.connected()
        for change, expected in (
            (
                {"mask_image": base64.b64encode(empty_mask.getvalue()).decode()},
                (400, "mask_empty"),
            ),
            (
                {"mask_image": base64.b64encode(small_mask.getvalue()).decode()},
                (422, "invalid_request"),
            ),
            ({"task_type": "insertion"}, (400, "reference_missing")),
            # The image has its whole header, but not all of its pixels.
            ({"input_image": encoded("coffee")[:4000]}, (400, "invalid_image")),
        ):
            assert error(served.http.post("/api/generate", json=removal(**change))) == expected
        body = {"image": encoded("coffee"), "model_type": "fastsam"}
        answer = served.http.post("/api/smart-mask", json=body)
        assert error(answer) == (503, "checkpoint_missing")
        body = {"image": encoded("coffee"), "model": "u2net"}
        answer = served.http.post("/api/image-utils/remove-background", json=body)
        assert error(answer) == (503, "checkpoint_missing")
        assert str(comfyui.base) not in answer.text


@pytest.mark.comfyui
def test_a_mistake_of_the_graph_is_not_called_the_callers(comfyui: Any, tmp_path: Path) -> None:
    folder = tmp_path / "graphs"
    folder.mkdir()
    graph = json.loads((GRAPHS / "white-balance.json").read_text())
    image = next(key for key, node in graph.items() if node["class_type"].endswith("EndpointImage"))
    scale = {"image": [image, 0], "upscale_method": "area", "width": -5, "height": 8}
    graph["98"] = {"class_type": "ImageScale", "inputs": {**scale, "crop": "disabled"}}
    graph["99"] = {
        "class_type": "ArtMancer_EndpointResult",
        "inputs": {"name": "small", "help": "", "value": ["98", 0]},
    }
    (folder / "small.json").write_text(json.dumps(graph))
    graph_settings = settings(tmp_path / "data", comfyui_url=comfyui.url, workflows=folder)
    with Served(graph_settings) as served:
        body = {"image": encoded("coffee")}
        answer = served.connected().http.post("/api/workflows/small", json=body)
        assert error(answer) == (500, "generation_failed")
        assert "node 98, ImageScale" in answer.json()["detail"]


@pytest.mark.parametrize(
    "code", [code for code in CODES if code not in ("unauthorized", "queue_full")]
)
def test_every_error_code_of_a_run_reaches_the_client(
    fake: FakeHost, quick: Served, code: str
) -> None:
    answer = quick.http.post("/api/generate", json=removal(prompt=f"fail {code}"))
    assert error(answer) == (CODES[code].status, code)


def test_a_bug_in_the_gateway_is_counted_and_readable_for_an_allowed_page(
    fake: FakeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Served(settings(tmp_path, comfyui_url=fake.url)) as served:
        served.connected()
        # The route draws a seed up to it.
        monkeypatch.setattr("artmancer.gateway.edit_request.MAX_SEED", None)
        answer = served.http.post(
            "/api/generate",
            json=removal(seed=None),
            headers={"origin": "http://localhost:3000"},
        )
        assert error(answer) == (500, "generation_failed")
        assert "its log" in answer.json()["detail"].lower()
        assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"
        assert 'route="/api/generate",status="500"' in served.http.get("/metrics").text


def test_a_bug_in_a_node_is_reported_without_a_stack_trace(fake: FakeHost, quick: Served) -> None:
    answer = quick.http.post("/api/generate", json=removal(prompt="crash"))
    assert error(answer) == (500, "generation_failed")
    assert "failed: The prompt requested a failure, in fake_comfyui.py" in answer.json()["detail"]


def test_a_gateway_without_comfyui_reports_it(tmp_path: Path) -> None:
    with Served(settings(tmp_path, comfyui_url=f"http://127.0.0.1:{free_port()}")) as served:
        assert served.http.get("/ping").json() == {"status": "healthy"}
        health = served.http.get("/api/health")
        assert health.status_code == 200
        assert health.json()["status"] == "degraded" and "ComfyUI" in health.json()["reason"]
        assert served.http.get("/api/system/health").json()["status"] == "degraded"
        for answer in (
            served.http.post("/api/generate", json=removal()),
            served.http.post("/api/clear-cache"),
        ):
            assert error(answer) == (503, "comfyui_unavailable")


@pytest.mark.slow
def test_a_job_ends_at_its_timeout(fake: FakeHost, tmp_path: Path) -> None:
    with Served(settings(tmp_path, comfyui_url=fake.url, heavy_timeout=1)) as served:
        served.connected()
        answer = served.http.post("/api/generate", json=removal(prompt="hold"))
        assert error(answer) == (504, "timeout")
        job_id = served.submit(prompt="hold")
        assert served.ended(job_id)["status"] == "error"
        assert error(served.http.get(f"/api/generate/result/{job_id}")) == (504, "timeout")
        served.app.state.gateway.jobs.lanes["heavy"].timeout = WAIT_TIMEOUT
        assert served.ended(served.submit())["status"] == "done"


def test_unknown_ids_and_routes_are_not_found(gateway: Served) -> None:
    for path in ("status/x", "result/x", "result-image/x", "stream/x"):
        assert error(gateway.http.get(f"/api/generate/{path}")) == (404, "not_found")
    assert error(gateway.http.post("/api/generate/async/cancel/x")) == (404, "not_found")
    assert error(gateway.http.get("/api/nothing")) == (404, "not_found")
    assert gateway.http.get("/api/generate").status_code == 405
