"""/api/smart-mask and /api/image-utils: masks and tools."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from support.gateway import FakeHost, Served, decoded, encoded, error, until
from support.paths import EXAMPLES


def test_the_api_root_has_a_message_and_a_version(gateway: Served) -> None:
    assert set(gateway.http.get("/api/").json()) == {"message", "version"}


def test_a_click_returns_a_mask_and_an_id_instead_of_the_image_for_the_next(
    gateway: Served,
) -> None:
    body = {
        "image": encoded("coffee"),
        "points": [[300, 200]],
        "labels": [1],
        "model_type": "draft",
    }
    first = gateway.http.post("/api/smart-mask", json=body).json()
    assert first["success"] and decoded(first["mask_base64"]).size == (600, 400)
    assert first["candidates"] >= 1 and 0 <= first["score"] <= 1
    body |= {
        "image": None,
        "image_id": first["image_id"],
        "border_adjustment": 4,
        "use_blur": True,
    }
    second = gateway.http.post("/api/smart-mask", json=body).json()
    assert second["image_id"] == first["image_id"]


def test_the_main_object_is_detected(gateway: Served) -> None:
    answer = gateway.http.post("/api/smart-mask/detect", json={"image": encoded("coffee")}).json()
    assert decoded(answer["mask_base64"]).size == (600, 400)
    # Older clients read `mask`.
    assert answer["mask"] == answer["mask_base64"]


def test_birefnet_is_passed_on_and_the_answer_has_the_report(fake: FakeHost, quick: Served) -> None:
    body = {"image": encoded("coffee"), "points": [[300, 200]], "model_type": "birefnet"}
    answer = quick.http.post("/api/smart-mask", json=body).json()
    assert answer["report"] == {
        "model": "draft",
        "refined_by": None,
        "note": "It is not installed.",
    }
    (node,) = (
        node
        for node in fake.fake.posted[-1]["prompt"].values()
        if node["class_type"] == "ArtMancer_SmartMask"
    )
    source, _ = node["inputs"]["model"]
    assert fake.fake.posted[-1]["prompt"][source]["inputs"]["value"] == "birefnet"


def test_cancelling_an_unknown_request_is_no_error(gateway: Served) -> None:
    answer = gateway.http.post("/api/smart-mask/cancel/unknown")
    assert answer.status_code == 200
    assert answer.json()["success"] is False and answer.json()["request_id"] == "unknown"


def test_a_click_can_be_cancelled(fake: FakeHost, quick: Served) -> None:
    quick.submit(prompt="hold")
    request_id = "0f7dd1f6-5b5e-4d8b-8f4e-2f0a8a1f7a11"
    body = {"image": encoded("coffee"), "request_id": request_id}
    with ThreadPoolExecutor() as pool:
        click = pool.submit(quick.http.post, "/api/smart-mask", json=body)
        url = f"/api/smart-mask/cancel/{request_id}"
        until(lambda: quick.http.post(url).json()["success"])
        assert error(click.result()) == (409, "not_finished")


def test_an_unknown_image_id_is_not_found(gateway: Served) -> None:
    for name in (
        "0" * 64 + ".png",
        "../jobs.sqlite",
        "..%2fjobs.sqlite",
        "x\0y",
        "/etc/passwd",
    ):
        answer = gateway.http.post("/api/smart-mask", json={"image_id": name})
        assert error(answer) == (404, "not_found")
        assert answer.json()["detail"].startswith("Image ID not found or expired")


def test_an_object_is_extracted(gateway: Served) -> None:
    body = {"image": encoded("coffee"), "mask": encoded("coffee_mask")}
    answer = gateway.http.post("/api/image-utils/extract-object", json=body).json()
    assert answer["success"] and decoded(answer["extracted_image"])


def test_a_shadow_is_previewed(gateway: Served) -> None:
    body = {
        "extracted_image": encoded("coffee"),
        "mask": encoded("coffee_mask"),
        "shadow_opacity": 0.3,
    }
    answer = gateway.http.post("/api/image-utils/add-shadow-preview", json=body).json()
    assert answer["success"] and decoded(answer["preview_image"]).size == (600, 400)


@pytest.mark.parametrize("method", ["auto", "manual", "ai"])
def test_the_white_balance_is_corrected(gateway: Served, method: str) -> None:
    file = {"file": ("coffee.png", (EXAMPLES / "coffee.png").read_bytes(), "image/png")}
    form = {"method": method, "temperature": "20", "tint": "-5"}
    answer = gateway.http.post("/api/image-utils/white-balance", files=file, data=form).json()
    assert answer["success"] and answer["method_used"] == method
    assert answer["parameters"]["temperature"] == 20
    assert answer["original_image"] == encoded("coffee")
    assert decoded(answer["corrected_image"]).size == (600, 400)


def test_clearing_the_cache_reports_the_freed_memory(gateway: Served) -> None:
    answer = gateway.http.post("/api/clear-cache").json()
    assert answer["success"] is True and answer["freed_bytes"] >= 0
