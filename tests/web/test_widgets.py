"""The images in the nodes, in a real browser: clicks, keys, and what the nodes show."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.comfyui import ComfyUI
from support.editor import RELOADED, TIMEOUT_MS, open_editor, repeat_until, settle, wait_until
from support.paths import EXAMPLES, ROOT

pytestmark = [pytest.mark.comfyui, pytest.mark.browser]

SHOTS = ROOT / "build" / "screenshots"

ADD_SMART_MASK = """(photo) => {
  const { app, LiteGraph } = window;
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
    """Smart Mask in the page, with the photo coffee.png, 600 x 400 pixels."""

    def __init__(self, page: Any, text: str = "Click: the object.") -> None:
        self.page = page
        self.element = page.locator(".artmancer-picture").first
        self.wait_for(text)
        settle(page)

    def value(self, name: str) -> Any:
        return self.page.evaluate(
            f"{PICK}.widgets.find((widget) => widget.name === '{name}').value"
        )

    @property
    def prompt(self) -> Any:
        return json.loads(self.value("prompt") or "{}")

    def position(self, x: float, y: float) -> tuple[float, float]:
        """Return the place on the screen of a pixel of the photo."""
        box = self.element.bounding_box()
        words = self.element.locator(".artmancer-words").bounding_box()
        height = words["y"] - box["y"]
        scale = min(box["width"] / 600, height / 400)
        left = box["x"] + (box["width"] - 600 * scale) / 2
        top = box["y"] + (height - 400 * scale) / 2
        return left + (x + 0.5) * scale, top + (y + 0.5) * scale

    def click(self, x: float, y: float, **options: Any) -> None:
        self.page.mouse.click(*self.position(x, y), **options)

    def press(self, *keys: str) -> None:
        for key in keys:
            self.element.locator("input").press(key)

    def wait_for(self, text: str) -> None:
        from playwright.sync_api import TimeoutError

        element = self.element.locator(".artmancer-words")
        try:
            element.filter(has_text=text).wait_for()
        except TimeoutError as error:
            raise AssertionError(
                f"waited for {text!r}, but the node shows {element.text_content()!r}"
            ) from error

    def record_texts(self) -> None:
        """From now on, keep the texts that the node shows, see `texts`."""
        self.page.evaluate(
            """() => {
              window.texts = [];
              new MutationObserver(([change]) => window.texts.push(change.target.textContent))
                .observe(document.querySelector(".artmancer-words"), { childList: true });
            }"""
        )

    @property
    def texts(self) -> list[str]:
        return list(self.page.evaluate("window.texts"))

    def wait_for_end(self) -> None:
        """Wait until the node has shown the start of a run, and then another text."""
        self.page.wait_for_function(
            """() => window.texts.some((text) => text.startsWith("Looking"))
              && !window.texts.at(-1).startsWith("Looking")"""
        )

    def is_pink(self, x: int, y: int) -> bool:
        """Tell whether the mask shows at a pixel of the photo."""
        red, green, blue = self.page.evaluate(
            """([x, y]) => {
              const canvas = document.querySelector(".artmancer-picture > canvas");
              const words = canvas.parentElement.querySelector(".artmancer-words");
              const share = 1 - words.offsetHeight / canvas.parentElement.clientHeight;
              const height = canvas.height * share;
              const scale = Math.min(canvas.width / 600, height / 400);
              const left = (canvas.width - 600 * scale) / 2;
              const top = (height - 400 * scale) / 2;
              const context = canvas.getContext("2d");
              const [column, row] = [left + x * scale, top + y * scale];
              return [...context.getImageData(column, row, 1, 1).data].slice(0, 3);
            }""",
            [x, y],
        )
        return bool(red > blue > green + 5)  # nothing in the photo itself has more blue than green


def add_smart_mask(page: Any, comfyui: ComfyUI) -> Picker:
    """Add Load Image with the photo and Smart Mask to the open graph."""
    # Without a request, since the browser's event loop runs in this thread.
    folder = comfyui.base / "input"
    folder.mkdir(exist_ok=True)
    shutil.copy(EXAMPLES / "coffee.png", folder)
    page.evaluate(ADD_SMART_MASK, "coffee.png")
    return Picker(page)


Watch = Callable[[Any], list[str]]


NO_RUN = """async () => {
  const { queue_running, queue_pending } = await (await fetch("/queue")).json();
  return !queue_running.length && !queue_pending.length
    && !document.querySelector('.artmancer-picture[aria-busy="true"]');
}"""
"""Condition that no run is under way and no Smart Mask waits for the end of one.

ComfyUI would show the result in a node with the same id in the graph of the next test.
"""


def wait_for_runs(page: Any) -> None:
    """Wait until ComfyUI has run everything and the page has shown it."""
    wait_until(page, NO_RUN)
    settle(page)


@pytest.fixture
def picker(page: Any, comfyui: ComfyUI, watch: Watch) -> Iterator[Picker]:
    watch(page)
    yield add_smart_mask(page, comfyui)
    wait_for_runs(page)


@pytest.fixture
def picker_in_both(page: Any, vue: bool, comfyui: ComfyUI, watch: Watch) -> Iterator[Picker]:
    """Smart Mask in each of ComfyUI's renderers."""
    watch(page)
    yield add_smart_mask(page, comfyui)
    wait_for_runs(page)


@pytest.fixture
def own_errors(own_page: Any, watch: Watch) -> list[str]:
    return watch(own_page)


@pytest.fixture
def own_picker(own_page: Any, comfyui: ComfyUI, own_errors: list[str]) -> Picker:
    """Smart Mask in a page that no other test uses."""
    return add_smart_mask(own_page, comfyui)


def take_screenshot(page: Any, name: str) -> None:
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}.png")


def test_a_click_shows_the_object_and_more_clicks_change_it(
    picker_in_both: Picker, request: pytest.FixtureRequest
) -> None:
    picker = picker_in_both
    picker.click(270, 60)
    picker.wait_for("Score")
    assert picker.prompt == {"points": [[270, 60]], "labels": [1]}
    assert picker.is_pink(290, 80) and not picker.is_pink(30, 380)
    take_screenshot(picker.page, f"smart-mask-{request.node.callspec.id}")

    picker.page.keyboard.down("Shift")
    picker.click(120, 230)
    picker.page.keyboard.up("Shift")
    picker.click(560, 40, button="right")
    assert picker.prompt["labels"] == [1, 0, 0]
    picker.wait_for("Score")

    picker.press("Control+z")
    assert len(picker.prompt["points"]) == 2
    picker.press("c")
    assert picker.value("candidate") == 1
    picker.wait_for("candidate 2 of")
    picker.press("Delete")
    assert picker.prompt == {} and picker.value("candidate") == 0


@pytest.mark.parametrize("key", ["Control+y", "Control+Shift+Z"])
def test_redo_brings_back_what_was_undone(picker: Picker, key: str) -> None:
    picker.click(270, 60)
    picker.click(120, 230)
    clicks = picker.prompt
    picker.press("Control+z", "Control+z")
    assert picker.prompt == {}
    picker.press(key, key, key)
    assert picker.prompt == clicks
    picker.press("Control+z")
    picker.click(300, 300)
    picker.press(key)
    assert picker.prompt["points"] == [[270, 60], [300, 300]], "a new click ends redo"


def test_after_the_last_candidate_the_number_is_0_again(picker: Picker) -> None:
    picker.click(270, 60)
    picker.wait_for("candidate 1 of")
    text = picker.element.locator(".artmancer-words").text_content()
    count = int(text.split(" of ")[1].split()[0])
    for number in [*range(1, count), 0]:
        picker.press("c")
        assert picker.value("candidate") == number


def test_a_click_beside_the_photo_says_so(picker_in_both: Picker) -> None:
    picker = picker_in_both
    # The classic renderer moves the picture when it draws.
    picker.page.evaluate(f"{PICK}.setSize([900, 500]); window.app.canvas.setDirty(true, true)")
    settle(picker.page)
    left, top = picker.position(-10, 200)
    picker.page.mouse.click(left, top)
    picker.wait_for("outside the photo")
    assert picker.prompt == {}


def test_the_list_of_keys_has_buttons_for_a_screen_without_keys(picker: Picker) -> None:
    picker.click(270, 60)
    picker.element.get_by_role("button", name="?").click()
    for name, points in (("undo", 0), ("redo", 1), ("clear", 0)):
        picker.element.get_by_role("button", name=name, exact=True).click()
        assert len(picker.prompt.get("points", [])) == points
    picker.page.keyboard.press("Control+z")
    assert len(picker.prompt["points"]) == 1, "the keys still reach the picture"
    take_screenshot(picker.page, "smart-mask-keys")


def test_a_finger_taps_the_object_and_rests_on_what_is_not(browser: Any, comfyui: ComfyUI) -> None:
    page = open_editor(browser, comfyui, has_touch=True)
    picker = add_smart_mask(page, comfyui)
    session = page.context.new_cdp_session(page)

    def touch(kind: str, *places: tuple[float, float]) -> None:
        points = [
            {"x": left, "y": top, "id": index}
            for index, (left, top) in enumerate(picker.position(*place) for place in places)
        ]
        session.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": points})

    def set_long_press(milliseconds: int) -> None:
        """Set the time after which a finger rests: a busy machine takes longer for a tap."""
        page.evaluate(
            """(milliseconds) => {
              window.realTimeout ??= window.setTimeout;
              window.setTimeout = (act, delay, ...rest) =>
                window.realTimeout(act, delay === 500 ? milliseconds : delay, ...rest);
            }""",
            milliseconds,
        )

    set_long_press(TIMEOUT_MS)
    touch("Start", (270, 60))
    touch("Move", (274, 62))
    touch("End")
    assert picker.prompt == {"points": [[270, 60]], "labels": [1]}
    set_long_press(500)
    touch("Start", (120, 230))
    page.wait_for_function(
        f"JSON.parse({PICK}.widgets.find(({{ name }}) => name === 'prompt').value).labels[1] === 0"
    )
    touch("End")
    assert picker.prompt["labels"] == [1, 0]
    set_long_press(TIMEOUT_MS)
    touch("Start", (200, 100), (300, 200))
    touch("End")
    assert picker.prompt["labels"] == [1, 0], "two fingers are no click"
    page.close()


def test_a_drag_is_a_box(picker_in_both: Picker) -> None:
    picker = picker_in_both
    mouse = picker.page.mouse
    mouse.move(*picker.position(60, 10))
    mouse.down()
    mouse.move(*picker.position(300, 200))
    mouse.move(*picker.position(500, 395))
    mouse.up()
    assert picker.prompt["bbox"] == pytest.approx([60, 10, 500, 395], abs=2)
    picker.wait_for("Score")
    assert picker.is_pink(150, 250) and not picker.is_pink(560, 300)


def test_the_keyboard_alone_places_a_point(picker_in_both: Picker) -> None:
    picker_in_both.element.locator("input").focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowUp", "Enter"):
        picker_in_both.page.keyboard.press(key)
    assert picker_in_both.prompt == {"points": [[324, 192]], "labels": [1]}


def test_the_picture_keeps_its_height_in_a_low_node(picker_in_both: Picker) -> None:
    page = picker_in_both.page
    page.evaluate(f"{PICK}.setSize([480, 100])")
    settle(page)
    assert picker_in_both.element.evaluate("(element) => element.clientHeight") >= 240


def test_a_click_hits_the_same_pixel_when_zoomed_and_on_a_sharp_screen(
    browser: Any, comfyui: ComfyUI
) -> None:
    page = open_editor(browser, comfyui, device_scale_factor=2)
    picker = add_smart_mask(page, comfyui)
    for scale in (0.6, 1.4):
        page.evaluate(
            """(scale) => {
              const { canvas } = window.app;
              Object.assign(canvas.ds, { scale, offset: [-300, 0] });
              canvas.setDirty(true, true);
            }""",
            scale,
        )
        settle(page)
        picker.click(200, 150)
        x, y = picker.prompt["points"][-1]
        assert abs(x - 200) <= 1 / scale + 1 and abs(y - 150) <= 1 / scale + 1
    page.close()


def load_again(page: Any) -> None:
    """Load the page again, and open the graph that it had."""
    saved = page.evaluate("JSON.stringify(window.app.graph.serialize())")
    page.reload()
    page.wait_for_function(RELOADED)
    page.evaluate("(saved) => window.app.loadGraphData(JSON.parse(saved))", saved)


def test_the_points_survive_saving_and_loading(own_picker: Picker) -> None:
    own_picker.click(270, 60)
    own_picker.wait_for("Score")
    page = own_picker.page
    load_again(page)
    assert Picker(page, "Score").prompt == {"points": [[270, 60]], "labels": [1]}


def test_the_mask_shows_again_after_a_reload(own_picker: Picker) -> None:
    own_picker.click(270, 60)
    own_picker.wait_for("Score")
    page = own_picker.page
    load_again(page)
    again = Picker(page, "Score")
    assert again.is_pink(290, 80) and not again.is_pink(30, 380)


def choose_photo(page: Any, name: str) -> None:
    """Choose a file in Load Image."""
    page.evaluate(
        f"""(name) => {{
          const load = {GRAPH}.nodes.find((node) => node.comfyClass === "LoadImage");
          const file = load.widgets.find((widget) => widget.name === "image");
          file.value = name;
          file.callback?.(name);
        }}""",
        name,
    )


def test_another_photo_has_no_clicks(picker_in_both: Picker, comfyui: ComfyUI) -> None:
    picker = picker_in_both
    picker.click(270, 60)
    picker.wait_for("Score")
    painted = comfyui.base / "input" / "clipspace"
    painted.mkdir(exist_ok=True)
    shutil.copy(EXAMPLES / "coffee_painted.png", painted / "clipspace-painted-masked-1.png")
    shutil.copy(EXAMPLES / "astronaut.png", comfyui.base / "input")
    choose_photo(picker.page, "clipspace/clipspace-painted-masked-1.png [input]")
    picker.wait_for("Click: the object.")
    assert picker.prompt["points"] == [[270, 60]], "the same photo, with a painted mask"
    choose_photo(picker.page, "astronaut.png")
    picker.page.wait_for_function(
        f"() => !{PICK}.widgets.find((widget) => widget.name === 'prompt').value"
    )
    picker.wait_for("Click: the object.")


def test_no_text_lies_over_the_photo(picker_in_both: Picker) -> None:
    picker = picker_in_both
    picker.page.evaluate(f"{PICK}.setSize([600, 560])")
    settle(picker.page)
    words = picker.element.locator(".artmancer-words").bounding_box()
    assert picker.position(300, 399)[1] <= words["y"]


def test_only_the_picture_counts_the_candidates(picker_in_both: Picker) -> None:
    picker = picker_in_both
    assert not picker.page.evaluate(
        f"""{PICK}.widgets.some((widget) => widget.name === "candidate"
          && !(window.LiteGraph.vueNodesMode ? widget.options.hidden : widget.hidden))"""
    )
    picker.click(270, 60)
    picker.wait_for("candidate 1 of")


def test_a_click_outside_the_box_chooses_another_object(picker_in_both: Picker) -> None:
    picker = picker_in_both
    mouse = picker.page.mouse
    mouse.move(*picker.position(330, 250))
    mouse.down()
    mouse.move(*picker.position(420, 340))
    mouse.move(*picker.position(430, 350))
    mouse.up()
    picker.wait_for("Score")
    picker.click(270, 60)
    assert picker.prompt == {"points": [[270, 60]], "labels": [1]}
    picker.wait_for("Outside the box: a new choice. Score")
    wait_for_runs(picker.page)
    assert picker.is_pink(290, 80)
    picker.press("Control+z")
    assert "bbox" in picker.prompt


def test_the_question_mark_lists_the_keys(picker_in_both: Picker) -> None:
    keys = picker_in_both.element.locator(".artmancer-keylist")
    assert not keys.is_visible()
    picker_in_both.element.get_by_role("button", name="?").click()
    assert "the next candidate" in keys.inner_text() and keys.is_visible()
    picker_in_both.press("Escape")
    assert not keys.is_visible()
    picker_in_both.press("?")
    assert keys.is_visible() and picker_in_both.prompt == {}


ZOOM = "window.app.canvas.ds.scale"
OFFSET = "[...window.app.canvas.ds.offset]"


def test_the_wheel_and_the_middle_button_move_the_canvas(picker_in_both: Picker) -> None:
    page = picker_in_both.page
    zoom = page.evaluate(ZOOM)
    page.mouse.move(*picker_in_both.position(300, 200))
    page.mouse.wheel(0, -120)
    page.wait_for_function(f"{ZOOM} > {zoom}")
    settle(page)
    x, y = page.evaluate(OFFSET)
    left, top = picker_in_both.position(300, 200)
    page.mouse.move(left, top)
    page.mouse.down(button="middle")
    page.mouse.move(left + 20, top + 30)
    page.mouse.move(left + 40, top + 60)
    page.mouse.up(button="middle")
    settle(page)
    moved = page.evaluate(OFFSET)
    assert moved[0] > x and moved[1] > y
    assert picker_in_both.prompt == {}


def test_the_panel_leaves_the_picture_in_the_node(
    own_page: Any, comfyui: ComfyUI, own_errors: list[str]
) -> None:
    page = own_page
    picker = add_smart_mask(page, comfyui)
    width = picker.element.bounding_box()["width"]
    page.evaluate(f"window.app.canvas.selectNode({PICK})")
    if not page.locator("[aria-label='Toggle properties panel']").count():
        pytest.skip("this ComfyUI has no panel of a node's inputs")
    page.locator("[aria-label='Toggle properties panel']").first.click()
    panel = page.get_by_test_id("properties-panel")
    panel.get_by_text("drop_specks").first.wait_for()
    settle(page)
    assert picker.element.bounding_box()["width"] == pytest.approx(width, abs=2)
    assert not panel.get_by_text("picture", exact=True).count()


def test_a_click_runs_the_node_in_a_subgraph(picker: Picker) -> None:
    page = picker.page
    page.evaluate(
        """() => {
          const { app } = window;
          const items = new Set(app.graph.nodes);
          const { node } = app.graph.convertToSubgraph(items);
          app.canvas.openSubgraph(node.subgraph, node);
        }"""
    )
    inner = Picker(page)
    inner.click(270, 60)
    inner.wait_for("Score")


def test_a_smart_mask_in_a_subgraph_ends_with_its_graph(
    own_page: Any, comfyui: ComfyUI, own_errors: list[str]
) -> None:
    page = own_page
    page.evaluate(
        """() => {
          window.timers = new Set();
          const [start, stop] = [window.setInterval, window.clearInterval];
          window.setInterval = (...settings) => {
            const id = start(...settings);
            if (new Error().stack.includes("smart_mask.js")) window.timers.add(id);
            return id;
          };
          window.clearInterval = (id) => {
            window.timers.delete(id);
            stop(id);
          };
        }"""
    )
    add_smart_mask(page, comfyui)
    page.evaluate("window.app.graph.convertToSubgraph(new Set(window.app.graph.nodes))")
    saved = page.evaluate("JSON.stringify(window.app.graph.serialize())")
    for _ in range(3):
        page.evaluate("(saved) => window.app.loadGraphData(JSON.parse(saved))", saved)
        assert page.evaluate("window.timers.size") >= 1
    page.wait_for_function("window.timers.size === 1")


def test_a_node_that_comfyui_refuses_to_run_shows_its_help_again(
    own_picker: Picker, own_errors: list[str]
) -> None:
    own_picker.page.evaluate(f"{PICK}.disconnectInput(0)")
    own_picker.record_texts()
    own_picker.click(270, 60)
    own_picker.wait_for_end()
    own_picker.wait_for("Click: the object.")
    assert all("PromptExecutionError" in error for error in own_errors), "logged by ComfyUI itself"
    own_errors.clear()


def test_a_run_that_comfyui_fails_to_queue_is_not_the_last(
    own_picker: Picker, own_errors: list[str]
) -> None:
    own_picker.page.evaluate(
        """() => {
          const { app } = window, own = app.graphToPrompt;
          app.graphToPrompt = async () => {
            app.graphToPrompt = own;
            throw new Error("no prompt from this graph");
          };
        }"""
    )
    own_picker.record_texts()
    own_picker.click(270, 60)
    own_picker.wait_for_end()
    own_errors.clear()
    own_picker.click(120, 230)
    own_picker.wait_for("Score")


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
    # The node compares its connected loader with the last one twice a second.
    page.wait_for_timeout(1000)
    picker.click(270, 60)
    picker.wait_for("Score")
    page.evaluate(f"window.app.graph.nodes[0].connect(0, {PICK}, 0)")
    picker.wait_for("Click: the object.")
    picker.click(120, 230)
    assert picker.prompt["points"][-1] == pytest.approx([120, 230], abs=2)


QUEUE_FAILING_JOB = """async () => {
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
  await window.app.queuePrompt(0, 1, [String(compare.id)]);
}"""


def test_the_failure_of_another_job_is_not_its_own(own_picker: Picker) -> None:
    own_picker.record_texts()
    own_picker.page.evaluate(QUEUE_FAILING_JOB)
    # ComfyUI's message about the failure may cover the node: the keys reach it all the same.
    own_picker.press("ArrowRight", "Enter")
    own_picker.wait_for("Score")
    assert [text.split(" ")[0] for text in own_picker.texts] == ["Looking", "Score"]
    outcome = own_picker.page.evaluate(
        """async () => Object.values(await (await fetch("/history")).json())
          .at(-2).status.status_str"""
    )
    assert outcome == "error"


OUT_OF_RANGE = """'{"points": [[9999, 1]]}'"""


def test_an_error_of_the_run_shows_in_the_node(own_picker: Picker) -> None:
    own_picker.page.evaluate(
        f"{PICK}.widgets.find((widget) => widget.name === 'prompt').value = {OUT_OF_RANGE}"
    )
    own_picker.press("c")
    own_picker.wait_for("lies outside the image of 600x400")


QUEUE_HOLD = """async (path) => {
  const { api } = window.comfyAPI.api;
  await api.queuePrompt(0, { output: { 1: { class_type: "Hold", inputs: { path } } } });
}"""

WAITING_JOB = """async () => {
  const { queue_pending } = await (await fetch("/queue")).json();
  return queue_pending.length ? queue_pending[0][1] : null;
}"""


def test_an_empty_queue_before_its_own_run_does_not_end_the_run(
    own_picker: Picker, tmp_path: Path
) -> None:
    page = own_picker.page
    page.evaluate(QUEUE_HOLD, str(tmp_path / "released"))
    page.evaluate(
        f"{PICK}.widgets.find((widget) => widget.name === 'prompt').value = {OUT_OF_RANGE}"
    )
    own_picker.press("c")
    wait_until(page, WAITING_JOB)
    settle(page)
    # ComfyUI's report of the end of an earlier job may arrive after this job was queued.
    page.evaluate(
        """() => window.comfyAPI.api.api.dispatchEvent(
          new CustomEvent("status", { detail: { exec_info: { queue_remaining: 0 } } }))"""
    )
    (tmp_path / "released").touch()
    own_picker.wait_for("lies outside the image of 600x400")


def test_a_run_ends_although_its_end_event_was_lost(own_picker: Picker) -> None:
    own_picker.page.evaluate(
        f"""() => {{
          {PICK}.widgets.find((widget) => widget.name === 'prompt').value = {OUT_OF_RANGE};
          window.comfyAPI.api.api.addEventListener(
            "execution_error", (event) => event.stopImmediatePropagation(), {{ capture: true }});
        }}"""
    )
    own_picker.press("c")
    own_picker.wait_for("lies outside the image of 600x400")


def test_a_run_that_is_removed_from_the_queue_ends(own_picker: Picker, tmp_path: Path) -> None:
    page = own_picker.page
    page.evaluate(QUEUE_HOLD, str(tmp_path / "released"))
    own_picker.record_texts()
    own_picker.click(270, 60)
    job = wait_until(page, WAITING_JOB)
    page.evaluate("(id) => window.comfyAPI.api.api.deleteItem('queue', id)", job)
    (tmp_path / "released").touch()
    own_picker.wait_for_end()
    own_picker.wait_for("Click: the object.")
    own_picker.click(120, 230)
    own_picker.wait_for("Score")


def test_the_slider_moves_over_an_edit(
    page: Any, comfyui: ComfyUI, watch: Watch, vue: bool
) -> None:
    watch(page)
    # An older ComfyUI does not show again what it has in its cache.
    page.request.post(f"{comfyui.url}/free", data={"free_memory": True})
    page.evaluate(
        """async () => {
          const answer = await fetch("/api/workflow_templates/artmancer/5%20White%20balance.json");
          const graph = await answer.json();
          await window.app.loadGraphData(graph, true, true, "white_balance");
          await window.app.queuePrompt(0, 1);
        }"""
    )
    slider = page.locator(".artmancer-picture[role=slider]").first
    slider.locator(".artmancer-words", has_text="before | after").wait_for()
    saved = page.evaluate(f"{GRAPH}.serialize().nodes")
    template = json.loads((ROOT / "workflows" / "5 White balance.json").read_text())["nodes"]
    values, template_values = (
        [node["widgets_values"] for node in nodes if "EditSampler" in node["type"]]
        for nodes in (saved, template)
    )
    assert values == template_values, "the slider is not among the saved values"
    settle(page)
    box = slider.locator("img").first.bounding_box()
    line = slider.locator(".artmancer-stage > div").bounding_box()
    assert line["y"] >= box["y"] - 1
    assert line["y"] + line["height"] <= box["y"] + box["height"] + 1
    natural = slider.locator("img").first.evaluate("({naturalWidth: w, naturalHeight: h}) => w / h")
    assert box["width"] / box["height"] == pytest.approx(natural, rel=0.02)
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + box["height"] / 2)
    page.mouse.up()
    assert abs(int(slider.get_attribute("aria-valuenow")) - 25) <= 2
    page.keyboard.press("ArrowRight")
    assert abs(int(slider.get_attribute("aria-valuenow")) - 27) <= 2
    clip = slider.locator("img").nth(1).evaluate("(image) => image.style.clipPath")
    assert clip.startswith("inset(0px 7")
    take_screenshot(page, f"before-after-{'vue' if vue else 'canvas'}")


ADD_EDIT_SAMPLER = """() => {
  const { app, LiteGraph } = window;
  const [sampler, loader] = ["ArtMancer_EditSampler", "ArtMancer_LoadEditor"].map((type) => {
    const node = LiteGraph.createNode(type);
    app.graph.add(node);
    return node;
  });
  [sampler.pos, loader.pos] = [[500, 100], [100, 100]];
  Object.assign(app.canvas.ds, { scale: 1, offset: [0, 0] });
}"""

CONNECT_EDITOR = """() => {
  const [sampler, loader] = window.app.graph.nodes;
  loader.connect(0, sampler, sampler.inputs.findIndex((input) => input.name === "editor"));
}"""

CHOOSE_EDITOR = """(value) => {
  const editor = window.app.graph.nodes[1].widgets[0];
  editor.options.values.push(value);
  editor.value = value;
  editor.callback(value);
}"""


def shown_inputs(page: Any, vue: bool) -> list[str]:
    """Return the inputs that a user sees in the first node of the graph."""
    settle(page)
    if vue:
        names = page.locator("[data-node-id='1']").inner_text().split("\n")
        labels = [name.strip() for name in names]
        return [name for name in EDIT_INPUTS if name in labels]
    node = "window.app.graph.getNodeById(1)"
    return list(
        page.evaluate(
            f"{node}.widgets.filter((widget) => {node}.isWidgetVisible(widget) && !widget.hidden)"
            ".map((widget) => widget.name)"
        )
    )


EDIT_INPUTS = ["prompt", "negative", "seed", "steps", "cfg", "match_colors", "transfer", "compile"]


def test_edit_sampler_shows_what_its_editor_uses(page: Any, watch: Watch, vue: bool) -> None:
    watch(page)
    page.evaluate(ADD_EDIT_SAMPLER)
    shown = shown_inputs(page, vue)
    assert {"prompt", "negative", "seed", "steps", "cfg", "match_colors"} <= set(shown)
    assert "compile" not in shown and "transfer" not in shown
    page.evaluate(CONNECT_EDITOR)
    shown = shown_inputs(page, vue)
    assert set(shown) & set(EDIT_INPUTS) == {"seed"}
    take_screenshot(page, f"edit-sampler-{'vue' if vue else 'canvas'}")
    page.evaluate(CHOOSE_EDITOR, "a Qwen model")
    assert {"prompt", "negative", "steps", "cfg"} <= set(shown_inputs(page, vue))


def test_the_button_of_the_classic_renderer_shows_the_other_inputs(page: Any, watch: Watch) -> None:
    watch(page)
    page.evaluate(ADD_EDIT_SAMPLER)
    page.evaluate(CONNECT_EDITOR)
    settle(page)
    node = "window.app.graph.getNodeById(1)"
    button = f"{node}.widgets.find((widget) => widget.name === 'advanced')"
    height = page.evaluate(f"{node}.size[1]")

    def press() -> None:
        y = page.evaluate(f"{node}.pos[1] + {button}.y + 10")
        page.mouse.click(page.evaluate(f"{node}.pos[0] + {node}.size[0] / 2"), y)
        settle(page)

    press()
    assert set(EDIT_INPUTS) <= set(shown_inputs(page, False))
    assert page.evaluate(f"{button}.label") == "Hide advanced inputs"
    taller = page.evaluate(f"{node}.size[1]")
    assert taller > height + 200
    press()
    assert not {"prompt", "compile"} & set(shown_inputs(page, False))
    assert page.evaluate(f"{node}.size[1]") == pytest.approx(height, abs=1)


def test_the_nodes_of_an_edit_become_a_subgraph(
    own_page: Any, own_errors: list[str], comfyui: ComfyUI
) -> None:
    page = own_page
    commands = "window.app.extensionManager?.command?.commands?.map((command) => command.id) ?? []"
    if "Comfy.Graph.ConvertToSubgraph" not in page.evaluate(commands):
        pytest.skip("this ComfyUI has no subgraphs")
    page.evaluate(ADD_EDIT_SAMPLER)
    page.evaluate(CONNECT_EDITOR)
    settle(page)
    page.evaluate(
        """async () => {
          const { canvas, extensionManager, graph } = window.app;
          for (const node of graph.nodes) canvas.select(node);
          await extensionManager.command.execute("Comfy.Graph.ConvertToSubgraph");
        }"""
    )
    settle(page)
    inner = page.evaluate(
        """() => window.app.graph.nodes.map((node) => node.subgraph?.nodes.map((inner) =>
          [inner.comfyClass, inner.widgets.filter((widget) => !widget.options.advanced).length]))"""
    )
    assert [sorted(name for name, _ in nodes) for nodes in inner] == [
        ["ArtMancer_EditSampler", "ArtMancer_LoadEditor"]
    ]


def test_folding_changes_no_saved_value(page: Any, watch: Watch) -> None:
    watch(page)
    page.evaluate(ADD_EDIT_SAMPLER)
    page.evaluate(CONNECT_EDITOR)
    node = "window.app.graph.getNodeById(1)"
    page.evaluate(f"{node}.widgets.find((widget) => widget.name === 'steps').value = 7")
    saved = page.evaluate("JSON.stringify(window.app.graph.serialize())")
    values = page.evaluate(f"{node}.serialize().widgets_values")
    assert values[:5] == ["", " ", 0, "randomize", 7] and len(values) == 17
    page.evaluate("(saved) => window.app.loadGraphData(JSON.parse(saved))", saved)
    assert page.evaluate(f"{node}.serialize().widgets_values") == values
    sent = page.evaluate("async () => (await window.app.graphToPrompt()).output[1].inputs")
    assert sent["steps"] == 7 and "advanced" not in sent


def test_a_pasted_node_keeps_its_size(page: Any, watch: Watch, vue: bool) -> None:
    watch(page)
    page.evaluate(ADD_EDIT_SAMPLER)
    page.evaluate(CONNECT_EDITOR)
    settle(page)
    page.evaluate(
        """() => {
          const { canvas, graph } = window.app;
          graph.getNodeById(1).setSize([340, 800]);
          canvas.selectItems(graph.nodes);
          canvas.copyToClipboard();
          canvas.pasteFromClipboard();
        }"""
    )
    settle(page)
    heights = page.evaluate(
        """() => window.app.graph.nodes
          .filter((node) => node.comfyClass === "ArtMancer_EditSampler")
          .map((node) => node.size[1])"""
    )
    assert len(heights) == 2 and heights[1] == pytest.approx(heights[0], abs=1)


def test_the_slider_of_a_new_node_fits_into_it(page: Any, watch: Watch, vue: bool) -> None:
    watch(page)
    page.evaluate(ADD_EDIT_SAMPLER)
    settle(page)
    slider = page.locator(".artmancer-picture").first.bounding_box()
    node = "window.app.graph.getNodeById(1)"
    bottom = page.evaluate(f"{node}.pos[1] + {node}.size[1]")
    if vue:
        box = page.locator("[data-node-id='1']").bounding_box()
        bottom = box["y"] + box["height"]
    assert slider["y"] + slider["height"] <= bottom


RECORD_CANVAS_TEXTS = """() => {
  const texts = new Set();
  const { fillText } = CanvasRenderingContext2D.prototype;
  CanvasRenderingContext2D.prototype.fillText = function (text, ...rest) {
    texts.add(text);
    return fillText.call(this, text, ...rest);
  };
  window.canvasTexts = texts;
}"""


def test_every_text_box_says_its_name(own_page: Any, own_errors: list[str]) -> None:
    page = own_page
    page.evaluate(RECORD_CANVAS_TEXTS)
    page.evaluate(ADD_EDIT_SAMPLER)
    settle(page)
    page.evaluate("window.app.canvas.draw(true, true)")
    boxes = page.locator("textarea.comfy-multiline-input").all()
    assert len(boxes) == 2
    for box, name in zip(boxes, ("prompt", "negative"), strict=True):
        shows_placeholder = not box.input_value() and box.get_attribute("placeholder") == name
        assert shows_placeholder or page.evaluate(f"window.canvasTexts.has({name!r})"), name


@pytest.mark.parametrize("fades", [True, False], ids=["shadow", "no shadow"])
def test_shadow_mask_says_what_it_found(
    own_page: Any, comfyui: ComfyUI, own_errors: list[str], fades: bool
) -> None:
    photo, mask = ("coffee.png", "coffee_mask.png")
    for name in (photo, mask):
        shutil.copy(EXAMPLES / name, comfyui.base / "input")
    page = own_page
    page.evaluate(
        """async ([photo, mask, reach]) => {
          const { app, LiteGraph } = window;
          const [load, loadMask, shadow, show] = [
            "LoadImage", "LoadImageMask", "ArtMancer_ShadowMask", "MaskPreview",
          ].map((type) => {
            const node = LiteGraph.createNode(type);
            app.graph.add(node);
            return node;
          });
          load.widgets[0].value = photo;
          loadMask.widgets[0].value = mask;
          loadMask.widgets[1].value = "red";
          shadow.widgets[0].value = reach;
          load.connect(0, shadow, 0);
          loadMask.connect(0, shadow, 1);
          shadow.connect(1, show, 0);
          await app.queuePrompt(0, 1);
        }""",
        [photo, mask, 1.0 if fades else 0.1],
    )
    wait_until(page, NO_RUN)
    page.wait_for_function(
        """() => /^(shadow: \\d+\\.\\d% of the photo|no shadow found)$/.test(
          window.app.graph.nodes[2].widgets.find((widget) => /text/.test(widget.name))?.value)"""
    )


def test_the_sentence_of_an_error_shows_without_a_click(own_page: Any, comfyui: ComfyUI) -> None:
    shutil.copy(EXAMPLES / "coffee.png", comfyui.base / "input")
    page = own_page
    page.evaluate(
        """async () => {
          const name = encodeURIComponent("1 Remove an object (no model).json");
          const answer = await fetch(`/api/workflow_templates/artmancer/${name}`);
          await window.app.loadGraphData(await answer.json(), true, true, "removal");
        }"""
    )
    choose_photo(page, "coffee.png")  # has no mask
    page.evaluate("window.app.queuePrompt(0, 1)")
    sentence = page.locator(".p-toast-message", has_text="A mask of 64x64 means that none was")
    sentence.wait_for()
    details = page.get_by_role("button", name="View details")
    details.wait_for()
    settle(page)
    box = details.bounding_box()
    assert box["y"] + box["height"] <= sentence.bounding_box()["y"], "nor does it cover a button"


def test_the_settings_set_the_values_of_new_nodes(own_page: Any, own_errors: list[str]) -> None:
    page = own_page
    values = page.evaluate(
        """async () => {
          const { app, LiteGraph } = window;
          const set = (id, value) =>
            app.ui.settings.setSettingValueAsync(`ArtMancer.${id}`, value);
          const make = (type) => LiteGraph.createNode(`ArtMancer_${type}`);
          const value = (node, name) => node.widgets.find((widget) => widget.name === name)?.value;
          const read = () => [
            value(make("LoadEditor"), "editor"),
            value(make("SplitConditions"), "feather"),
            make("EditSampler").widgets.some((widget) => widget.name === "before_after"),
          ];
          const before = read();
          await set("DefaultEditor", "lama");
          await set("DefaultFeather", 5);
          await set("Preview", "only in Compare");
          const after = read();
          for (const [id, old] of [["DefaultEditor", "draft"], ["DefaultFeather", 16],
            ["Preview", "in the node"]]) await set(id, old);
          return [before, after];
        }"""
    )
    assert values == [["draft", 16, True], ["lama", 5, False]]


def test_the_settings_page_shows_the_texts_of_the_locale(
    own_page: Any, own_errors: list[str]
) -> None:
    page = own_page
    page.keyboard.press("Control+,")
    page.get_by_text("ArtMancer", exact=True).first.click()
    texts = json.loads((ROOT / "locales" / "en" / "settings.json").read_text())
    for setting in texts.values():
        page.get_by_text(setting["name"], exact=True).first.wait_for()


APP = """async () => {
  const answer = await fetch("/api/workflow_templates/artmancer/6%20Click%20and%20remove.json");
  const graph = await answer.json();
  const id = (type) => String(graph.nodes.find((node) => node.type === type).id);
  graph.extra = { ...graph.extra, linearMode: false, linearData: {
    inputs: [[id("ArtMancer_SmartMask"), "picture"]], outputs: [id("SaveImage")] } };
  await window.app.loadGraphData(graph, true, true, "app");
}"""


def test_the_picture_shows_in_the_preview_of_the_app_builder(
    own_page: Any, own_errors: list[str]
) -> None:
    page = own_page
    page.evaluate(APP)
    enter = page.get_by_label("Enter app mode")
    if not enter.count():
        pytest.skip("this ComfyUI has no app builder")
    # ComfyUI shows a welcome over the page, the first time only.
    skip = page.get_by_role("button", name="Skip")
    page.add_locator_handler(skip, lambda: skip.click())
    enter.first.click()
    page.get_by_label("Build an app").first.click()
    for step in ("Choose inputs", "Choose outputs", "Review app layout"):
        page.locator("button", has_text=step).first.click()
        picture = page.get_by_test_id("builder-widget-item").locator(".artmancer-picture")
        if step == "Review app layout":
            picture.locator("visible=true").first.wait_for()


SEARCHES = [
    ("inpaint", {"Fill Hole", "Edit Sampler"}),
    ("erase", {"Fill Hole", "Edit Sampler"}),
    ("cut out", {"Remove Background", "Extract Object"}),
    ("mask", {"Smart Mask"}),
    ("segment", {"Smart Mask"}),
    ("sam", {"Smart Mask"}),
    ("add object", {"Edit Sampler"}),
    ("delete object", {"Fill Hole", "Edit Sampler"}),
    ("remove object", {"Fill Hole", "Edit Sampler"}),
    ("white balance", {"White Balance"}),
    ("generative fill", {"Fill Hole", "Edit Sampler"}),
    ("before after", {"Compare"}),
]


def test_the_node_search_finds_what_people_type(own_page: Any, own_errors: list[str]) -> None:
    from playwright.sync_api import TimeoutError

    page = own_page
    info = page.evaluate("async () => (await fetch('/object_info/LoadImage')).json()")
    if "search_aliases" not in info["LoadImage"]:
        pytest.skip("this ComfyUI knows no other words for a node")
    focused = "() => document.activeElement.tagName === 'INPUT'"
    repeat_until(page, lambda: page.mouse.dblclick(700, 500), focused)
    box = page.get_by_role("combobox", name="Add a node...")
    missing = {}
    for words, expected in SEARCHES:
        box.fill(words)
        results = page.get_by_test_id("result-item")
        try:
            for name in expected:
                results.filter(has_text=name).first.wait_for(timeout=60_000)
        except TimeoutError:
            missing[words] = results.all_inner_texts()
    assert missing == {}
