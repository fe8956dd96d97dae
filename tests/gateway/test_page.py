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
from support.gateway import FakeHost, Served, encoded, free_port, settings
from support.paths import EXAMPLES, ROOT

SHOTS = ROOT / "build" / "page"


@pytest.fixture(scope="module")
def real(comfyui: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with Served(settings(tmp_path_factory.mktemp("gateway"), comfyui_url=comfyui.url)) as served:
        yield served.connected()


def opened(browser: Any, url: str, **options: Any) -> tuple[Any, list[str]]:
    """A page, and what goes wrong in it."""
    page = browser.new_page(**options)
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "console", lambda message: wrong.append(message.text) if message.type == "error" else None
    )
    page.on(
        "request",
        lambda request: (
            None if request.url.startswith((url, "data:", "blob:")) else wrong.append(request.url)
        ),
    )
    page.goto(url)
    return page, wrong


def choose(page: Any, test_id: str, name: str) -> None:
    page.get_by_test_id(test_id).set_input_files(EXAMPLES / f"{name}.png")


def shoot(page: Any, name: str) -> None:
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}.png", full_page=True)


@pytest.mark.comfyui
@pytest.mark.browser
class TestPage:
    def test_the_whole_way_from_photo_to_download(
        self, real: Served, browser: Any, tmp_path: Path
    ) -> None:
        from playwright.sync_api import expect

        page, wrong = opened(browser, real.url, viewport={"width": 1280, "height": 900})
        choose(page, "photo-input", "coffee")
        canvas = page.get_by_test_id("canvas")
        expect(canvas).to_be_visible()
        box = canvas.bounding_box()
        page.get_by_test_id("tool-click").check()
        canvas.click(position={"x": box["width"] * 0.45, "y": box["height"] * 0.5})
        expect(page.get_by_test_id("mask-status")).not_to_be_empty(timeout=20_000)
        page.get_by_test_id("clear-mask").click()
        page.get_by_test_id("tool-brush").check()
        # As over plain HTTP from another machine, where browsers have it not.
        page.evaluate("delete PointerEvent.prototype.getCoalescedEvents")
        spoon = [(0.61, 0.62), (0.58, 0.7), (0.62, 0.78), (0.66, 0.72), (0.62, 0.68), (0.62, 0.72)]
        for index, (x, y) in enumerate(spoon):
            page.mouse.move(box["x"] + box["width"] * x, box["y"] + box["height"] * y, steps=5)
            if index == 0:
                page.mouse.down()
        page.mouse.up()
        page.get_by_test_id("prompt").fill("remove the spoon")
        shoot(page, "brushed")
        page.get_by_test_id("go").click()
        expect(page.get_by_test_id("result")).to_be_visible(timeout=60_000)
        expect(page.get_by_test_id("facts")).to_contain_text("draft", timeout=20_000)
        page.get_by_test_id("slider").fill("30")
        shoot(page, "result")
        with page.expect_download() as download:
            page.get_by_test_id("download").click()
        assert download.value.suggested_filename == "coffee-edited.png"
        download.value.save_as(tmp_path / "result.png")
        before, after = (
            Image.open(EXAMPLES / "coffee.png").convert("RGB"),
            Image.open(tmp_path / "result.png"),
        )
        assert after.size == before.size
        changed = ImageChops.difference(before, after.convert("RGB")).getbbox()
        assert changed and changed[0] > before.width * 0.4 and changed[1] > before.height * 0.4
        assert not wrong
        page.close()

    def test_each_task_begins_with_its_tool_and_says_what_to_mark(
        self, real: Served, browser: Any
    ) -> None:
        from playwright.sync_api import expect

        page, wrong = opened(browser, real.url, viewport={"width": 1280, "height": 800})
        choose(page, "photo-input", "coffee")
        expect(page.get_by_test_id("tool-click")).to_be_checked()
        page.get_by_test_id("task-insertion").check()
        expect(page.get_by_test_id("tool-brush")).to_be_checked()
        expect(page.get_by_test_id("mask-status")).to_have_text("Paint a place for it.")
        shoot(page, "insertion")
        page.get_by_test_id("task-white-balance").check()
        expect(page.get_by_test_id("mask-status")).to_contain_text("the whole photo")
        page.get_by_test_id("task-removal").check()
        box = page.get_by_test_id("canvas").bounding_box()
        page.mouse.click(box["x"] + box["width"] * 0.61, box["y"] + box["height"] * 0.82)
        expect(page.get_by_test_id("undo")).to_be_enabled()
        page.get_by_test_id("task-insertion").check()  # what is begun goes on
        expect(page.get_by_test_id("tool-click")).to_be_checked()
        page.get_by_test_id("more").locator("summary").click()
        expect(page.get_by_test_id("input-quality")).to_be_in_viewport()
        page.mouse.move(1100, 400)
        page.mouse.wheel(0, -2000)
        expect(page.get_by_test_id("go")).to_be_in_viewport()
        shoot(page, "more")
        assert not wrong
        page.close()

    def test_it_works_on_a_phone(self, real: Served, browser: Any) -> None:
        from playwright.sync_api import expect

        phone = {
            "viewport": {"width": 390, "height": 844},
            "has_touch": True,
            "is_mobile": True,
            "color_scheme": "dark",
        }
        page, wrong = opened(browser, real.url, **phone)
        choose(page, "photo-input", "coffee")
        expect(page.get_by_test_id("canvas")).to_be_visible()
        page.get_by_test_id("task-white-balance").tap()  # waits until the photo has pushed it down
        expect(page.get_by_test_id("task-white-balance")).to_be_checked()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        shoot(page, "phone")
        page.get_by_test_id("go").tap()
        expect(page.get_by_test_id("result")).to_be_visible(timeout=60_000)
        shoot(page, "phone-result")
        assert not wrong
        page.close()


@pytest.fixture
def other_page(tmp_path: Path) -> Iterator[str]:
    """A page on an origin of its own."""
    (tmp_path / "index.html").write_text("<!doctype html><title>another site</title>")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", free_port()), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://localhost:{server.server_port}"
    server.shutdown()


EDIT = """async ([gateway, image, mask]) => {
    const headers = { "Content-Type": "application/json" };
    const body = JSON.stringify({ prompt: "remove", input_image: image, mask_image: mask });
    const answer = await fetch(`${gateway}/api/generate/async`, { method: "POST", headers, body });
    const { task_id } = await answer.json();
    const stream = new EventSource(`${gateway}/api/generate/stream/${task_id}`);
    const last = await new Promise((done, failed) => {
        stream.onmessage = ({ data }) => {
            const said = JSON.parse(data);
            if (said.status === "done") done(said);
        };
        stream.onerror = failed;
    });
    stream.close();
    return last.result;
}"""


@pytest.mark.browser
def test_a_page_of_an_allowed_origin_edits_and_one_of_another_does_not(
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
        result = page.evaluate(EDIT, [served.url, encoded("coffee"), encoded("coffee_mask")])
        assert Image.open(io.BytesIO(base64.b64decode(result))).size == (600, 400)
    with Served(settings(tmp_path / "b", comfyui_url=host.url)) as served:
        served.connected()
        posted = len(host.fake.posted)
        with pytest.raises(Error, match=re.compile("Failed to fetch")):
            page.evaluate(EDIT, [served.url, encoded("coffee"), encoded("coffee_mask")])
        assert len(host.fake.posted) == posted
    page.close()
