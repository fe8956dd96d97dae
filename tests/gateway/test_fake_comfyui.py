"""The fake ComfyUI of these tests answers as a real one does."""

import json
import uuid
from typing import Any

import httpx
import pytest
from support.gateway import GRAPHS, FakeHost
from support.paths import EXAMPLES


def shapes(run: Any) -> list[tuple[str, tuple[str, ...]]]:
    """The kinds of a run's messages and their fields, each once, in order of appearance."""
    seen = [
        (event["type"], tuple(sorted(event["data"])))
        for event in run.events
        if event["type"] != "progress_state"
    ]
    return list(dict.fromkeys(seen))


@pytest.mark.comfyui
def test_the_fake_says_what_a_real_one_says(comfyui: Any) -> None:
    host = FakeHost()
    fake = object.__new__(type(comfyui))
    fake.url = host.url
    graph = json.loads((GRAPHS / "white-balance.json").read_text())
    runs = []
    for server in (comfyui, fake):
        with httpx.Client(base_url=server.url, trust_env=False) as http:
            file = {"image": ("a.png", (EXAMPLES / "coffee.png").read_bytes(), "image/png")}
            said = http.post(
                "/upload/image", files=file, data={"type": "temp", "subfolder": "artmancer"}
            ).json()
            assert said == {"name": "a.png", "subfolder": "artmancer", "type": "temp"}
            graph["1"]["inputs"]["image"] = "artmancer/a.png [temp]"
            for node in graph.values():
                if node["class_type"] == "ArtMancer_EndpointResult":
                    node["inputs"]["folder"] = "temp"
            runs.append(server.run(graph))
            graph["1"]["inputs"]["image"] = "artmancer/none.png [temp]"
            refused = http.post(
                "/prompt", json={"prompt": graph, "prompt_id": str(uuid.uuid4()), "client_id": "x"}
            )
            assert refused.status_code == 400
            runs.append(refused.json()["node_errors"]["1"]["errors"][0]["details"])
            runs.append(sorted(http.get("/queue").json()))
    assert runs[1] == runs[4] and runs[2] == runs[5]
    assert set(shapes(runs[3])) <= set(shapes(runs[0]))
    [real], [faked] = ([*run.outputs.values()] for run in (runs[0], runs[3]))
    assert set(real["images"][0]) == set(faked["images"][0])
    host.die()
