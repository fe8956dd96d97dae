"""The pictures in the nodes, in a real browser: what is clicked, and what shows."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.comfyui import ComfyUI
from support.paths import EXAMPLES, ROOT

pytestmark = [pytest.mark.comfyui, pytest.mark.browser]

SHOTS = ROOT / "build" / "screenshots"

BUILD = """async ([photo, vue]) => {
  const { app, LiteGraph } = window;
  await app.ui.settings.setSettingValueAsync("Comfy.VueNodes.Enabled", vue);
  await app.loadGraphData({ version: 0.4, nodes: [], links: [], groups: [], config: {}, extra: {},
    last_node_id: 0, last_link_id: 0 });
  const types = ["LoadImage", "ArtMancer_SmartMask"];
  const [load, pick] = types.map((type) => LiteGraph.createNode(type));
  for (const node of [load, pick]) app.graph.add(node);
  [load.pos, pick.pos] = [[40, 60], [400, 60]];
  pick.setSize([480, 640]);
  const file = load.widgets.find((widget) => widget.name === "image");
  file.value = photo;
  file.callback?.(photo);
  load.connect(0, pick, 0);
}"""
GRAPH = "(window.app.rootGraph ?? window.app.graph)"
PICK = f"{GRAPH}.nodes.find((node) => node.comfyClass === 'ArtMancer_SmartMask')"


class Picker:
    """Smart Mask in the page, with the photo coffee.png, 600 x 400."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.element = page.locator(".artmancer-picture").first

    def value(self, name: str) -> Any:
        return self.page.evaluate(
            f"{PICK}.widgets.find((widget) => widget.name === '{name}').value"
        )

    @property
    def prompt(self) -> Any:
        return json.loads(self.value("prompt") or "{}")

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where a pixel of the photo is on the screen."""
        box = self.element.bounding_box()
        scale = min(box["width"] / 600, box["height"] / 400)
        return box["x"] + (box["width"] - 600 * scale) / 2 + (x + 0.5) * scale, box["y"] + (
            box["height"] - 400 * scale
        ) / 2 + (y + 0.5) * scale

    def click(self, x: float, y: float, **options: Any) -> None:
        self.page.mouse.click(*self.at(x, y), **options)

    def wait_for(self, words: str) -> None:
        from playwright.sync_api import TimeoutError

        said = self.element.locator(".artmancer-words")
        try:
            said.filter(has_text=words).wait_for(timeout=30_000)
        except TimeoutError as error:
            raise AssertionError(
                f"waited for {words!r}, but it says {said.text_content()!r}"
            ) from error

    def pink(self, x: int, y: int) -> bool:
        """Whether the mask shows at a pixel of the photo."""
        red, green, blue = self.page.evaluate(
            """([x, y]) => {
              const canvas = document.querySelector(".artmancer-picture > canvas");
              const scale = Math.min(canvas.width / 600, canvas.height / 400);
              const left = (canvas.width - 600 * scale) / 2;
              const top = (canvas.height - 400 * scale) / 2;
              const context = canvas.getContext("2d");
              const [column, row] = [left + x * scale, top + y * scale];
              return [...context.getImageData(column, row, 1, 1).data].slice(0, 3);
            }""",
            [x, y],
        )
        return bool(red > blue > green + 5)  # nothing in the photo itself has more blue than green


def photo(comfyui: ComfyUI) -> str:
    """The photo in the input folder, put there without a request:
    the browser's event loop runs in this thread.
    """
    folder = comfyui.base / "input"
    folder.mkdir(exist_ok=True)
    shutil.copy(EXAMPLES / "coffee.png", folder)
    return "coffee.png"


@pytest.fixture
def errors(page: Any) -> Iterator[list[str]]:
    """What our files complain of in the console; none is expected."""
    said: list[str] = []
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on(
        "console",
        lambda message: (
            said.append(message.text)
            if message.type == "error"
            and "extensions/artmancer" in message.location.get("url", "") + message.text
            else None
        ),
    )
    yield said
    assert said == []


@pytest.fixture
def picker(page: Any, comfyui: ComfyUI, errors: list[str], vue: bool) -> Picker:
    page.evaluate(BUILD, [photo(comfyui), vue])
    made = Picker(page)
    made.wait_for("Click: the object.")
    page.wait_for_timeout(500)
    return made


def shot(page: Any, name: str) -> None:
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}.png")


def test_a_click_shows_the_object_and_more_clicks_change_it(
    picker: Picker, request: pytest.FixtureRequest
) -> None:
    picker.click(270, 60)
    picker.wait_for("Score")
    assert picker.prompt == {"points": [[270, 60]], "labels": [1]}
    assert picker.pink(290, 80) and not picker.pink(30, 380)
    shot(picker.page, f"smart-mask-{request.node.callspec.id}")

    picker.page.keyboard.down("Shift")
    picker.click(120, 230)
    picker.page.keyboard.up("Shift")
    picker.click(560, 40, button="right")
    assert picker.prompt["labels"] == [1, 0, 0]
    picker.wait_for("Score")

    picker.page.keyboard.press("Control+z")
    assert len(picker.prompt["points"]) == 2
    picker.page.keyboard.press("c")
    assert picker.value("candidate") == 1
    picker.wait_for("candidate 2 of 3")
    picker.page.keyboard.press("Delete")
    assert picker.prompt == {} and picker.value("candidate") == 0


def test_a_drag_is_a_box(picker: Picker) -> None:
    mouse = picker.page.mouse
    mouse.move(*picker.at(60, 10))
    mouse.down()
    mouse.move(*picker.at(300, 200))
    mouse.move(*picker.at(500, 395))
    mouse.up()
    left, top, right, bottom = picker.prompt["bbox"]
    assert (
        abs(left - 60) <= 2
        and abs(top - 10) <= 2
        and abs(right - 500) <= 2
        and abs(bottom - 395) <= 2
    )
    picker.wait_for("Score")
    assert picker.pink(150, 250) and not picker.pink(560, 300)


def test_the_keyboard_alone_places_a_point(picker: Picker) -> None:
    picker.element.locator("input").focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowUp", "Enter"):
        picker.page.keyboard.press(key)
    assert picker.prompt == {"points": [[324, 192]], "labels": [1]}


def test_a_click_hits_the_same_pixel_when_zoomed_and_on_a_sharp_screen(
    browser: Any, comfyui: ComfyUI, tmp_path: Path
) -> None:
    page = browser.new_page(viewport={"width": 1800, "height": 1000}, device_scale_factor=2)
    page.goto(comfyui.url)
    page.wait_for_function(
        "!!(window.app?.graph && window.LiteGraph?.registered_node_types['ArtMancer_SmartMask'])"
    )
    page.evaluate(BUILD, [photo(comfyui), False])
    made = Picker(page)
    made.wait_for("Click: the object.")
    for scale in (0.6, 1.4):
        page.evaluate(
            "(scale) => { const { ds } = window.app.canvas; ds.scale = scale; "
            "ds.offset = [-300, 0]; }",
            scale,
        )
        page.evaluate("window.app.canvas.setDirty(true, true)")
        page.wait_for_timeout(600)
        made.click(200, 150)
        x, y = made.prompt["points"][-1]
        assert abs(x - 200) <= 1 / scale + 1 and abs(y - 150) <= 1 / scale + 1
    page.close()


def test_the_points_survive_saving_and_loading(picker: Picker) -> None:
    picker.click(270, 60)
    picker.wait_for("Score")
    page = picker.page
    saved = page.evaluate("JSON.stringify(window.app.graph.serialize())")
    page.reload()
    page.wait_for_function(
        "!!(window.app?.graph && window.LiteGraph?.registered_node_types['ArtMancer_SmartMask'])"
    )
    page.wait_for_timeout(2000)  # ComfyUI opens again what was open, and would lay it over ours
    page.evaluate("(saved) => window.app.loadGraphData(JSON.parse(saved))", saved)
    again = Picker(page)
    again.wait_for("Click: the object.")
    assert again.prompt == {"points": [[270, 60]], "labels": [1]}


def test_a_click_runs_the_node_in_a_subgraph(
    page: Any, comfyui: ComfyUI, errors: list[str]
) -> None:
    page.evaluate(BUILD, [photo(comfyui), False])
    Picker(page).wait_for("Click: the object.")
    page.evaluate(
        """() => {
          const { app } = window;
          const items = new Set(app.graph.nodes);
          const { node } = app.graph.convertToSubgraph(items);
          app.canvas.openSubgraph(node.subgraph, node);
        }"""
    )
    page.wait_for_timeout(1500)
    inner = Picker(page)
    inner.wait_for("Click: the object.")
    inner.click(270, 60)
    inner.wait_for("Score")


def test_a_smart_mask_in_a_subgraph_ends_with_its_graph(
    page: Any, comfyui: ComfyUI, errors: list[str]
) -> None:
    page.evaluate(
        """() => {
          window.clocks = new Set();
          const [start, stop] = [window.setInterval, window.clearInterval];
          window.setInterval = (...given) => {
            const id = start(...given);
            if (new Error().stack.includes("smart_mask.js")) window.clocks.add(id);
            return id;
          };
          window.clearInterval = (id) => {
            window.clocks.delete(id);
            stop(id);
          };
        }"""
    )
    page.evaluate(BUILD, [photo(comfyui), False])
    page.evaluate("window.app.graph.convertToSubgraph(new Set(window.app.graph.nodes))")
    saved = page.evaluate("JSON.stringify(window.app.graph.serialize())")
    for _ in range(3):
        page.evaluate("(saved) => window.app.loadGraphData(JSON.parse(saved))", saved)
    page.wait_for_timeout(1500)
    assert page.evaluate("window.clocks.size") == 1


def test_what_comfyui_does_not_run_is_not_waited_for(picker: Picker, errors: list[str]) -> None:
    picker.page.evaluate(f"{PICK}.disconnectInput(0)")
    picker.click(270, 60)
    picker.page.wait_for_timeout(1500)
    picker.wait_for("Click: the object.")
    assert all("PromptExecutionError" in error for error in errors), "which ComfyUI itself logs"
    errors.clear()


def test_a_run_that_comfyui_fails_to_queue_is_not_the_last(
    picker: Picker, errors: list[str]
) -> None:
    page = picker.page
    page.evaluate(
        """() => {
          const { app } = window, own = app.graphToPrompt;
          app.graphToPrompt = async () => {
            app.graphToPrompt = own;
            throw new Error("no prompt from this graph");
          };
        }"""
    )
    picker.click(270, 60)
    page.wait_for_timeout(500)
    errors.clear()
    picker.click(120, 230)
    picker.wait_for("Score")


def test_a_click_hits_the_photo_of_a_loader_that_is_connected_again(picker: Picker) -> None:
    page = picker.page
    page.evaluate(
        f"""() => {{
          const half = window.LiteGraph.createNode("ArtMancer_Resize");
          window.app.graph.add(half);
          half.pos = [40, 500];
          half.widgets.find((widget) => widget.name === "width").value = 300;
          const [load, pick] = [window.app.graph.nodes[0], {PICK}];
          load.connect(0, half, 0);
          half.connect(0, pick, 0);
        }}"""
    )
    page.wait_for_timeout(1000)  # the node looks at what is connected twice a second
    picker.click(270, 60)
    picker.wait_for("Score")
    page.evaluate(f"window.app.graph.nodes[0].connect(0, {PICK}, 0)")
    picker.wait_for("Click: the object.")
    picker.click(120, 230)
    x, y = picker.prompt["points"][-1]
    assert abs(x - 120) <= 2 and abs(y - 230) <= 2


def test_the_failure_of_another_job_is_not_its_own(picker: Picker) -> None:
    page = picker.page
    page.evaluate(
        """async () => {
          const { graph } = window.app;
          const [large, compare] = ["ArtMancer_Resize", "ArtMancer_Compare"].map((type) => {
            const node = window.LiteGraph.createNode(type);
            graph.add(node);
            return node;
          });
          large.widgets.find((widget) => widget.name === "width").value = 12000;
          graph.nodes[0].connect(0, large, 0);
          graph.nodes[0].connect(0, compare, 0);
          large.connect(0, compare, 1);
          large.pos = compare.pos = [40, 700];
          window.said = [];
          new MutationObserver(([change]) => window.said.push(change.target.textContent))
            .observe(document.querySelector(".artmancer-words"), { childList: true });
          await window.app.queuePrompt(0, 1, [String(compare.id)]);
        }"""
    )
    picker.element.locator("input").focus()
    for key in ("ArrowRight", "Enter"):
        page.keyboard.press(key)
    picker.wait_for("Score")
    said = page.evaluate("window.said")
    assert [words.split(" ")[0] for words in said] == ["Looking", "Score"]
    failed = page.evaluate(
        """async () => Object.values(await (await fetch("/history")).json())
          .at(-2).status.status_str"""
    )
    assert failed == "error"


def test_the_picture_keeps_its_height_in_a_low_node(picker: Picker) -> None:
    picker.page.evaluate(f"{PICK}.setSize([480, 100])")
    picker.page.wait_for_timeout(500)
    assert picker.element.evaluate("(element) => element.clientHeight") >= 240


def test_a_refused_prompt_is_told_in_the_node(picker: Picker) -> None:
    picker.page.evaluate(
        f"{PICK}.widgets.find((widget) => widget.name === 'prompt').value = '{{\"points\": "
        "[[9999, 1]]}'"
    )
    picker.page.evaluate("window.app.queuePrompt(0, 1)")
    picker.element.locator("input").focus()
    picker.page.keyboard.press("c")
    picker.wait_for("lies outside the image of 600x400")


def test_the_slider_moves_over_an_edit(
    page: Any, comfyui: ComfyUI, errors: list[str], vue: bool
) -> None:
    # An older ComfyUI does not show again what it has in its cache.
    page.request.post(f"{comfyui.url}/free", data={"free_memory": True})
    page.evaluate(
        """async () => {
          const answer = await fetch("/api/workflow_templates/artmancer/white_balance.json");
          const graph = await answer.json();
          await window.app.loadGraphData(graph, true, true, "white_balance");
          await window.app.queuePrompt(0, 1);
        }"""
    )
    slider = page.locator(".artmancer-picture[role=slider]").first
    slider.locator(".artmancer-words", has_text="before | after").wait_for(timeout=60_000)
    saved = page.evaluate(f"{GRAPH}.serialize().nodes")
    template = json.loads((ROOT / "workflows" / "white_balance.json").read_text())["nodes"]
    kept, given = (
        [node["widgets_values"] for node in nodes if "EditSampler" in node["type"]]
        for nodes in (saved, template)
    )
    assert kept == given, "the slider is none of them"
    box = slider.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + box["height"] / 2)
    page.mouse.up()
    assert abs(int(slider.get_attribute("aria-valuenow")) - 25) <= 2
    page.keyboard.press("ArrowRight")
    assert abs(int(slider.get_attribute("aria-valuenow")) - 27) <= 2
    clip = slider.locator("img").nth(1).evaluate("(image) => image.style.clipPath")
    assert clip.startswith("inset(0px 7")
    shot(page, f"before-after-{'vue' if vue else 'canvas'}")
