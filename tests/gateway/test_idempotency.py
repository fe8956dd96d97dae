"""Requests with an Idempotency-Key: however often one comes, it makes one job."""

import base64
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.gateway import FakeHost, Served, encoded, error, removal, settings

from artmancer.gateway import local_jobs
from artmancer.gateway.jobs import CLAIM_SECONDS


def send(
    served: Served, key: str, route: str = "/api/generate/async", **more: Any
) -> httpx.Response:
    headers = {"Idempotency-Key": key}
    return served.http.post(route, json=removal(**more), headers=headers)


def test_the_same_request_gets_the_same_job_and_another_one_a_conflict(gateway: Served) -> None:
    key = f"key-{id(gateway)}"
    first = send(gateway, key, prompt="remove it")
    assert first.status_code == 202
    assert send(gateway, key, prompt="remove it").json() == first.json()
    assert error(send(gateway, key, prompt="another")) == (409, "idempotency_conflict")
    answer = send(gateway, key, "/api/generate", prompt="remove it")
    assert error(answer) == (409, "idempotency_conflict")
    other = send(gateway, f"{key}-b", prompt="remove it")
    assert other.json()["task_id"] != first.json()["task_id"]
    assert gateway.ended(first.json()["task_id"])["status"] == "done"


def test_a_blocking_request_that_is_sent_again_gets_the_result(gateway: Served) -> None:
    key = f"blocking-{id(gateway)}"
    first, second = (send(gateway, key, "/api/generate", seed=None).json() for _ in range(2))
    assert first == second and first["success"]


def test_requests_at_the_same_time_make_one_job(gateway: Served) -> None:
    def one(index: int) -> str:
        return str(send(gateway, f"at once {id(gateway)}", seed=3).json()["task_id"])

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(one, range(8)))) == 1


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("/api/smart-mask", {"image": encoded("coffee"), "points": [[300, 200]]}),
        ("/api/smart-mask/detect", {"image": encoded("coffee")}),
        ("/api/image-utils/remove-background", {"image": encoded("coffee")}),
        (
            "/api/image-utils/extract-object",
            {"image": encoded("coffee"), "mask": encoded("coffee_mask")},
        ),
        ("/api/image-utils/add-shadow-preview", {"extracted_image": encoded("coffee")}),
        ("/api/workflows/white-balance", {"image": encoded("coffee")}),
        ("/api/workflows/white-balance/async", {"image": encoded("coffee")}),
    ],
)
def test_every_route_that_makes_a_job_takes_a_key(
    quick: Served, route: str, body: dict[str, Any]
) -> None:
    answers = [
        quick.http.post(route, json=body, headers={"Idempotency-Key": "k"}) for _ in range(2)
    ]
    assert answers[0].status_code < 300, answers[0].text
    assert answers[0].json() == answers[1].json()
    if route.endswith("/async"):
        quick.ended(answers[0].json()["task_id"])
    assert len(list((quick.settings.data / "results").iterdir())) == 1
    other = quick.http.post(route, json={**body, "seed": 9}, headers={"Idempotency-Key": "k"})
    expected = (422, "invalid_request") if "workflows" in route else (409, "idempotency_conflict")
    assert error(other) == expected


def test_a_form_is_compared_by_its_fields(quick: Served) -> None:
    def send_form(file: bytes) -> httpx.Response:
        return quick.http.post(
            "/api/image-utils/white-balance",
            files={"file": ("photo.png", file)},
            data={"method": "manual", "tint": "5"},
            headers={"Idempotency-Key": "form"},
        )

    first, second = (send_form(base64.b64decode(encoded("coffee"))) for _ in range(2))
    assert first.json()["success"] and first.json() == second.json()
    assert error(send_form(base64.b64decode(encoded("coffee_mask")))) == (
        409,
        "idempotency_conflict",
    )


def test_a_key_outlives_a_restart_and_ends_after_a_day(
    fake: FakeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = settings(tmp_path / "data", comfyui_url=fake.url)
    with Served(own) as served:
        first = send(served.connected(), "k").json()["task_id"]
    with Served(own) as served:
        served.connected()
        assert send(served, "k").json()["task_id"] == first
        assert error(send(served, "k", seed=8)) == (409, "idempotency_conflict")
        monkeypatch.setattr(local_jobs, "CLAIM_SECONDS", -1.0)
        assert send(served, "k", seed=8).json()["task_id"] != first
    assert CLAIM_SECONDS == 24 * 3600


def test_a_refused_request_leaves_its_key_free(quick: Served) -> None:
    assert error(send(quick, "k", input_image="no image")) == (400, "invalid_image")
    assert send(quick, "k").status_code == 202


def test_a_full_queue_does_not_refuse_a_request_that_was_accepted(
    fake: FakeHost, tmp_path: Path
) -> None:
    own = settings(tmp_path / "data", comfyui_url=fake.url, max_waiting=1)
    with Served(own) as served:
        first = send(served.connected(), "k", prompt="hold").json()["task_id"]
        assert error(send(served, "other")) == (429, "queue_full")
        assert send(served, "k", prompt="hold").json()["task_id"] == first


@pytest.mark.parametrize("key", ["", "x" * 256])
def test_a_key_has_a_length(quick: Served, key: str) -> None:
    answer = send(quick, key)
    assert error(answer) == (422, "invalid_request")
    assert answer.json()["details"]["field"] == "Idempotency-Key"
