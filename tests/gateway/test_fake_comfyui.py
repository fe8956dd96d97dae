"""The fake ComfyUI of these tests answers as a real ComfyUI does."""

import json
import uuid
from typing import Any

import httpx
import pytest
from support.gateway import GRAPHS, FakeHost
from support.paths import EXAMPLES


def event_types(run: Any) -> list[tuple[str, tuple[str, ...]]]:
    """Return the types of a run's events with their fields, each once, in order of appearance."""
    types = [
        (event["type"], tuple(sorted(event["data"])))
        for event in run.events
        if event["type"] != "progress_state"
    ]
    return list(dict.fromkeys(types))


@pytest.mark.comfyui
def test_the_fake_answers_as_a_real_comfyui(comfyui: Any) -> None:
    host = FakeHost()
    fake = object.__new__(type(comfyui))
    fake.url = host.url
    graph = json.loads((GRAPHS / "white-balance.json").read_text())
    runs = []
    refusals = []
    queues = []
    for server in (comfyui, fake):
        with httpx.Client(base_url=server.url, trust_env=False) as http:
            file = {"image": ("a.png", (EXAMPLES / "coffee.png").read_bytes(), "image/png")}
            form = {"type": "temp", "subfolder": "artmancer"}
            upload = http.post("/upload/image", files=file, data=form).json()
            assert upload == {"name": "a.png", "subfolder": "artmancer", "type": "temp"}
            graph["1"]["inputs"]["image"] = "artmancer/a.png [temp]"
            for node in graph.values():
                if node["class_type"] == "ArtMancer_EndpointResult":
                    node["inputs"]["folder"] = "temp"
            runs.append(server.run(graph))
            graph["1"]["inputs"]["image"] = "artmancer/none.png [temp]"
            body = {"prompt": graph, "prompt_id": str(uuid.uuid4()), "client_id": "x"}
            answer = http.post("/prompt", json=body)
            assert answer.status_code == 400
            refusals.append(answer.json()["node_errors"]["1"]["errors"][0]["details"])
            queues.append(sorted(http.get("/queue").json()))
    real_run, fake_run = runs
    assert refusals[0] == refusals[1]
    assert queues[0] == queues[1]
    assert set(event_types(fake_run)) <= set(event_types(real_run))
    [real_output], [fake_output] = ([*run.outputs.values()] for run in runs)
    assert set(real_output["images"][0]) == set(fake_output["images"][0])
    host.die()
