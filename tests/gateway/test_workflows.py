"""/api/workflows: any graph as an endpoint, and the graphs that are not served."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.gateway import GRAPHS, FakeHost, Served, encoded, error, picture, settings


def test_every_graph_has_its_schema(gateway: Served) -> None:
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


def test_a_workflow_runs_under_its_name(gateway: Served) -> None:
    body = {"image": encoded("coffee"), "temperature": 30}
    said = gateway.http.post("/api/workflows/white-balance", json=body).json()
    assert picture(said["outputs"]["image"]).size == (600, 400)
    task = gateway.http.post("/api/workflows/white-balance/async", json=body).json()["task_id"]
    assert gateway.ended(task)["status"] == "done"
    assert gateway.http.get(f"/api/jobs/{task}/result").json()["outputs"] == said["outputs"]
    with gateway.http.stream("GET", f"/api/jobs/{task}/stream") as stream:
        assert json.loads(stream.read().decode()[6:])["outputs"] == said["outputs"]
    assert gateway.http.post(f"/api/jobs/{task}/cancel").json()["success"] is False


def test_a_graph_dropped_into_the_folder_is_served_at_once(fake: FakeHost, tmp_path: Path) -> None:
    folder = tmp_path / "graphs"
    shutil.copytree(GRAPHS, folder)
    with Served(settings(tmp_path / "data", comfyui_url=fake.url, workflows=folder)) as served:
        served.connected()
        assert error(served.http.post("/api/workflows/warm", json={})) == (404, "not_found")
        text = (GRAPHS / "white-balance.json").read_text().replace('"temperature"', '"warmth"', 1)
        (folder / "warm.json").write_text(text)
        found = {one["name"]: one for one in served.http.get("/api/workflows").json()["workflows"]}
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
    fake: FakeHost, tmp_path: Path, spoil: Any, why: str
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


def test_a_graph_nested_deep_is_no_bug(fake: FakeHost, tmp_path: Path) -> None:
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
            served.http.post("/api/workflows/deep", json={"image": encoded("coffee")}).status_code
            == 200
        )


def test_a_picture_that_lay_in_the_graph_is_nobody_elses(fake: FakeHost, quick: Served) -> None:
    workflow = quick.app.state.gateway.workflows.get("generate")
    workflow.graph["2"]["inputs"]["image"] = "family.png"
    quick.http.post("/api/generate", json={"prompt": "x", "input_image": encoded("coffee")})
    assert fake.fake.posted[-1]["prompt"]["2"]["inputs"]["image"] == "(none)"


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "null", '{"1": 5}', "[" * 100_000, '{"nodes": [], "links": []}']
)
def test_what_is_no_graph_is_listed_with_the_reason(
    tmp_path: Path, fake: FakeHost, text: str
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
def test_a_name_leads_nowhere_else(gateway: Served, name: str) -> None:
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
