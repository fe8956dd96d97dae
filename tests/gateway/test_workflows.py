"""/api/workflows: graphs as endpoints, and graphs that are not served."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.gateway import GRAPHS, FakeHost, Served, decoded, encoded, error, settings


def listed(served: Served) -> dict[str, dict[str, Any]]:
    """Return the gateway's list of workflows, by name."""
    workflows = served.http.get("/api/workflows").json()["workflows"]
    return {workflow["name"]: workflow for workflow in workflows}


def test_every_graph_has_its_schema(gateway: Served) -> None:
    workflows = listed(gateway)
    assert set(workflows) == {path.stem for path in GRAPHS.glob("*.json")}
    assert all(workflow["served"] for workflow in workflows.values()), workflows
    schema = workflows["generate"]["schema"]
    steps = schema["properties"]["num_inference_steps"]
    assert (steps["type"], steps["default"]) == ("integer", 0), "0: the recipe's"
    assert (steps["minimum"], steps["maximum"]) == (0, 100)
    assert steps["description"]
    assert schema["required"] == ["input_image"]


def test_a_workflow_runs_under_its_name(gateway: Served) -> None:
    body = {"image": encoded("coffee"), "temperature": 30}
    outputs = gateway.http.post("/api/workflows/white-balance", json=body).json()["outputs"]
    assert decoded(outputs["image"]).size == (600, 400)
    job_id = gateway.http.post("/api/workflows/white-balance/async", json=body).json()["task_id"]
    assert gateway.ended(job_id)["status"] == "done"
    assert gateway.http.get(f"/api/jobs/{job_id}/result").json()["outputs"] == outputs
    with gateway.http.stream("GET", f"/api/jobs/{job_id}/stream") as stream:
        assert json.loads(stream.read().decode()[6:])["outputs"] == outputs
    assert gateway.http.post(f"/api/jobs/{job_id}/cancel").json()["success"] is False


def test_a_graph_that_is_added_to_the_folder_is_served_at_once(
    fake: FakeHost, tmp_path: Path
) -> None:
    folder = tmp_path / "graphs"
    shutil.copytree(GRAPHS, folder)
    with Served(settings(tmp_path / "data", comfyui_url=fake.url, workflows=folder)) as served:
        served.connected()
        assert error(served.http.post("/api/workflows/warm", json={})) == (404, "not_found")
        text = (GRAPHS / "white-balance.json").read_text().replace('"temperature"', '"warmth"', 1)
        (folder / "warm.json").write_text(text)
        assert listed(served)["warm"]["served"]
        document = served.http.get("/openapi.json").json()
        assert "/api/workflows/warm" in document["paths"]
        answer = served.http.post("/api/workflows/warm", json={"image": encoded("coffee")})
        assert answer.status_code == 200
        (folder / "warm.json").unlink()
        assert error(served.http.post("/api/workflows/warm", json={})) == (404, "not_found")


def test_the_openapi_document_describes_every_route_and_workflow_by_itself(
    fake: FakeHost, tmp_path: Path
) -> None:
    folder = tmp_path / "graphs"
    shutil.copytree(GRAPHS, folder)
    # Two names that generated clients would give one class; and inputs of their own.
    text = (GRAPHS / "white-balance.json").read_text()
    (folder / "a-b.json").write_text(text.replace('"temperature"', '"warmth"', 1))
    (folder / "a_b.json").write_text(text.replace('"temperature"', '"coolness"', 1))
    (folder / "generate_request.json").write_text(text)
    with Served(settings(tmp_path / "data", comfyui_url=fake.url, workflows=folder)) as served:
        document = served.connected().http.get("/openapi.json").json()
    components = document["components"]["schemas"]

    def body(path: str) -> dict[str, Any]:
        content = document["paths"][path]["post"]["requestBody"]["content"]
        reference = content["application/json"]["schema"]["$ref"]
        return dict(components[reference.rpartition("/")[2]]["properties"])

    # The limits of API.md's table; the workflow of the same name has others.
    assert {"input_image", "conditional_images", "enable_debug"} <= body("/api/generate").keys()
    width = next(kind for kind in body("/api/generate")["width"]["anyOf"] if "minimum" in kind)
    assert (width["minimum"], width["maximum"]) == (256, 2048)
    assert "max_megapixels" in body("/api/workflows/generate")
    assert {"image", "points", "bbox"} <= body("/api/smart-mask").keys()
    assert "warmth" in body("/api/workflows/a-b") and "coolness" in body("/api/workflows/a_b")
    folded = [name.lower() for name in components]
    assert len(set(folded)) == len(folded)
    references = set(re.findall(r'"#/components/schemas/([^"]*)"', json.dumps(document)))
    assert references <= components.keys()
    operations = [
        operation["operationId"]
        for methods in document["paths"].values()
        for operation in methods.values()
    ]
    assert len(set(operations)) == len(operations)
    assert {"post_generate", "get_generate_status_by_task_id"} <= set(operations)


def test_the_openapi_document_says_that_a_token_is_needed(fake: FakeHost, tmp_path: Path) -> None:
    for token, security in ((None, None), ("x", [{"token": []}])):
        more = {"api_token": token} if token else {}
        data = tmp_path / str(token)
        with Served(settings(data, comfyui_url=fake.url, **more)) as served:
            headers = {"Authorization": f"Bearer {token}"}
            document = served.http.get("/openapi.json", headers=headers).json()
        assert document["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
        assert document.get("security") == security
        assert document["paths"]["/ping"]["get"].get("security") == ([] if token else None)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda graph: graph["99"].update(inputs={"image": ["98", 0]}), "not there"),
        (lambda graph: graph["99"]["inputs"].update(image=["99", 0]), "form a cycle"),
        (lambda graph: graph["99"].update(class_type="NotInstalled"), "does not have"),
        (
            lambda graph: graph["99"].update(
                class_type="LoadImage", inputs={"image": "secret.png"}
            ),
            "Replace it",
        ),
        (
            lambda graph: graph["99"]["inputs"].update(upscale_method="../../etc/passwd"),
            "path on the host",
        ),
        (
            lambda graph: graph["99"]["inputs"].update(upscale_method="/etc/passwd"),
            "path on the host",
        ),
        (
            lambda graph: graph["99"]["inputs"].update(upscale_method=[{"a": "C:\\x"}]),
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
            "a caller's value",
        ),
        (
            lambda graph: [
                graph.pop(node_id)
                for node_id, node in list(graph.items())
                if "Result" in node["class_type"]
            ],
            "Result",
        ),
    ],
)
def test_a_graph_that_must_not_run_is_listed_with_the_reason(
    fake: FakeHost, tmp_path: Path, spoil: Any, reason: str
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
        workflow = listed(served)["bad"]
        assert workflow["served"] is False and reason in workflow["reason"]
        answer = served.http.post("/api/workflows/bad", json={"image": encoded("coffee")})
        assert error(answer) == (500, "generation_failed")


def test_a_deeply_nested_graph_is_served(fake: FakeHost, tmp_path: Path) -> None:
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
    folder = tmp_path / "graphs"
    with Served(settings(tmp_path / "data", comfyui_url=fake.url, workflows=folder)) as served:
        served.connected()
        answer = served.http.post("/api/workflows/deep", json={"image": encoded("coffee")})
        assert answer.status_code == 200


def test_a_file_that_the_graph_names_is_never_used(fake: FakeHost, quick: Served) -> None:
    workflow = quick.app.state.gateway.workflows.get("generate")
    workflow.graph["2"]["inputs"]["image"] = "family.png"
    quick.http.post("/api/generate", json={"prompt": "x", "input_image": encoded("coffee")})
    assert fake.fake.posted[-1]["prompt"]["2"]["inputs"]["image"] == "(none)"


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "null", '{"1": 5}', "[" * 100_000, '{"nodes": [], "links": []}']
)
def test_a_file_that_is_no_graph_is_listed_with_the_reason(
    tmp_path: Path, fake: FakeHost, text: str
) -> None:
    (tmp_path / "graphs").mkdir()
    (tmp_path / "graphs" / "bad.json").write_text(text)
    (tmp_path / "graphs" / "link.json").symlink_to(GRAPHS / "white-balance.json")
    folder = tmp_path / "graphs"
    with Served(settings(tmp_path / "data", comfyui_url=fake.url, workflows=folder)) as served:
        workflows = listed(served.connected())
        assert set(workflows) == {"bad"}
        assert not workflows["bad"]["served"] and workflows["bad"]["reason"]


@pytest.mark.parametrize(
    "name", ["..", "%2e%2e", "..%2f..%2fetc%2fpasswd", "a%00b", "generate.json", "GENERATE"]
)
def test_a_name_is_never_a_path(gateway: Served, name: str) -> None:
    assert gateway.http.post(f"/api/workflows/{name}", json={}).status_code in (404, 405)
    assert gateway.http.get(f"/api/debug/sessions/{name}").status_code == 404
    assert gateway.http.get(f"/api/debug/sessions/{name}/images/{name}").status_code == 404
    assert gateway.http.get(f"/api/jobs/{name}").status_code == 404
    assert gateway.http.get(f"/api/generate/result-image/{name}").status_code in (404, 405)


def _text(**more: Any) -> dict[str, Any]:
    """Return a text input; `more` are inputs that are added or replaced."""
    inputs = {
        "value": "x",
        "name": "words",
        "help": "",
        "max_length": 100,
        "required": False,
        **more,
    }
    return {"class_type": "ArtMancer_EndpointText", "inputs": inputs}


def _save(prefix: list[Any]) -> dict[str, Any]:
    """Return a node that saves an image; `prefix` is the output with its file name."""
    return {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": prefix}}
