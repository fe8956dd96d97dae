"""Token, origins, roles, health, metrics, logs and debug sessions."""

import io
import re
import socket
import zipfile
from pathlib import Path

import httpx
import pytest
from support.gateway import FakeHost, Served, encoded, error, removal, settings, until
from support.paths import EXAMPLES


def test_every_route_except_ping_and_the_page_requires_the_token(
    fake: FakeHost, tmp_path: Path
) -> None:
    with Served(settings(tmp_path, comfyui_url=fake.url, api_token="s3cret")) as served:
        assert served.http.get("/ping").status_code == 200
        for path in (
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


def test_only_pages_of_allowed_origins_may_call_the_gateway(quick: Served) -> None:
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
    assert error(answer) == (401, "unauthorized")
    assert "access-control-allow-origin" not in answer.headers


def test_a_private_network_preflight_of_an_allowed_origin_is_granted(quick: Served) -> None:
    for origin, status in (("http://localhost:3000", 200), ("http://evil.example", 400)):
        headers = {
            "origin": origin,
            "access-control-request-method": "POST",
            "access-control-request-private-network": "true",
        }
        answer = quick.http.options("/api/generate", headers=headers)
        assert answer.status_code == status
        assert (answer.headers.get("access-control-allow-origin") == origin) == (status == 200)
        if status == 200:
            assert answer.headers["access-control-allow-private-network"] == "true"


def test_head_is_answered_wherever_get_is(gateway: Served) -> None:
    job_id = gateway.submit(seed=41)
    gateway.ended(job_id)
    for path in (
        *("/", "/ping", "/api/", "/api/health", "/openapi.json", "/docs", "/page/job.js"),
        f"/api/generate/status/{job_id}",
        f"/api/generate/result-image/{job_id}",
        "/api/generate/status/unknown",
    ):
        head, get = gateway.http.head(path), gateway.http.get(path)
        assert head.status_code == get.status_code, path
        assert head.headers["content-type"] == get.headers["content-type"], path
        assert head.content == b""
    assert gateway.http.head("/api/generate").status_code == 405
    # A stream without an end is answered at once, too.
    running = gateway.submit(prompt="hold")
    head = gateway.http.head(f"/api/generate/stream/{running}")
    assert head.headers["content-type"].startswith("text/event-stream")
    gateway.http.post(f"/api/generate/async/cancel/{running}")


@pytest.mark.parametrize("name", ["Host", "Authorization", "Origin", "Content-Length"])
def test_a_header_that_comes_twice_is_refused(fake: FakeHost, tmp_path: Path, name: str) -> None:
    """Expect that no proxy checks one of two Host headers while the gateway reads the other."""
    with Served(settings(tmp_path, comfyui_url=fake.url, api_token="x")) as served:
        first, second = {
            "Host": ("127.0.0.1", "evil.example"),
            "Authorization": ("Bearer y", "Bearer x"),
            "Origin": ("http://localhost:3000", "http://evil.example"),
            "Content-Length": ("2", "3"),
        }[name]
        headers = {"Host": "127.0.0.1", "Authorization": "Bearer x"}
        headers.pop(name, None)
        lines = [f"{key}: {value}" for key, value in headers.items()]
        lines += [f"{name}: {first}", f"{name}: {second}", "Connection: close"]
        port = int(served.url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            request = "\r\n".join(["GET /api/health HTTP/1.1", *lines, "", ""])
            connection.sendall(request.encode())
            answer = connection.makefile("rb").readline().decode()
        assert answer.split()[1] in ("400", "422"), answer


def test_a_gateway_serves_only_the_routes_of_its_role(fake: FakeHost, tmp_path: Path) -> None:
    with Served(settings(tmp_path / "a", comfyui_url=fake.url, role="light")) as served:
        served.connected()
        assert served.http.post("/api/generate", json=removal()).status_code in (404, 405)
        answer = served.http.post("/api/smart-mask", json={"image": encoded("coffee")})
        assert answer.status_code == 200
        workflows = {
            workflow["name"]: workflow
            for workflow in served.http.get("/api/workflows").json()["workflows"]
        }
        assert not workflows["generate"]["served"] and workflows["smart-mask"]["served"]
    with Served(settings(tmp_path / "b", comfyui_url=fake.url, role="heavy")) as served:
        served.connected()
        assert served.http.post("/api/smart-mask", json={}).status_code in (404, 405)
        assert served.http.post("/api/generate", json=removal()).status_code == 200


def test_white_balance_by_the_model_also_works_with_the_light_role(
    fake: FakeHost, tmp_path: Path
) -> None:
    with Served(settings(tmp_path, comfyui_url=fake.url, role="light")) as served:
        served.connected()
        file = {"file": ("coffee.png", (EXAMPLES / "coffee.png").read_bytes(), "image/png")}
        answer = served.http.post(
            "/api/image-utils/white-balance", files=file, data={"method": "ai"}
        )
        assert answer.json()["method_used"] == "ai"


def test_health_reports_the_device_and_missing_checkpoints(gateway: Served) -> None:
    until(lambda: gateway.http.get("/api/health").json()["device_info"]["queue_length"] == 0)
    health = gateway.http.get("/api/health").json()
    assert health["status"] == "healthy" and health["device"] == "cpu"
    assert health["model_loaded"] is False
    info = health["device_info"]
    assert info["comfyui_version"] and info["memory_total"]
    assert info["editors"] == ["auto", "draft", "lama", "qwen"]
    assert info["model_sets"] == []
    assert info["lama"] is False
    assert set(info["missing"]) == {"insertion", "removal", "white_balance"}
    services = gateway.http.get("/api/system/health").json()["services"]
    assert {name: service["status"] for name, service in services.items()} == {
        "generation": "healthy",
        "segmentation": "healthy",
        "image-utils": "healthy",
        "image_utils": "healthy",
    }


def test_metrics_count_jobs_and_times(gateway: Served) -> None:
    gateway.http.post("/api/generate", json=removal())
    text = gateway.http.get("/metrics").text
    assert re.search(r'artmancer_jobs_total{state="done",workflow="generate"} [1-9]', text)
    assert 'artmancer_host_up{lane="heavy"} 1.0' in text and "artmancer_job_seconds_bucket" in text


def test_the_log_contains_no_images_and_no_prompts(
    fake: FakeHost, quick: Served, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    quick.http.post("/api/generate", json=removal(prompt="a secret wish"))
    assert "job accepted" in caplog.text
    assert "secret wish" not in caplog.text and encoded("coffee")[:40] not in caplog.text


def test_debug_sessions_are_off_by_default(quick: Served) -> None:
    assert quick.http.get("/api/debug/status").json() == {
        "enabled": False,
        "sessions": 0,
        "bytes": 0,
    }
    assert error(quick.http.get("/api/debug/sessions")) == (404, "not_found")


def test_a_debug_session_contains_the_images_of_the_request_and_no_other_files(
    fake: FakeHost, tmp_path: Path
) -> None:
    (tmp_path / "secret.png").write_bytes(b"secret")
    with Served(settings(tmp_path / "data", comfyui_url=fake.url, debug=True)) as served:
        served.connected().http.post(
            "/api/generate",
            json=removal(enable_debug=True, prompt=str(tmp_path / "secret.png")),
        )
        served.http.post("/api/generate", json=removal(enable_debug=True, prompt="x" * 4000))
        sessions = served.http.get("/api/debug/sessions").json()
        assert len(sessions) == 2
        files = [file for session in sessions for file in session["files"]]
        assert not any("prompt" in file for file in files)


def test_debug_sessions_serve_no_files_outside_their_folder(fake: FakeHost, tmp_path: Path) -> None:
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
        sessions = served.http.get("/api/debug/sessions").json()
        assert [entry["name"] for entry in sessions] == [session.name]
        assert served.http.post("/api/debug/cleanup?keep_last_n=0").json()["removed"] == 1
        assert (tmp_path / "secret.png").is_file() and served.http.get(url).status_code == 404
