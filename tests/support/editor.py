"""ComfyUI's graph editor in a browser."""

from collections.abc import Callable
from typing import Any

from .comfyui import ComfyUI

TIMEOUT_MS = 300_000
"""Longest wait for the page in milliseconds: far more than a busy machine needs."""

READY = """() => {
  // ComfyUI opens its default graph last.
  const types = window.LiteGraph?.registered_node_types;
  return !!types && "ArtMancer_LoadEditor" in types && window.app?.graph?.nodes.length > 0;
}"""

RELOADED = """() => {
  // A page that is loaded again opens the last graph, which may have no nodes.
  const types = window.LiteGraph?.registered_node_types;
  const { graph, extensionManager } = window.app ?? {};
  const opened = graph?.nodes.length > 0 || extensionManager?.workflow?.activeWorkflow;
  return !!types && "ArtMancer_LoadEditor" in types && !!opened;
}"""

EMPTY_GRAPH = """async (vue) => {
  const { app } = window;
  await app.ui.settings.setSettingValueAsync("Comfy.VueNodes.Enabled", vue);
  await app.loadGraphData({ version: 0.4, nodes: [], links: [], groups: [], config: {}, extra: {},
    last_node_id: 0, last_link_id: 0 });
}"""

SETTLED = """() => new Promise((resolve) => {
  let last = "", frames = 0;
  const look = () => {
    const { ds, graph } = window.app.canvas;
    const elements = [...document.querySelectorAll(".artmancer-picture, [data-node-id], img")];
    const boxes = elements.map((element) => element.getBoundingClientRect().toJSON());
    const loading = elements.some((element) => element.complete === false);
    const nodes = graph.nodes.map((node) => [...node.pos, ...node.size]);
    const state = JSON.stringify([ds.scale, ds.offset, boxes, nodes]);
    frames = state === last && !loading ? frames + 1 : 0;
    last = state;
    if (frames < 15) requestAnimationFrame(look);
    else resolve();
  };
  look();
})"""


def settle(page: Any) -> None:
    """Wait until no node has moved for 15 frames, and no image is loading."""
    page.evaluate(SETTLED)


WAIT_UNTIL = """async ([condition, timeout]) => {
  const ask = eval(condition);
  const end = performance.now() + timeout;
  while (performance.now() < end) {
    const value = await ask();
    if (value) return value;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  throw new Error(`waited in vain until ${condition}`);
}"""


def wait_until(page: Any, condition: str) -> Any:
    """Wait until the promise of a JavaScript function gives a true value, and return that.

    Playwright's `wait_for_function` does not wait for a promise: it takes the promise itself for
    the value, and that is always true.
    """
    return page.evaluate(WAIT_UNTIL, [condition, TIMEOUT_MS])


def repeat_until(page: Any, act: Callable[[], None], condition: str) -> None:
    """Act as a user would, again after five seconds without an effect: the page may not have
    listened yet.
    """
    from playwright.sync_api import TimeoutError

    for _ in range(TIMEOUT_MS // 5000):
        act()
        try:
            page.wait_for_function(condition, timeout=5000)
        except TimeoutError:
            continue
        return
    raise AssertionError(f"acted in vain until {condition}")


def open_editor(browser: Any, comfyui: ComfyUI, **options: Any) -> Any:
    """Open ComfyUI's editor in a page of its own, with an empty graph drawn on the canvas."""
    page = browser.new_page(viewport={"width": 1800, "height": 1000}, **options)
    page.set_default_timeout(TIMEOUT_MS)
    page.goto(comfyui.url)
    page.wait_for_function(READY)
    page.evaluate(EMPTY_GRAPH, False)
    return page
