"""Error answers: each code of the table, seen by a client."""

import base64
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import ExifTags, Image
from support.gateway import (
    WAIT_TIMEOUT,
    FakeHost,
    Served,
    encoded,
    error,
    free_port,
    removal,
    settings,
)

from artmancer.errors import CODES


def test_a_value_outside_its_range_is_named(gateway: Served) -> None:
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


def test_what_was_expected_and_what_came_is_told_to_programs(quick: Served) -> None:
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


def test_names_nobody_knows_are_told_again_in_part(quick: Served) -> None:
    body = removal(**{"x" * 5000: 1, **{f"y{n}": 1 for n in range(100)}})
    ignored = quick.http.post("/api/generate", json=body).json()["parameters_used"]["ignored"]
    assert len(ignored) == 50 and max(map(len, ignored)) == 80


def test_a_missing_field_is_named(gateway: Served) -> None:
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
def test_a_body_that_is_no_request(gateway: Served, body: bytes) -> None:
    for path in ("/api/generate", "/api/smart-mask", "/api/workflows/white-balance"):
        answer = gateway.http.post(path, content=body, headers={"content-type": "application/json"})
        assert error(answer) == (422, "invalid_request")


def test_where_no_body_came_it_says_what_should(gateway: Served) -> None:
    answer = gateway.http.post("/api/generate")
    assert error(answer) == (422, "invalid_request")
    assert "the body: expected a JSON object; got nothing" in answer.json()["detail"]


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None]
)
def test_json_routes_want_json(gateway: Served, kind: str | None) -> None:
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
def test_what_is_no_picture(gateway: Served, text: str) -> None:
    answer = gateway.http.post("/api/generate", json=removal(input_image=text))
    assert error(answer) == (400, "invalid_image")


@pytest.mark.parametrize("kind", ["I;16", "P", "LA", "RGBA", "CMYK", "1", "turned", "1x1", "GIF"])
def test_pictures_of_every_kind_are_read(gateway: Served, kind: str) -> None:
    size, exif = ((1, 1) if kind == "1x1" else (60, 40)), Image.Exif()
    mode = kind if kind in ("I;16", "P", "LA", "RGBA", "CMYK", "1") else "RGB"
    if kind == "turned":
        exif[ExifTags.Base.Orientation] = 6
    saved = io.BytesIO()
    format = "GIF" if kind == "GIF" else "JPEG" if kind in ("CMYK", "turned") else "PNG"
    Image.new(mode, size, 7 if mode in ("I;16", "P", "1") else None).save(saved, format, exif=exif)
    body = {"prompt": "balance", "input_image": base64.b64encode(saved.getvalue()).decode()}
    said = gateway.http.post("/api/generate", json=body).json()
    assert said["debug_info"]["input_image_size"] == (
        "40x60" if kind == "turned" else f"{size[0]}x{size[1]}"
    )


def test_a_bomb_is_not_unpacked(gateway: Served) -> None:
    saved = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(saved, "PNG")
    body = {"prompt": "balance", "input_image": base64.b64encode(saved.getvalue()).decode()}
    assert error(gateway.http.post("/api/generate", json=body)) == (413, "image_too_large")


def test_a_picture_that_is_too_large(gateway: Served) -> None:
    buffer = io.BytesIO()
    Image.new("1", (16385, 10)).save(buffer, "PNG")
    body = removal(input_image=base64.b64encode(buffer.getvalue()).decode())
    assert error(gateway.http.post("/api/generate", json=body)) == (413, "image_too_large")


def test_a_body_that_is_too_large_is_refused_while_it_comes(gateway: Served) -> None:
    def endless() -> Iterator[bytes]:
        yield b'{"prompt": "'
        for _ in range(60):
            yield b"x" * 2**20

    headers = {"content-type": "application/json"}
    answer = gateway.http.post("/api/generate", content=endless(), headers=headers)
    assert error(answer) == (413, "image_too_large")
    answer = gateway.http.post("/api/generate", content=b"x" * (40 * 2**20 + 1), headers=headers)
    assert error(answer) == (413, "image_too_large")


def test_a_body_that_does_not_come(
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


def test_a_body_that_comes_drop_by_drop(
    fake: FakeHost, quick: Served, monkeypatch: pytest.MonkeyPatch
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


def test_no_mask(gateway: Served) -> None:
    body = removal(task_type="removal")
    del body["mask_image"]
    for path in ("/api/generate", "/api/generate/async"):
        assert error(gateway.http.post(path, json=body)) == (400, "mask_missing")


@pytest.mark.comfyui
def test_what_a_real_run_refuses(comfyui: Any, tmp_path: Path) -> None:
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
def test_every_code_of_a_run_comes_through(fake: FakeHost, quick: Served, code: str) -> None:
    answer = quick.http.post("/api/generate", json=removal(prompt=f"fail {code}"))
    assert error(answer) == (CODES[code].status, code)


def test_a_bug_in_the_gateway_is_counted_and_readable_for_an_allowed_page(
    fake: FakeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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


def test_a_bug_in_a_node_is_no_secret_and_no_stack_trace(fake: FakeHost, quick: Served) -> None:
    answer = quick.http.post("/api/generate", json=removal(prompt="crash"))
    assert error(answer) == (500, "generation_failed")
    assert "failed: It was asked to fail, in fake_comfyui.py" in answer.json()["detail"]


def test_without_comfyui(tmp_path: Path) -> None:
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


def test_a_job_that_takes_too_long(fake: FakeHost, tmp_path: Path) -> None:
    with Served(settings(tmp_path, comfyui_url=fake.url, heavy_timeout=1)) as served:
        served.connected()
        answer = served.http.post("/api/generate", json=removal(prompt="hold"))
        assert error(answer) == (504, "timeout")
        job_id = served.submit(prompt="hold")
        assert served.ended(job_id)["status"] == "error"
        assert error(served.http.get(f"/api/generate/result/{job_id}")) == (504, "timeout")
        served.app.state.gateway.jobs.lanes["heavy"].timeout = WAIT_TIMEOUT
        assert served.ended(served.submit())["status"] == "done"


def test_unknown_ids_and_routes(gateway: Served) -> None:
    for path in ("status/x", "result/x", "result-image/x", "stream/x"):
        assert error(gateway.http.get(f"/api/generate/{path}")) == (404, "not_found")
    assert error(gateway.http.post("/api/generate/async/cancel/x")) == (404, "not_found")
    assert error(gateway.http.get("/api/nothing")) == (404, "not_found")
    assert gateway.http.get("/api/generate").status_code == 405
