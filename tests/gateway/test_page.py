"""The gateway in a browser: its own page, and pages of other origins."""

import base64
import functools
import http.client
import http.server
import io
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops
from support.editor import TIMEOUT_MS
from support.gateway import FakeHost, Served, encoded, free_port, settings
from support.odd_files import PROFILES, photo, tiff
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
        expect(page.get_by_test_id("verdict")).not_to_be_empty()
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
        expect(page.get_by_test_id("steps")).to_be_in_viewport()
        page.mouse.move(1100, 400)
        page.mouse.wheel(0, -2000)
        expect(page.get_by_test_id("go")).to_be_in_viewport()
        take_screenshot(page, "more")
        assert not problems
        page.close()

    def test_a_mask_over_all_but_the_middle_is_questioned(self, real: Served, browser: Any) -> None:
        from playwright.sync_api import expect

        page, problems = open_page(browser, real.url, viewport={"width": 1280, "height": 900})
        choose(page, "photo-input", "coffee")
        page.get_by_test_id("tool-brush").check()
        page.get_by_test_id("brush-size").evaluate(
            "(slider) => { slider.value = slider.max; slider.dispatchEvent(new Event('input')); }"
        )
        box = page.get_by_test_id("canvas").bounding_box()
        around = [(0.03, 0.03), (0.97, 0.03), (0.97, 0.97), (0.03, 0.97), (0.03, 0.03)]
        for index, (x, y) in enumerate(around):
            page.mouse.move(box["x"] + box["width"] * x, box["y"] + box["height"] * y, steps=5)
            if index == 0:
                page.mouse.down()
        page.mouse.up()
        expect(page.get_by_test_id("mask-status")).to_contain_text("the wrong way round?")
        page.get_by_test_id("undo").click()
        expect(page.get_by_test_id("mask-status")).not_to_contain_text("the wrong way round?")
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


PREFIX = "/artmancer"
"""Path under which the proxy serves the gateway."""


@contextmanager
def proxy(served: Served, requests: list[str]) -> Iterator[str]:
    """Serve a gateway under PREFIX, as a reverse proxy that strips its prefix; yield the page's
    address.

    Parameters
    ----------
    requests : gets the path of each request
    """
    port = int(served.url.rpartition(":")[2])

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            if not self.path.startswith(f"{PREFIX}/"):
                self.send_error(404)
                return
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            upstream = http.client.HTTPConnection("127.0.0.1", port)
            path = self.path.removeprefix(PREFIX)
            upstream.request(self.command, path, body or None, dict(self.headers))
            answer = upstream.getresponse()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name not in ("connection", "transfer-encoding"):
                    self.send_header(name, value)
            self.end_headers()
            # The browser leaves a stream when the job has ended.
            with suppress(ConnectionError):
                while chunk := answer.read1(2**16):
                    self.wfile.write(chunk)
            upstream.close()

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}{PREFIX}/"
    server.shutdown()
    server.server_close()


def edit(page: Any) -> None:
    """Correct the white balance of a photo on the page, and wait for the result."""
    from playwright.sync_api import expect

    choose(page, "photo-input", "coffee")
    page.get_by_test_id("task-white-balance").check()
    page.get_by_test_id("go").click()
    expect(page.get_by_test_id("result")).to_be_visible()
    expect(page.get_by_test_id("facts")).to_contain_text("Seed")


@pytest.mark.browser
def test_the_page_works_under_a_path_of_a_proxy(
    browser: Any, fake: FakeHost, tmp_path: Path
) -> None:
    from playwright.sync_api import expect

    requests: list[str] = []
    with (
        Served(settings(tmp_path, comfyui_url=fake.url)) as served,
        proxy(served.connected(), requests) as url,
    ):
        page, problems = open_page(browser, url)
        expect(page.locator("#health")).to_contain_text("Editor")
        edit(page)
        assert not problems
        page.close()
    assert any("/api/generate/stream/" in path for path in requests)
    assert not any("/api/generate/status/" in path for path in requests), "it polled"


DOCS_SCRIPT = """
    window.SwaggerUIBundle = async ({ url }) => {
      const address = new URL(url, location.href);
      const document = await (await fetch(address)).json();
      const server = new URL(document.servers[0].url, address);
      const answer = await fetch(server.href.replace(/[/]$/, "") + "/api/");
      window.message = (await answer.json()).message;
    };
    window.SwaggerUIBundle.presets = {};
    window.SwaggerUIBundle.SwaggerUIStandalonePreset = null;
"""
"""A small Swagger UI: it loads the document, and sends a request to the document's server, whose
address is relative to the document's (OpenAPI 3.1, 4.8.5).
"""


@pytest.mark.browser
def test_the_documentation_works_under_a_path_of_a_proxy(
    browser: Any, fake: FakeHost, tmp_path: Path
) -> None:
    requests: list[str] = []
    with (
        Served(settings(tmp_path, comfyui_url=fake.url)) as served,
        proxy(served.connected(), requests) as url,
    ):
        page = browser.new_page()
        page.route(
            re.compile("^https:"),
            lambda route: route.fulfill(body=DOCS_SCRIPT, content_type="text/javascript"),
        )
        for address in (f"{url}docs", f"{served.url}/docs"):
            page.goto(address)
            page.wait_for_function("window.message")
            assert "ArtMancer" in page.evaluate("window.message")
        page.close()
    assert requests == [f"{PREFIX}{path}" for path in ("/docs", "/openapi.json", "/api/")]


TOKEN = "sécret/&?=1"
"""A token that an address would show encoded, and that is not ASCII."""


class TokenPage:
    """The page of a gateway that requires TOKEN, in a tab of its own.

    Attributes
    ----------
    page : Playwright's page
    dialog : the question for the token
    addresses : the addresses of all requests
    problems : errors of the page, without the refusals of requests
    """

    def __init__(self, browser: Any, url: str) -> None:
        self.page, self._problems = open_page(browser, url)
        self.addresses: list[str] = []
        self.page.on("request", lambda request: self.addresses.append(request.url))
        self.dialog = self.page.get_by_role("dialog", name="Token required")

    @property
    def problems(self) -> list[str]:
        return [text for text in self._problems if "401 (Unauthorized)" not in text]

    def enter(self, token: str) -> None:
        """Type a token with the keyboard alone, where the focus is."""
        from playwright.sync_api import expect

        expect(self.dialog).to_be_visible()
        expect(self.dialog.get_by_label("Token", exact=True)).to_be_focused()
        self.page.keyboard.insert_text(token)
        self.page.keyboard.press("Enter")


@pytest.fixture
def guarded(fake: FakeHost, tmp_path: Path) -> Iterator[Served]:
    """A gateway that requires TOKEN."""
    with Served(settings(tmp_path, comfyui_url=fake.url, api_token=TOKEN)) as served:
        served.http.headers["authorization"] = f"Bearer {TOKEN}"
        yield served.connected()


@pytest.mark.browser
def test_the_page_asks_for_the_token_and_keeps_it_for_the_tab(
    browser: Any, guarded: Served
) -> None:
    from playwright.sync_api import expect

    tab = TokenPage(browser, guarded.url)
    expect(tab.dialog).to_have_accessible_description(re.compile("answers only with its token"))
    take_screenshot(tab.page, "token")
    tab.enter("wrong")
    expect(tab.page.get_by_role("alert").filter(has_text="does not accept")).to_be_visible()
    take_screenshot(tab.page, "token-wrong")
    tab.enter(f" {TOKEN} ")
    expect(tab.dialog).to_be_hidden()
    expect(tab.page.locator("#health")).to_contain_text("Editor")
    edit(tab.page)
    tab.page.reload()
    expect(tab.page.locator("#health")).to_contain_text("Editor")
    expect(tab.dialog).to_be_hidden()
    assert not tab.problems
    assert any("/api/generate/stream/" in address for address in tab.addresses)
    assert not any("cret" in address for address in tab.addresses)
    other_tab = TokenPage(browser, guarded.url)
    expect(other_tab.dialog).to_be_visible()
    tab.page.close()
    other_tab.page.close()


@pytest.mark.browser
def test_a_user_who_closed_the_question_for_the_token_is_asked_again(
    browser: Any, guarded: Served
) -> None:
    from playwright.sync_api import expect

    tab = TokenPage(browser, guarded.url)
    expect(tab.dialog).to_be_visible()
    tab.page.keyboard.press("Escape")
    expect(tab.dialog).to_be_hidden()
    expect(tab.page.locator("#health")).to_contain_text("requires a token")
    choose(tab.page, "photo-input", "coffee")
    tab.page.get_by_test_id("task-white-balance").check()
    tab.page.get_by_test_id("go").click()
    tab.page.get_by_test_id("token-cancel").click()
    expect(tab.page.get_by_test_id("error")).to_contain_text("requires a token")
    tab.page.get_by_test_id("go").click()
    tab.enter(TOKEN)
    expect(tab.page.get_by_test_id("facts")).to_contain_text("Seed")
    expect(tab.page.locator("#health")).to_contain_text("Editor")
    assert not tab.problems
    tab.page.close()


@pytest.mark.browser
def test_a_token_that_is_changed_meanwhile_is_asked_for_again(
    browser: Any, guarded: Served
) -> None:
    from playwright.sync_api import expect

    tab = TokenPage(browser, guarded.url)
    tab.enter(TOKEN)
    expect(tab.page.locator("#health")).to_contain_text("Editor")
    tab.page.evaluate("sessionStorage.setItem('artmancer.token', 'yesterday')")
    choose(tab.page, "photo-input", "coffee")
    tab.page.get_by_test_id("task-white-balance").check()
    tab.page.get_by_test_id("go").click()
    tab.enter(TOKEN)
    expect(tab.page.get_by_test_id("facts")).to_contain_text("Seed")
    assert not tab.problems
    tab.page.close()


def test_only_the_pages_own_files_need_no_token(guarded: Served) -> None:
    port = int(guarded.url.rpartition(":")[2])

    def status(path: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("GET", path)
        answer = connection.getresponse()
        connection.close()
        return answer.status

    for path in ("/", "/page/main.js", "/page/token.js", "/page/style.css"):
        assert status(path) == 200
    for path in ("/page", "/pages/x", "/api/health", "/page/../api/health", "/docs"):
        assert status(path) in (401, 404), path
    for path in ("/page/../api/health", "/page/%2e%2e/api/health", "/page/%2e%2e/app.py"):
        assert status(path) == 404, path


def test_the_page_runs_no_script_but_its_own(quick: Served) -> None:
    policy = quick.http.get("/").headers["content-security-policy"]
    assert policy.split("; ") == [
        "default-src 'self'",
        "img-src 'self' blob: data:",
        "base-uri 'none'",
        "form-action 'none'",
    ]


@pytest.mark.browser
def test_the_page_offers_the_editors_where_there_is_more_than_one(
    with_sets: tuple[FakeHost, Served], browser: Any
) -> None:
    from playwright.sync_api import expect

    fake, served = with_sets
    page, problems = open_page(browser, served.url)
    select = page.get_by_test_id("editor")
    expect(select).to_be_visible()
    expect(page.locator("#health")).to_have_text("Editor: fp8 on cpu.")
    # q4 has a file that is missing.
    expect(select.locator("option")).to_have_text(["Automatic", "fp8", "Draft, without a model"])
    choose(page, "photo-input", "coffee")
    select.select_option("fp8")
    page.locator("input[name=task][value=white-balance]").check()
    expect(select).to_have_value("fp8")
    page.get_by_test_id("go").click()
    expect(page.locator("#result")).to_be_visible()
    posted = fake.fake.posted[-1]["prompt"]
    assert posted["38"]["inputs"]["value"] == "fp8"
    assert not problems
    page.close()


@pytest.mark.browser
def test_the_page_shows_a_photo_that_the_browser_cannot(
    quick: Served, browser: Any, tmp_path: Path
) -> None:
    from playwright.sync_api import expect

    (tmp_path / "photo.tif").write_bytes(tiff(photo(3, 16), PROFILES["p3"]))
    (tmp_path / "broken.tif").write_bytes(b"II*\0 and nothing more")
    page, problems = open_page(browser, quick.url)
    page.get_by_test_id("photo-input").set_input_files(tmp_path / "photo.tif")
    expect(page.locator("#photo-hint")).to_have_text(re.compile(r"photo\.tif, 64 . 64"))
    page.wait_for_function("document.querySelector('#photo').naturalWidth === 64")
    assert not problems
    page.get_by_test_id("photo-input").set_input_files(tmp_path / "broken.tif")
    expect(page.get_by_role("alert")).to_contain_text("is not an image that can be read")
    page.close()
