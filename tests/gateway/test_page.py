"""The gateway in a browser: its own page, and pages of other origins."""

import base64
import functools
import http.server
import io
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops
from support.editor import TIMEOUT_MS
from support.gateway import FakeHost, Served, encoded, free_port, settings
from support.paths import EXAMPLES, ROOT

SCREENSHOTS = ROOT / "build" / "page"
"""Folder of the screenshots, which nothing compares."""


@pytest.fixture(scope="module")
def real(comfyui: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A gateway with a real ComfyUI."""
    with Served(settings(tmp_path_factory.mktemp("gateway"), comfyui_url=comfyui.url)) as served:
        yield served.connected()


def open_page(browser: Any, url: str, **options: Any) -> tuple[Any, list[str]]:
    """Open a page; return it, and a list that collects its errors and requests to other hosts."""
    page = browser.new_page(**options)
    page.set_default_timeout(TIMEOUT_MS)
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "console",
        lambda message: problems.append(message.text) if message.type == "error" else None,
    )
    page.on(
        "request",
        lambda request: (
            None
            if request.url.startswith((url, "data:", "blob:"))
            else problems.append(request.url)
        ),
    )
    page.goto(url)
    return page, problems


def choose(page: Any, test_id: str, name: str) -> None:
    """Choose an example file in a file input."""
    page.get_by_test_id(test_id).set_input_files(EXAMPLES / f"{name}.png")


def take_screenshot(page: Any, name: str) -> None:
    """Save a screenshot of the whole page."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)


@pytest.mark.comfyui
@pytest.mark.browser
class TestPage:
    def test_an_edit_from_photo_to_download(
        self, real: Served, browser: Any, tmp_path: Path
    ) -> None:
        from playwright.sync_api import expect

        page, problems = open_page(browser, real.url, viewport={"width": 1280, "height": 900})
        choose(page, "photo-input", "coffee")
        canvas = page.get_by_test_id("canvas")
        expect(canvas).to_be_visible()
        box = canvas.bounding_box()
        page.get_by_test_id("tool-click").check()
        canvas.click(position={"x": box["width"] * 0.45, "y": box["height"] * 0.5})
        expect(page.get_by_test_id("mask-status")).not_to_be_empty()
        page.get_by_test_id("clear-mask").click()
        page.get_by_test_id("tool-brush").check()
        # Over plain HTTP from another machine, browsers do not have this method.
        page.evaluate("delete PointerEvent.prototype.getCoalescedEvents")
        spoon = [(0.61, 0.62), (0.58, 0.7), (0.62, 0.78), (0.66, 0.72), (0.62, 0.68), (0.62, 0.72)]
        for index, (x, y) in enumerate(spoon):
            page.mouse.move(box["x"] + box["width"] * x, box["y"] + box["height"] * y, steps=5)
            if index == 0:
                page.mouse.down()
        page.mouse.up()
        page.get_by_test_id("prompt").fill("remove the spoon")
        take_screenshot(page, "brushed")
        page.get_by_test_id("go").click()
        expect(page.get_by_test_id("result")).to_be_visible()
        expect(page.get_by_test_id("facts")).to_contain_text("draft")
        page.get_by_test_id("slider").fill("30")
        take_screenshot(page, "result")
        with page.expect_download() as download:
            page.get_by_test_id("download").click()
        assert download.value.suggested_filename == "coffee-edited.png"
        download.value.save_as(tmp_path / "result.png")
        before = Image.open(EXAMPLES / "coffee.png").convert("RGB")
        after = Image.open(tmp_path / "result.png")
        assert after.size == before.size
        changed = ImageChops.difference(before, after.convert("RGB")).getbbox()
        assert changed and changed[0] > before.width * 0.4 and changed[1] > before.height * 0.4
        assert not problems
        page.close()

    def test_each_variant_begins_with_its_tool_and_a_hint(self, real: Served, browser: Any) -> None:
        from playwright.sync_api import expect

        page, problems = open_page(browser, real.url, viewport={"width": 1280, "height": 800})
        choose(page, "photo-input", "coffee")
        expect(page.get_by_test_id("tool-click")).to_be_checked()
        page.get_by_test_id("task-insertion").check()
        expect(page.get_by_test_id("tool-brush")).to_be_checked()
        expect(page.get_by_test_id("mask-status")).to_have_text("Paint a place for it.")
        take_screenshot(page, "insertion")
        page.get_by_test_id("task-white-balance").check()
        expect(page.get_by_test_id("mask-status")).to_contain_text("the whole photo")
        page.get_by_test_id("task-removal").check()
        box = page.get_by_test_id("canvas").bounding_box()
        page.mouse.click(box["x"] + box["width"] * 0.61, box["y"] + box["height"] * 0.82)
        expect(page.get_by_test_id("undo")).to_be_enabled()
        # A mask that was begun keeps its tool.
        page.get_by_test_id("task-insertion").check()
        expect(page.get_by_test_id("tool-click")).to_be_checked()
        page.get_by_test_id("more").locator("summary").click()
        expect(page.get_by_test_id("input-quality")).to_be_in_viewport()
        page.mouse.move(1100, 400)
        page.mouse.wheel(0, -2000)
        expect(page.get_by_test_id("go")).to_be_in_viewport()
        take_screenshot(page, "more")
        assert not problems
        page.close()

    def test_the_page_works_on_a_phone(self, real: Served, browser: Any) -> None:
        from playwright.sync_api import expect

        phone = {
            "viewport": {"width": 390, "height": 844},
            "has_touch": True,
            "is_mobile": True,
            "color_scheme": "dark",
        }
        page, problems = open_page(browser, real.url, **phone)
        choose(page, "photo-input", "coffee")
        expect(page.get_by_test_id("canvas")).to_be_visible()
        # The tap waits until the photo has moved the button down.
        page.get_by_test_id("task-white-balance").tap()
        expect(page.get_by_test_id("task-white-balance")).to_be_checked()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        take_screenshot(page, "phone")
        page.get_by_test_id("go").tap()
        expect(page.get_by_test_id("result")).to_be_visible()
        take_screenshot(page, "phone-result")
        assert not problems
        page.close()


@pytest.fixture
def other_page(tmp_path: Path) -> Iterator[str]:
    """The address of a page on another origin than the gateway."""
    (tmp_path / "index.html").write_text("<!doctype html><title>another site</title>")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", free_port()), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://localhost:{server.server_port}"
    server.shutdown()


EDIT_SCRIPT = """async ([gateway, image, mask]) => {
    const headers = { "Content-Type": "application/json" };
    const body = JSON.stringify({ prompt: "remove", input_image: image, mask_image: mask });
    const answer = await fetch(`${gateway}/api/generate/async`, { method: "POST", headers, body });
    const { task_id } = await answer.json();
    const stream = new EventSource(`${gateway}/api/generate/stream/${task_id}`);
    const last = await new Promise((done, failed) => {
        stream.onmessage = ({ data }) => {
            const event = JSON.parse(data);
            if (event.status === "done") done(event);
        };
        stream.onerror = failed;
    });
    stream.close();
    return last.result;
}"""
"""JavaScript that submits an edit, waits for its end and returns the result image as base64."""


@pytest.mark.browser
def test_only_a_page_of_an_allowed_origin_can_edit(
    browser: Any, other_page: str, tmp_path: Path
) -> None:
    from playwright.sync_api import Error

    host = FakeHost()
    page = browser.new_page()
    page.goto(other_page)
    with Served(
        settings(tmp_path / "a", comfyui_url=host.url, allowed_origins=[other_page])
    ) as served:
        served.connected()
        result = page.evaluate(EDIT_SCRIPT, [served.url, encoded("coffee"), encoded("coffee_mask")])
        assert Image.open(io.BytesIO(base64.b64decode(result))).size == (600, 400)
    with Served(settings(tmp_path / "b", comfyui_url=host.url)) as served:
        served.connected()
        posted = len(host.fake.posted)
        with pytest.raises(Error, match=re.compile("Failed to fetch")):
            page.evaluate(EDIT_SCRIPT, [served.url, encoded("coffee"), encoded("coffee_mask")])
        assert len(host.fake.posted) == posted
    page.close()
