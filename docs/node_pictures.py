"""Take screenshots of the nodes for their help pages in a running ComfyUI.

Usage: python docs/node_pictures.py http://127.0.0.1:8188 [NODE...]
"""

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.paths import NODES, ROOT

IDS = [name.removeprefix("ArtMancer_") for name in NODES]
"""The ids of the nodes without their prefix."""

SHOW_NODE = """async (id) => {
  const { app, LiteGraph } = window;
  await app.loadGraphData({ version: 0.4, nodes: [], links: [], groups: [], config: {}, extra: {},
    last_node_id: 0, last_link_id: 0 });
  const node = LiteGraph.createNode(`ArtMancer_${id}`);
  app.graph.add(node);
  node.pos = [0, 0];
  node.setSize([Math.max(360, node.size[0]), node.computeSize()[1]]);
  Object.assign(app.canvas.ds, { scale: 1, offset: [500, 120] });
  app.canvas.setDirty(true, true);
}"""
"""JavaScript that shows one node alone on the canvas."""

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
"""Commands of an installed Chromium; without one, Playwright's own Chromium runs."""


def main() -> None:
    """Take the screenshots."""
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    folder = ROOT / "web" / "docs" / "pictures"
    folder.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable, args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.goto(sys.argv[1])
        page.wait_for_function(
            "!!(window.app?.graph && window.LiteGraph?.registered_node_types['ArtMancer_Compare'])"
        )
        page.evaluate(
            "window.app.ui.settings.setSettingValueAsync('Comfy.TutorialCompleted', true)"
        )
        page.evaluate("window.app.ui.settings.setSettingValueAsync('Comfy.VueNodes.Enabled', true)")
        page.wait_for_timeout(1500)
        page.keyboard.press("Escape")
        for name in sys.argv[2:] or IDS:
            page.evaluate(SHOW_NODE, name)
            page.wait_for_timeout(1200)
            screenshot = page.locator("[data-node-id]").first.screenshot()
            Image.open(io.BytesIO(screenshot)).convert("RGB").save(
                folder / f"{name}.webp", quality=80
            )
        browser.close()


if __name__ == "__main__":
    main()
