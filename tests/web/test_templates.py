"""The pack in ComfyUI's own editor, in a real browser."""

import json
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops, ImageStat
from support.comfyui import ComfyUI
from support.editor import EMPTY_GRAPH, repeat_until, settle
from support.paths import EXAMPLES, ROOT

pytestmark = [pytest.mark.comfyui, pytest.mark.browser]

SHOTS = ROOT / "build" / "screenshots"
TEMPLATES = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))


def open_template(page: Any, name: str) -> None:
    """Open a template as its card does, with all of it in view."""
    page.evaluate(
        """async (name) => {
          const file = encodeURIComponent(`${name}.json`);
          const answer = await fetch(`/api/workflow_templates/artmancer/${file}`);
          const options = { openSource: "template" };
          await window.app.loadGraphData(await answer.json(), true, true, name, options);
        }""",
        name,
    )


def take_screenshot(page: Any, name: str) -> None:
    page.evaluate(
        """() => {
          const { canvas, graph } = window.app, nodes = graph.nodes;
          const edges = (axis) => [Math.min(...nodes.map((node) => node.pos[axis])),
            Math.max(...nodes.map((node) => node.pos[axis] + node.size[axis]))];
          const [[left, right], [top, bottom]] = [edges(0), edges(1)];
          const scale = Math.min(1300 / (right - left + 80), 800 / (bottom - top + 160));
          Object.assign(canvas.ds, { scale, offset: [60 / scale - left, 100 / scale - top] });
          canvas.setDirty(true, true);
        }"""
    )
    settle(page)
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}.png")


def run(page: Any) -> dict[str, Any]:
    """Queue the open graph as the Run button does; return its entry in the history."""
    return dict(
        page.evaluate(
            """async () => {
              // Smart Mask queues a run of its own when a graph with clicks is opened.
              const { api } = window.app;
              const queuePrompt = api.queuePrompt;
              let id;
              api.queuePrompt = async function (number, graph, options, ...rest) {
                const answer = await queuePrompt.call(this, number, graph, options, ...rest);
                if (!options?.partialExecutionTargets) id = answer.prompt_id;
                return answer;
              };
              await window.app.queuePrompt(0, 1);
              for (;;) {
                const history = await (await fetch("/api/history")).json();
                if (id in history) break;
                await new Promise((resolve) => setTimeout(resolve, 200));
              }
              api.queuePrompt = queuePrompt;
              return (await (await fetch("/api/history")).json())[id];
            }"""
        )
    )


SHOWN = """(ids) => ids.every((id) => {
  const element = document.querySelector(`[data-node-id="${id}"]`);
  if (element) return !!element.querySelector("img, canvas");
  return window.app.graph.getNodeById(Number(id)).imgs?.length > 0;
})"""


def wait_for_images(page: Any, entry: dict[str, Any]) -> None:
    """Wait until the nodes show the images of a run."""
    ids = [node for node, output in entry["outputs"].items() if "images" in output]
    page.wait_for_function(SHOWN, arg=ids)
    settle(page)


def test_the_templates_are_listed_with_their_thumbnails(page: Any, comfyui: ComfyUI) -> None:
    listed = page.request.get(f"{comfyui.url}/api/workflow_templates").json()
    assert sorted(listed["artmancer"]) == TEMPLATES
    assert TEMPLATES == [
        "1 Remove an object (no model)",
        "2 Remove with LaMa",
        "3 Edit on 12 to 16 GB (Qwen 2511)",
        "4 Insert with a reference",
        "5 White balance",
        "6 Click and remove",
        "7 Say what to remove (SAM3)",
        "8 Many photos",
        "9 ComfyUI's KSampler",
    ], "ComfyUI shows a file's name as its title; the number is the order for a newcomer"
    for name in TEMPLATES:
        thumbnail = page.request.get(f"{comfyui.url}/api/workflow_templates/artmancer/{name}.jpg")
        assert thumbnail.status == 200 and thumbnail.headers["content-type"] == "image/jpeg"


def test_every_template_has_its_own_square_thumbnail() -> None:
    """ComfyUI shows thumbnails in a square, and others with bars."""
    pictures = {name: Image.open(ROOT / "workflows" / f"{name}.jpg") for name in TEMPLATES}
    assert all(picture.width == picture.height for picture in pictures.values())
    for one, other in combinations(TEMPLATES, 2):
        difference = ImageChops.difference(*(pictures[name].convert("L") for name in (one, other)))
        assert ImageStat.Stat(difference).mean[0] > 8, (one, other)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_templates_note_is_readable_in_both_renderers(name: str) -> None:
    """ComfyUI's Vue renderer writes code blue on blue."""
    nodes = json.loads((ROOT / "workflows" / f"{name}.json").read_text())["nodes"]
    notes = [node["widgets_values"][0] for node in nodes if node["type"] == "MarkdownNote"]
    assert notes and not any("`" in note for note in notes)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_has_no_deprecated_node_and_links_its_models(
    page: Any, comfyui: ComfyUI, name: str
) -> None:
    nodes = json.loads((ROOT / "workflows" / f"{name}.json").read_text())["nodes"]
    known = page.request.get(f"{comfyui.url}/object_info").json()
    assert not [node["type"] for node in nodes if known.get(node["type"], {}).get("deprecated")]
    files = {
        value
        for node in nodes
        for value in node.get("widgets_values") or []
        if str(value).endswith(".safetensors")
    }
    linked = {model["name"]: model for node in nodes for model in models(node)}
    assert files - {"removal_cp.safetensors"} == linked.keys(), "ComfyUI offers to download them"
    if files:
        from comfyui_workflow_templates_json import __file__ as package

        published = (
            "".join(
                path.read_text(encoding="utf-8")
                for path in (Path(package).parent / "templates").glob("*qwen_image_edit_25*.json")
            )
            + (Path(package).parent / "templates" / "utility_video_segment_sam3.json").read_text()
        )
        assert all(model["url"] in published for model in linked.values()), "as ComfyUI's own do"


def models(node: dict[str, Any]) -> list[dict[str, str]]:
    """The files that a loader of a template names, with their links."""
    return list(node.get("properties", {}).get("models", []))


READABLE = """() => {
  const { canvas, graph } = window.app, { scale, offset } = canvas.ds;
  const at = (node, axis, more) => (node.pos[axis] + more + offset[axis]) * scale;
  const inside = (node) => at(node, 0, 0) > 0 && at(node, 0, node.size[0]) < innerWidth
    && at(node, 1, -30) > 0 && at(node, 1, 0) < innerHeight;
  return !canvas.low_quality && graph.nodes.every(inside);
}"""

UNDER_THE_MINIMAP = """() => {
  const map = document.querySelector("[data-testid=minimap-container]")?.getBoundingClientRect();
  if (!map) return false;
  const { scale, offset } = window.app.canvas.ds;
  const report = window.app.graph.nodes.find((node) => node.type === "ArtMancer_Report");
  const end = (axis) => (report.pos[axis] + report.size[axis] + offset[axis]) * scale;
  return end(0) > map.left && end(1) > map.top;
}"""

NEEDS_MODELS = {
    "3 Edit on 12 to 16 GB (Qwen 2511)": ["clip_name", "lora_name", "unet_name", "vae_name"],
    "7 Say what to remove (SAM3)": ["ckpt_name"],
    "9 ComfyUI's KSampler": ["clip_name", "lora_name", "unet_name", "vae_name"],
}
"""By template, the inputs whose files have to be downloaded."""


NEEDS_NODE = {
    "7 Say what to remove (SAM3)": "SAM3_Detect",
    "8 Many photos": "BatchImagesNode",
}
"""By template, a node of ComfyUI's that its older versions do not have."""


def overlapping(page: Any) -> list[tuple[str, str]]:
    """The pairs of nodes of which one lies over the other, titles included."""
    boxes = page.evaluate(
        """window.app.graph.nodes.map(({ title, pos, size, flags }) =>
          [title, ...pos, size[0], flags?.collapsed ? 0 : size[1]])"""
    )
    return [
        (one, other)
        for (one, x, y, width, height), (other, x2, y2, width2, height2) in combinations(boxes, 2)
        if x < x2 + width2 and x2 < x + width and y - 30 < y2 + height2 and y2 - 30 < y + height
    ]


def sticking_out(page: Any) -> list[tuple[str, str, float]]:
    """The nodes that begin in a group and end below it: the group, the node, by how much."""
    groups, nodes = page.evaluate(
        """() => ["groups", "nodes"].map((kind) => window.app.graph[kind].map(
          ({ title, pos, size, flags }) =>
            [title, ...pos, size[0], flags?.collapsed ? 0 : size[1]]))"""
    )
    return [
        (group, node, top + height - (group_top + group_height))
        for group, group_left, group_top, group_width, group_height in groups
        for node, left, top, _, height in nodes
        if group_left <= left < group_left + group_width
        and group_top <= top < group_top + group_height < top + height
    ]


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_opens_without_a_red_node_and_runs_as_it_comes(
    page: Any, name: str, vue: bool
) -> None:
    page.set_viewport_size({"width": 1280, "height": 800})
    open_template(page, name)
    needed = NEEDS_NODE.get(name)
    if needed and not page.evaluate("(type) => type in LiteGraph.registered_node_types", needed):
        pytest.skip(f"this ComfyUI has no {needed}, as the README says")
    nodes = page.evaluate(
        """() => window.app.graph.nodes.map((node) => ({
          type: node.type, known: node.type in LiteGraph.registered_node_types,
          errors: !!node.has_errors,
          top: node.pos[1],
          missing: (node.widgets ?? [])
            .filter(({ type, options }) => type === "combo" && Array.isArray(options.values))
            .filter(({ value, options }) => !options.values.includes(value))
            .map(({ name }) => name),
        }))"""
    )
    assert all(node["known"] for node in nodes), nodes
    missing = [name for node in nodes for name in node["missing"]]
    assert sorted(missing) == NEEDS_MODELS.get(name, [])
    if not missing:
        assert not any(node["errors"] for node in nodes), nodes
    assert page.evaluate(READABLE), "on a small screen: no node out of sight, words drawn"
    note = min(nodes, key=lambda node: node["top"])
    assert note["type"] == "MarkdownNote", "a note on top"
    assert not overlapping(page)

    settle(page)
    assert not page.evaluate(UNDER_THE_MINIMAP), "the figures of the report are in sight"
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"template-{name}-{'vue' if vue else 'canvas'}.png")
    page.set_viewport_size({"width": 1800, "height": 1000})
    take_screenshot(page, f"template-{name}")
    if name in NEEDS_MODELS:
        return
    entry = run(page)
    assert entry["status"]["status_str"] == "success"
    shown = [output["images"][0] for output in entry["outputs"].values() if "images" in output]
    assert {image["type"] for image in shown} == {"output", "temp"}, (
        "the result, and what is shown besides"
    )
    wait_for_images(page, entry)
    take_screenshot(page, f"template-{name}-ran-{'vue' if vue else 'canvas'}")
    assert not overlapping(page), "what shows after a run has room too"
    assert sticking_out(page) == [], "also in its group"


SAVE_SMALL_MODELS = """async () => {
  const prompt = { 1: { class_type: "SaveSmallModels", inputs: {} } };
  const headers = { "Content-Type": "application/json" };
  const body = JSON.stringify({ prompt });
  const answer = await fetch("/api/prompt", { method: "POST", headers, body });
  const { prompt_id } = await answer.json();
  for (;;) {
    const history = await (await fetch("/api/history")).json();
    if (prompt_id in history) return;
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
}"""

USE_SMALL_MODELS = """() => {
  const find = (type) => window.app.graph.nodes.find((node) => node.type === type);
  const set = (type, name, value) => {
    find(type).widgets.find((widget) => widget.name === name).value = value;
  };
  set("UNETLoader", "unet_name", "one-block.safetensors");
  set("CLIPLoader", "clip_name", "stand-in.safetensors");
  set("VAELoader", "vae_name", "narrow.safetensors");
  set("LoadImage", "image", "small_painted.png");
  set("ArtMancer_SplitConditions", "resolution", "native");
  set("LTXVScheduler", "steps", 2);
  find("LoraLoaderModelOnly").mode = 4;  // bypassed, as the note says
}"""


@pytest.fixture
def small_models(page: Any, comfyui: ComfyUI) -> Iterator[None]:
    """Provide ComfyUI with small models in the place of Qwen-Image-Edit, and a small photo."""
    page.evaluate(SAVE_SMALL_MODELS)
    photo = Image.open(EXAMPLES / "coffee_painted.png").resize((150, 100))
    photo.save(comfyui.base / "input" / "small_painted.png")
    yield
    for folder in ("diffusion_models", "text_encoders", "vae"):
        for path in (comfyui.base / "models" / folder).glob("*.safetensors"):
            path.unlink()


@pytest.mark.slow
def test_the_template_for_ksampler_has_room_for_what_a_run_shows(
    page: Any, small_models: None, vue: bool
) -> None:
    page.set_viewport_size({"width": 1280, "height": 800})
    open_template(page, "9 ComfyUI's KSampler")
    page.evaluate("window.app.refreshComboInNodes()")
    page.evaluate(USE_SMALL_MODELS)
    entry = run(page)
    assert entry["status"]["status_str"] == "success", entry["status"]
    settle(page)
    page.wait_for_function("() => document.querySelector('.artmancer-stage > img')?.complete")
    settle(page)
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"template-9-ran-{'vue' if vue else 'canvas'}.png")
    assert not page.evaluate(UNDER_THE_MINIMAP), "the figures of the report are in sight"
    assert not overlapping(page)
    assert sticking_out(page) == []


def open_app(page: Any, name: str) -> None:
    """Open a template in App mode."""
    page.set_viewport_size({"width": 1280, "height": 800})
    open_template(page, name)
    page.evaluate("window.app.extensionManager.command.execute('Comfy.ToggleLinear')")
    page.locator("[data-testid=linear-widgets]").wait_for()
    if page.get_by_text("Skip", exact=True).count():
        page.get_by_text("Skip", exact=True).click()


@pytest.fixture
def app_page(own_page: Any) -> Any:
    """The editor in a page of its own; skips where ComfyUI has no App mode."""
    commands = "window.app.extensionManager?.command?.commands?.map((command) => command.id) ?? []"
    if "Comfy.ToggleLinear" not in own_page.evaluate(commands):
        pytest.skip("this ComfyUI has no App mode")
    return own_page


APPS = {
    "1 Remove an object (no model)": ["Photo", "seed"],
    "2 Remove with LaMa": ["Photo"],
    "3 Edit on 12 to 16 GB (Qwen 2511)": ["Photo", "prompt", "seed"],
    "4 Insert with a reference": ["Photo", "Photo of the object", "object"],
    "5 White balance": ["Photo", "strength"],
    "6 Click and remove": ["Photo", "object"],
    "7 Say what to remove (SAM3)": ["Photo", "What to remove", "seed"],
    "8 Many photos": ["Photo 1", "Photo 2", "Photo 3", "strength"],
    "9 ComfyUI's KSampler": ["Photo", "prompt", "steps", "cfg", "noise_seed"],
}
"""By template, the inputs that App mode shows."""


@pytest.mark.slow
def test_every_template_is_an_app(app_page: Any) -> None:
    for name, inputs in APPS.items():
        open_app(app_page, name)
        items = app_page.locator("[data-testid=app-mode-widget-item]")
        app_page.wait_for_function(
            "(count) => document.querySelectorAll('[data-testid=app-mode-widget-item]').length"
            " === count",
            arg=len(inputs),
        )
        assert [text.split("\n")[0] for text in items.all_inner_texts()] == inputs
        app_page.evaluate(EMPTY_GRAPH, False)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in APPS if name not in NEEDS_MODELS])
def test_an_app_runs_as_it_comes_and_shows_its_result(app_page: Any, name: str) -> None:
    open_app(app_page, name)
    run_button = app_page.get_by_test_id("linear-run-button").get_by_role("button", name="Run")
    shown = "() => [...document.images].some(({ src }) => /filename=\\w+_0000\\d_/.test(src))"
    repeat_until(app_page, run_button.click, shown)
    settle(app_page)
    SHOTS.mkdir(parents=True, exist_ok=True)
    app_page.screenshot(path=SHOTS / f"app-{name}.png")


@pytest.mark.slow
def test_smart_mask_takes_a_click_in_an_app(app_page: Any) -> None:
    open_app(app_page, "6 Click and remove")
    clicks = (
        "JSON.parse(window.app.graph.nodes.find((node) => node.type === 'ArtMancer_SmartMask')"
        ".widgets.find((widget) => widget.name === 'prompt').value).points"
    )
    assert app_page.evaluate(clicks) == [[343, 197]], "a point: a box would hold further clicks"
    picture = app_page.locator("[data-testid=linear-widgets] .artmancer-picture")
    box = picture.bounding_box()
    # The photo of 384x303 fills the width; its top left coin is at (45, 53).
    scale = box["width"] / 384
    words = picture.locator(".artmancer-words").bounding_box()
    top = (box["height"] - words["height"] - 303 * scale) / 2
    picture.click(position={"x": 45 * scale, "y": top + 53 * scale})
    app_page.wait_for_function(f"() => {clicks}.length === 2")
    [(_, _), (x, y)] = app_page.evaluate(clicks)
    assert abs(x - 45) <= 12 and abs(y - 53) <= 12
    app_page.get_by_text("Score").wait_for()


BLUEPRINTS = {
    "Remove an Object (ArtMancer)": (2, ["editor", "prompt", "grow", "seed"]),
    "Insert an Object (ArtMancer)": (4, ["editor", "prompt", "grow", "seed"]),
    "Correct the White Balance (ArtMancer)": (1, ["editor", "strength"]),
    "Click and Remove (ArtMancer)": (1, ["editor", "prompt", "grow", "seed"]),
}
"""By name: how many pictures each takes, of photo and mask, reference and its mask; the widgets."""


def add_from_search(page: Any, name: str) -> None:
    """Add a node to an empty graph by a double click on the canvas and the search that it opens."""
    focused = "() => document.activeElement.tagName === 'INPUT'"
    added = "() => window.app.graph.nodes.length === 1"
    repeat_until(page, lambda: page.mouse.dblclick(700, 500), focused)
    page.keyboard.type(name, delay=10)
    page.get_by_text(name, exact=True).first.wait_for()
    repeat_until(page, lambda: page.keyboard.press("Enter"), added)
    page.mouse.click(700, 400)  # a newer editor has the node at the pointer until then
    settle(page)


def test_a_blueprint_is_found_in_the_library_and_runs(page: Any, comfyui: ComfyUI) -> None:
    if page.request.get(f"{comfyui.url}/api/global_subgraphs").status == 404:
        pytest.skip("this ComfyUI knows no blueprints of packs")
    for template in ("1 Remove an object (no model)", "4 Insert with a reference"):
        open_template(page, template)  # brings the example photos
    for name, (pictures, widgets) in BLUEPRINTS.items():
        page.evaluate("window.app.clean(); window.app.graph.clear()")
        add_from_search(page, name)
        shown = page.evaluate(
            """(count) => {
              const { graph } = window.app, node = graph.nodes[0];
              const add = (type, x, y) => {
                const added = LiteGraph.createNode(type);
                added.pos = [x, y];
                graph.add(added);
                return added;
              };
              node.pos = [400, 0];
              // Both photos come with a mask in their alpha.
              const files = ["coffee_painted", "astronaut_painted"];
              for (let slot = 0; slot < count; slot += 2) {
                const load = add("LoadImage", 0, 380 * slot);
                load.widgets[0].value = `artmancer/${files[slot / 2]}.png`;
                load.connect(0, node, slot);
                if (slot + 1 < count) load.connect(1, node, slot + 1);
              }
              node.connect(0, add("SaveImage", 860, 0), 0);
              return [node.title, node.widgets.map((widget) => widget.name)];
            }""",
            pictures,
        )
        assert shown == [name, widgets]
        take_screenshot(page, f"blueprint-{name.split()[0].lower()}")
        entry = run(page)
        assert entry["status"]["status_str"] == "success"
        kept = [output["images"][0] for output in entry["outputs"].values() if "images" in output]
        assert "output" in [image["type"] for image in kept]


def test_a_template_runs_where_the_example_photos_are_there_already(
    page: Any, comfyui: ComfyUI
) -> None:
    for _ in range(2):
        open_template(page, "1 Remove an object (no model)")
    names = {path.name for path in (comfyui.base / "input" / "artmancer").iterdir()}
    assert "astronaut_painted.png" in names and not any("(1)" in name for name in names)


def test_an_endpoint_choice_offers_its_choices(page: Any, vue: bool) -> None:
    offered = page.evaluate(
        """async () => {
          window.app.graph.clear();
          const node = LiteGraph.createNode("ArtMancer_EndpointChoice");
          node.pos = [200, 200];
          window.app.graph.add(node);
          const widget = (name) => node.widgets.find((widget) => widget.name === name);
          widget("choices").value = "one\\ntwo";
          await window.app.refreshComboInNodes();
          return [...widget("value").options.values];
        }"""
    )
    assert offered == ["one", "two"]
    if vue:
        # A dialog that another test left open covers the graph.
        closed = "() => !document.querySelector('[role=dialog]')"
        repeat_until(page, lambda: page.keyboard.press("Escape"), closed)
        page.locator("[role=combobox]").first.click()
        page.get_by_role("option", name="two").click()
        value = "app.graph.nodes[0].widgets.find((widget) => widget.name === 'value').value"
        assert page.evaluate(value) == "two"


def test_the_endpoints_open_in_the_editor(page: Any) -> None:
    for path in (ROOT / "workflows" / "api").glob("*.json"):
        opens(page, path.stem, json.loads(path.read_text()))


def opens(page: Any, name: str, graph: dict[str, Any]) -> None:
    page.evaluate("([graph, name]) => window.app.loadApiJson(graph, name)", [graph, name])
    back = page.evaluate("window.app.graphToPrompt().then((prompt) => prompt.output)")
    assert {key: node["inputs"] for key, node in back.items()} == {
        key: node["inputs"] for key, node in graph.items()
    }


def test_an_endpoint_image_shows_the_picture_like_load_image(page: Any, comfyui: ComfyUI) -> None:
    open_template(page, "1 Remove an object (no model)")
    shown = page.evaluate(
        """async () => {
          const node = LiteGraph.createNode("ArtMancer_EndpointImage");
          window.app.graph.add(node);
          const widget = node.widgets.find((widget) => widget.name === "image");
          widget.value = "artmancer/astronaut.png";
          widget.callback?.(widget.value);
          for (let wait = 0; wait < 50 && !node.imgs?.length; wait++)
            await new Promise((done) => setTimeout(done, 100));
          return [node.imgs?.[0]?.naturalWidth, node.widgets.map((widget) => widget.name)];
        }"""
    )
    assert shown[0] == 512
    assert "upload" in shown[1], "the button to choose a file"
