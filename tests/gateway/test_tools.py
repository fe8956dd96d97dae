"""/api/smart-mask and /api/image-utils: masks and tools."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from support.gateway import FakeHost, Served, encoded, error, picture, until
from support.paths import EXAMPLES


def test_welcome(gateway: Served) -> None:
    assert set(gateway.http.get("/api/").json()) == {"message", "version"}


def test_a_click_gives_a_mask_and_the_picture_need_not_be_sent_again(gateway: Served) -> None:
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
    assert gateway.http.post("/api/smart-mask", json=again).json()["image_id"] == said["image_id"]


def test_the_main_object_is_detected(gateway: Served) -> None:
    said = gateway.http.post("/api/smart-mask/detect", json={"image": encoded("coffee")}).json()
    assert picture(said["mask_base64"]).size == (600, 400)


def test_a_click_can_be_cancelled(fake: FakeHost, quick: Served) -> None:
    quick.submit(prompt="hold")
    request_id = "0f7dd1f6-5b5e-4d8b-8f4e-2f0a8a1f7a11"
    body = {"image": encoded("coffee"), "request_id": request_id}
    with ThreadPoolExecutor() as pool:
        click = pool.submit(quick.http.post, "/api/smart-mask", json=body)
        url = f"/api/smart-mask/cancel/{request_id}"
        until(lambda: quick.http.post(url).status_code == 200)
        assert error(click.result()) == (409, "not_finished")


def test_a_picture_that_is_gone_has_to_be_sent_again(gateway: Served) -> None:
    for name in (
        "0" * 64 + ".png",
        "../jobs.sqlite",
        "..%2fjobs.sqlite",
        "x\0y",
        "/etc/passwd",
    ):
        answer = gateway.http.post("/api/smart-mask", json={"image_id": name})
        assert error(answer) == (404, "not_found")


def test_an_object_is_extracted(gateway: Served) -> None:
    body = {"image": encoded("coffee"), "mask": encoded("coffee_mask")}
    said = gateway.http.post("/api/image-utils/extract-object", json=body).json()
    assert said["success"] and picture(said["extracted_image"])


def test_a_shadow_is_previewed(gateway: Served) -> None:
    body = {
        "extracted_image": encoded("coffee"),
        "mask": encoded("coffee_mask"),
        "shadow_opacity": 0.3,
    }
    said = gateway.http.post("/api/image-utils/add-shadow-preview", json=body).json()
    assert said["success"] and picture(said["preview_image"]).size == (600, 400)


@pytest.mark.parametrize("method", ["auto", "manual", "ai"])
def test_the_white_balance_is_corrected(gateway: Served, method: str) -> None:
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


def test_the_cache_is_cleared(gateway: Served) -> None:
    said = gateway.http.post("/api/clear-cache").json()
    assert said["success"] is True and said["freed_bytes"] >= 0
