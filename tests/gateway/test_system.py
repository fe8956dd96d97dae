"""Token, origins, roles, health, metrics, logs and debug sessions."""

import io
import re
import zipfile
from pathlib import Path

import httpx
import pytest
from support.gateway import FakeHost, Served, encoded, error, removal, settings, until
from support.paths import EXAMPLES


def test_a_token_is_asked_for_everywhere_but_at_ping(fake: FakeHost, tmp_path: Path) -> None:
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


def test_only_allowed_origins_are_let_in(quick: Served) -> None:
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


def test_a_role_serves_its_part(fake: FakeHost, tmp_path: Path) -> None:
    with Served(settings(tmp_path / "a", comfyui_url=fake.url, role="light")) as served:
        served.connected()
        assert served.http.post("/api/generate", json=removal()).status_code in (404, 405)
        assert (
            served.http.post("/api/smart-mask", json={"image": encoded("coffee")}).status_code
            == 200
        )
        found = {one["name"]: one for one in served.http.get("/api/workflows").json()["workflows"]}
        assert not found["generate"]["served"] and found["smart-mask"]["served"]
    with Served(settings(tmp_path / "b", comfyui_url=fake.url, role="heavy")) as served:
        served.connected()
        assert served.http.post("/api/smart-mask", json={}).status_code in (404, 405)
        assert served.http.post("/api/generate", json=removal()).status_code == 200


def test_the_light_part_has_its_white_balance_by_model_made_where_edits_run(
    fake: FakeHost, tmp_path: Path
) -> None:
    with Served(settings(tmp_path, comfyui_url=fake.url, role="light")) as served:
        served.connected()
        file = {"file": ("coffee.png", (EXAMPLES / "coffee.png").read_bytes(), "image/png")}
        answer = served.http.post(
            "/api/image-utils/white-balance", files=file, data={"method": "ai"}
        )
        assert answer.json()["method_used"] == "ai"


def test_health_says_what_works(gateway: Served) -> None:
    until(lambda: gateway.http.get("/api/health").json()["device_info"]["queue_length"] == 0)
    said = gateway.http.get("/api/health").json()
    assert said["status"] == "healthy" and said["device"] == "cpu" and said["model_loaded"] is False
    about = said["device_info"]
    assert about["comfyui_version"] and about["memory_total"]
    assert set(about["missing"]) == {"insertion", "removal", "white_balance"}
    said = gateway.http.get("/api/system/health").json()
    assert {name: one["status"] for name, one in said["services"].items()} == {
        "generation": "healthy",
        "segmentation": "healthy",
        "image-utils": "healthy",
    }


def test_metrics_count(gateway: Served) -> None:
    gateway.http.post("/api/generate", json=removal())
    text = gateway.http.get("/metrics").text
    assert re.search(r'artmancer_jobs_total{state="done",workflow="generate"} [1-9]', text)
    assert 'artmancer_host_up{lane="heavy"} 1.0' in text and "artmancer_job_seconds_bucket" in text


def test_the_log_holds_no_pictures_and_no_prompts(
    fake: FakeHost, quick: Served, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    quick.http.post("/api/generate", json=removal(prompt="a secret wish"))
    assert "job accepted" in caplog.text
    assert "secret wish" not in caplog.text and encoded("coffee")[:40] not in caplog.text


def test_debug_sessions_are_off_unless_asked_for(quick: Served) -> None:
    assert quick.http.get("/api/debug/status").json() == {
        "enabled": False,
        "sessions": 0,
        "bytes": 0,
    }
    assert error(quick.http.get("/api/debug/sessions")) == (404, "not_found")


def test_a_debug_session_holds_pictures_that_were_sent_and_nothing_else(
    fake: FakeHost, tmp_path: Path
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


def test_debug_sessions_never_lead_outside(fake: FakeHost, tmp_path: Path) -> None:
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
        names = zipfile.ZipFile(io.BytesIO(served.http.get(f"{url}/download").content)).namelist()
        assert not any("link" in name for name in names)
        assert served.http.get("/api/debug/sessions/20260101-000000-00000000").status_code == 404
        assert [one["name"] for one in served.http.get("/api/debug/sessions").json()] == [
            session.name
        ]
        assert served.http.post("/api/debug/cleanup?keep_last_n=0").json()["removed"] == 1
        assert (tmp_path / "secret.png").is_file() and served.http.get(url).status_code == 404
