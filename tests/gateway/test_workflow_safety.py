"""Which graphs may be served to the public, for every node class of two releases of ComfyUI."""

import ast
import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
from support.gateway import GRAPHS, FakeHost, Served, encoded, error, settings
from support.paths import ASSETS

from artmancer.errors import ArtMancerError
from artmancer.folders import comfyui_folder
from artmancer.gateway.reviewed_nodes import FREE_NODES, RESTRICTED_NODES
from artmancer.gateway.runner import NodeInput, NodeType
from artmancer.gateway.workflow_safety import unsafe_reason
from artmancer.gateway.workflow_validity import invalid_reason
from artmancer.gateway.workflows import ENDPOINT_RESULT, Workflow, read_workflow

VERSIONS = ("0.3.64", "0.33.0")
"""Releases of ComfyUI whose node classes are recorded; see support/record_nodes.py."""

NOT_FOR_PHOTOS = {
    "nodes_camera_trajectory": "video",
    "nodes_gaussian_splat": "3D",
    "nodes_hunyuan3d": "3D",
    "nodes_load_3d": "3D",
    "nodes_mesh_postprocess": "3D",
    "nodes_save_3d": "3D",
    "nodes_trellis2": "3D",
    "nodes_triposplat": "3D",
    "nodes_train": "training",
    "nodes_void": "video; one of them downloads a model",
    "nodes_wanmove": "video",
}
"""Modules of comfy_extras of which no class is listed, and why."""

REFUSED = {
    "reads a file that its widget names": "LoadImage LoadImageMask LoadImageOutput LoadLatent "
    "LoadAudio LoadVideo Painter LoadImageDataSetFromFolder LoadImageTextDataSetFromFolder "
    "LoadVideoDataSetFromFolder LoadVideoTextDataSetFromFolder LoadTrainingDataset",
    "records the host's surroundings": "WebcamCapture RecordAudio",
    "fills the disk with models or datasets": "CheckpointSave CLIPSave VAESave ModelSave LoraSave "
    "ImageOnlyCheckpointSave SaveLatent SaveTrainingDataset SaveImageDataSetToFolder "
    "SaveImageTextDataSetToFolder",
    "writes a caller's text, or video, to a file": "SaveText SaveSVGNode SAM3_TrackPreview",
    "is for training": "MakeTrainingDataset",
}
"""Reasons why classes of the other modules are refused, with the classes' names."""

NAMES_OF_NO_FILE = {
    "sampler_name": "one of ComfyUI's samplers",
    "prefix": "a text that AddTextPrefix adds to another",
    "class_name": "what RTDETR_detect looks for",
}
"""Inputs of free nodes that sound like a file's name, and what they are."""


def recorded(version: str) -> dict[str, dict[str, Any]]:
    """Return the /object_info of a release of ComfyUI, without texts."""
    data = (ASSETS / f"nodes-{version}.json.gz").read_bytes()
    return dict(json.loads(gzip.decompress(data)))


def with_pack(version: str) -> dict[str, NodeType]:
    """Return the node classes of a release of ComfyUI and of this pack."""
    pack = json.loads((ASSETS / "object_info.json").read_text())
    return {name: NodeType.from_info(info) for name, info in {**recorded(version), **pack}.items()}


@pytest.fixture(scope="module", params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def nodes(version: str) -> dict[str, NodeType]:
    return with_pack(version)


def refusal(name: str, info: dict[str, Any]) -> str | None:
    """Return why a class is not listed; None: no reason is stated."""
    module = info["module"].rpartition(".")[2]
    if info["module"].startswith("comfy_api_nodes"):
        return "sends data to a paid service, or reads files for one"
    for reason, names in REFUSED.items():
        if name in names.split():
            return reason
    return NOT_FOR_PHOTOS.get(module)


def test_every_class_of_comfyui_is_listed_or_refused_for_a_reason(version: str) -> None:
    for name, info in recorded(version).items():
        listed = name in FREE_NODES or name in RESTRICTED_NODES
        assert listed == (refusal(name, info) is None), name
    assert not FREE_NODES & RESTRICTED_NODES.keys()


def test_every_listed_class_is_one_of_comfyui_or_of_the_pack() -> None:
    known = with_pack(VERSIONS[0]).keys() | with_pack(VERSIONS[1]).keys()
    assert known >= FREE_NODES | RESTRICTED_NODES.keys()


def test_no_listed_class_has_a_widget_for_a_file_a_camera_or_a_microphone(
    nodes: dict[str, NodeType],
) -> None:
    for name in (FREE_NODES | RESTRICTED_NODES.keys()) & nodes.keys():
        for node_input in nodes[name].inputs.values():
            assert not node_input.is_file and node_input.type not in ("WEBCAM", "AUDIO_RECORD"), (
                name
            )


def test_no_text_of_a_free_class_sounds_like_the_name_of_a_file(nodes: dict[str, NodeType]) -> None:
    for name in FREE_NODES & nodes.keys():
        for key, node_input in nodes[name].inputs.items():
            if node_input.type in ("STRING", "COMBO") and key not in NAMES_OF_NO_FILE:
                assert not re.search(r"path|file|folder|dir(_|$)|url|prefix|_name$", key), (
                    name,
                    key,
                )


TOUCHES_FILES = re.compile(
    r"folder_paths|\bopen\(|\bos\.(?!environ)|load_torch_file|save_torch_file|torch\.load|"
    r"get_save_image_path|requests\.|aiohttp|urllib|subprocess|VideoCapture|\beval\(|\bexec\("
)


@pytest.mark.comfyui
def test_the_source_of_no_free_class_touches_files() -> None:
    root = comfyui_folder()
    if not (root / "nodes.py").is_file():
        pytest.skip(f"no ComfyUI in {root}")
    read = set()
    for file in [root / "nodes.py", *(root / "comfy_extras").glob("nodes_*.py")]:
        text = file.read_text()
        tree = ast.parse(text)
        ids: dict[str, set[str]] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Dict):  # NODE_CLASS_MAPPINGS
                for key, value in zip(node.keys, node.values, strict=True):
                    if isinstance(key, ast.Constant) and isinstance(value, ast.Name):
                        ids.setdefault(value.id, set()).add(str(key.value))
        for node in tree.body:
            if not isinstance(node, ast.ClassDef):
                continue
            source = ast.get_source_segment(text, node) or ""
            names = ids.get(node.name, set()) | set(re.findall(r'node_id\s*=\s*"([^"]+)"', source))
            for name in names & FREE_NODES:
                read.add(name)
                assert not TOUCHES_FILES.search(source), name
    hooks = {name for name, info in recorded("0.33.0").items() if "hooks" in info["module"]}
    unread = FREE_NODES & recorded("0.33.0").keys() - read - hooks
    assert not unread, "each class of ComfyUI but the hooks, which build conditions, was read"


def graph_of(tmp_path: Path, *middle: dict[str, Any], **node: Any) -> Workflow:
    """Return a workflow: a caller's text goes through nodes to an input of another.

    Parameters
    ----------
    middle : nodes whose inputs named by None are linked to the one before
    node : class_type, and inputs in which None stands for the link
    """
    graph: dict[str, Any] = {
        "1": {
            "class_type": "ArtMancer_EndpointText",
            "inputs": {"name": "words", "value": "x", "help": "", "max_length": 100},
        },
    }
    for step in (*middle, node):
        source = [str(len(graph)), 0]
        inputs = {key: source if value is None else value for key, value in step["inputs"].items()}
        graph[str(len(graph) + 1)] = {**step, "inputs": inputs}
    graph["result"] = {
        "class_type": "ArtMancer_EndpointResult",
        "inputs": {"name": "out", "help": "", "value": [str(len(graph)), 0]},
    }
    file = tmp_path / "walk.json"
    file.write_text(json.dumps(graph))
    return read_workflow(file)


WAYS: dict[str, tuple[dict[str, Any], ...]] = {
    "directly": (),
    "joined": ({"class_type": "StringConcatenate", "inputs": {"string_a": None, "string_b": ""}},),
    "switched": (
        {
            "class_type": "ComfySwitchNode",
            "inputs": {"on_true": None, "on_false": "x", "switch": True},
        },
    ),
    "shown, then replaced": (
        {"class_type": "PreviewAny", "inputs": {"source": None}},
        {"class_type": "StringReplace", "inputs": {"string": None, "find": "a", "replace": "b"}},
    ),
    "as a seed": ({"class_type": "RandomNoise", "inputs": {"noise_seed": None}},),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_callers_value_reaches_no_text_of_a_class_that_touches_files(
    tmp_path: Path, way: tuple[dict[str, Any], ...]
) -> None:
    nodes = with_pack(VERSIONS[1])
    texts = 0
    for name, also in RESTRICTED_NODES.items():
        if name == ENDPOINT_RESULT:  # read_workflow and the gateway see to its other inputs
            continue
        for key, node_input in nodes[name].inputs.items() if name in nodes else ():
            workflow = graph_of(tmp_path, *way, class_type=name, inputs={key: None})
            reason = unsafe_reason(workflow, nodes)
            if node_input.type in ("STRING", "COMBO") or node_input.type.startswith("COMFY_"):
                texts += key not in also
                assert bool(reason) == (key not in also), (name, key)
            elif node_input.type in ("IMAGE", "MODEL", "INT", "FLOAT"):
                assert reason is None, (name, key)
    assert texts > 60


@pytest.mark.parametrize("wrapped", [{"__value__": ["1", 0]}, {"__value__": "a/b", "x": 1}])
def test_a_wrapped_value_is_refused(tmp_path: Path, wrapped: Any) -> None:
    # ComfyUI unwraps it, and a link in it is a link again.
    with pytest.raises(ArtMancerError, match="wrapped"):
        graph_of(tmp_path, class_type="PreviewAny", inputs={"source": wrapped})


def test_a_link_may_have_a_float_index_as_in_comfyui(tmp_path: Path) -> None:
    inputs = {"filename_prefix": ["1", 0.0]}
    workflow = graph_of(tmp_path, class_type="SaveImage", inputs=inputs)
    assert unsafe_reason(workflow, with_pack(VERSIONS[1]))


def test_a_widget_for_a_file_that_a_newer_comfyui_adds_is_not_reached(tmp_path: Path) -> None:
    nodes = with_pack(VERSIONS[1])
    text = NodeInput("STRING", is_file=True)
    nodes["CLIPTextEncode"] = NodeType({"clip": NodeInput("CLIP"), "text": text}, ("CONDITIONING",))
    workflow = graph_of(tmp_path, class_type="CLIPTextEncode", inputs={"text": None})
    assert unsafe_reason(workflow, nodes)


@pytest.mark.parametrize("choice", ["../../etc/passwd", "/etc/passwd", "C:\\x"])
def test_a_choice_is_no_path(tmp_path: Path, choice: str) -> None:
    graph_of(tmp_path, class_type="SaveImage", inputs={"filename_prefix": None})
    graph = json.loads((tmp_path / "walk.json").read_text())
    inputs = {"name": "model", "value": "a", "choices": f"a\n{choice}", "help": ""}
    graph["1"] = {"class_type": "ArtMancer_EndpointChoice", "inputs": inputs}
    (tmp_path / "walk.json").write_text(json.dumps(graph))
    reason = unsafe_reason(read_workflow(tmp_path / "walk.json"), with_pack(VERSIONS[1]))
    assert reason and "path" in reason


@pytest.mark.parametrize("file", sorted(GRAPHS.glob("*.json")), ids=lambda file: file.stem)
def test_before_the_node_classes_are_known_only_the_safe_is_served(
    tmp_path: Path, file: Path
) -> None:
    assert unsafe_reason(read_workflow(file), {}) is None
    for name in ("LoadImage", "SaveImage", "LoraLoader"):
        key = {"LoadImage": "image", "SaveImage": "filename_prefix", "LoraLoader": "lora_name"}
        workflow = graph_of(tmp_path, class_type=name, inputs={key[name]: None})
        assert unsafe_reason(workflow, {})


@pytest.mark.parametrize(
    "name",
    ["WebcamCapture", "RecordAudio", "OpenAIInputFiles", "GeminiInputFiles", "LoadImage", "Newest"],
)
def test_a_class_that_is_not_listed_is_refused_wherever_it_stands(
    tmp_path: Path, name: str
) -> None:
    nodes = {**with_pack(VERSIONS[1]), "Newest": NodeType({}, ("IMAGE",))}
    reason = unsafe_reason(graph_of(tmp_path, class_type=name, inputs={"a": "fixed"}), nodes)
    assert reason and name in reason and "ARTMANCER_TRUSTED_WORKFLOWS" in reason


def test_a_choice_of_the_operator_may_name_a_model(tmp_path: Path) -> None:
    workflow = graph_of(tmp_path, class_type="UpscaleModelLoader", inputs={"model_name": None})
    graph = json.loads((tmp_path / "walk.json").read_text())
    assert unsafe_reason(workflow, with_pack(VERSIONS[1]))
    graph["1"] = {
        "class_type": "ArtMancer_EndpointChoice",
        "inputs": {"name": "model", "value": "a.pth", "choices": "a.pth\nb.pth", "help": ""},
    }
    (tmp_path / "walk.json").write_text(json.dumps(graph))
    assert unsafe_reason(read_workflow(tmp_path / "walk.json"), with_pack(VERSIONS[1])) is None


def test_the_name_of_a_model_set_reaches_load_editor_only(tmp_path: Path) -> None:
    choice = {
        "class_type": "ArtMancer_EndpointChoice",
        "inputs": {"name": "editor", "value": "a", "choices": "a\n(model sets)", "help": ""},
    }
    for class_type, name, is_safe in (
        ("ArtMancer_LoadEditor", "editor", True),
        ("ArtMancer_LoadEditor", "checkpoint", False),
        ("ArtMancer_LoadEditor", "acceleration", False),
        ("UpscaleModelLoader", "model_name", False),
        ("SaveImage", "filename_prefix", False),
    ):
        graph_of(tmp_path, class_type=class_type, inputs={name: None})
        graph = json.loads((tmp_path / "walk.json").read_text()) | {"1": choice}
        (tmp_path / "walk.json").write_text(json.dumps(graph))
        reason = unsafe_reason(read_workflow(tmp_path / "walk.json"), with_pack(VERSIONS[1]))
        assert (reason is None) is is_safe, reason


@pytest.mark.parametrize("file", sorted(GRAPHS.glob("*.json")), ids=lambda file: file.stem)
def test_the_graphs_of_the_pack_are_valid_and_safe(nodes: dict[str, NodeType], file: Path) -> None:
    workflow = read_workflow(file)
    assert invalid_reason(workflow.graph, nodes) is None
    assert unsafe_reason(workflow, nodes) is None


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ({"image": ["1", 0]}, None),
        ({"image": ["1", 7]}, "output 7"),
        ({"image": ["1", -1]}, "output -1"),
        ({"image": ["5", 0]}, "expects IMAGE"),
        ({}, "missing"),
        ({"image": ["1", 0], "width": "wide"}, "expects INT, and is 'wide'"),
        ({"image": ["1", 0], "height": None}, "expects INT, and is None"),
        ({"image": ["1", 0], "height": "8"}, None),
        ({"image": ["1", 0]}, "of node 6"),
    ],
)
def test_a_graph_that_comfyui_would_refuse_is_listed_with_the_reason(
    fake: FakeHost, tmp_path: Path, inputs: dict[str, Any], reason: str | None
) -> None:
    folder = tmp_path / "graphs"
    folder.mkdir()
    graph = {
        "1": {
            "class_type": "ArtMancer_EndpointImage",
            "inputs": {"name": "image", "help": "", "image": "x.png"},
        },
        "2": {
            "class_type": "ImageScale",
            "inputs": {
                **{"upscale_method": "area", "width": 8, "height": 8, "crop": "disabled"},
                **inputs,
            },
        },
        "3": {
            "class_type": "ArtMancer_EndpointResult",
            "inputs": {"name": "out", "help": "", "value": ["2", 0]},
        },
        "5": {
            "class_type": "ArtMancer_EndpointText",
            "inputs": {"name": "words", "value": "x", "help": "", "max_length": 9},
        },
        # No output node needs it, so ComfyUI does not look at it.
        "4": {"class_type": "ImageScale", "inputs": {}},
    }
    if reason == "of node 6":
        graph["6"] = {"class_type": "SaveImage", "inputs": {"filename_prefix": "x"}}
    (folder / "scale.json").write_text(json.dumps(graph))
    with Served(settings(tmp_path / "data", comfyui_url=fake.url, workflows=folder)) as served:
        (info,) = served.connected().http.get("/api/workflows").json()["workflows"]
        assert info["served"] == (reason is None) and (reason or "") in (info["reason"] or "")
        if reason:
            answer = served.http.post("/api/workflows/scale", json={"image": encoded("coffee")})
            assert error(answer) == (500, "generation_failed")


def test_the_operator_can_trust_a_graph(
    fake: FakeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "graphs"
    folder.mkdir()
    graph = json.loads((GRAPHS / "white-balance.json").read_text())
    graph["99"] = {"class_type": "LoadImage", "inputs": {"image": "logo.png"}}
    for name in ("logo", "stamp", "other"):
        (folder / f"{name}.json").write_text(json.dumps(graph))
    monkeypatch.setenv("ARTMANCER_TRUSTED_WORKFLOWS", "logo, stamp,")
    with Served(settings(tmp_path / "data", comfyui_url=fake.url, workflows=folder)) as served:
        listed = served.connected().http.get("/api/workflows").json()["workflows"]
    assert {info["name"] for info in listed if info["served"]} == {"logo", "stamp"}
