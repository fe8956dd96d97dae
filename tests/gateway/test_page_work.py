"""Work on the gateway's page: zoom, brush, undo, comparing, history, and what a reload keeps."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.editor import TIMEOUT_MS
from support.gateway import FakeHost, Served, encoded, settings, until
from support.paths import EXAMPLES

pytestmark = pytest.mark.browser

PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
"""Options of a page on a phone."""


@pytest.fixture(scope="module")
def served(running_fake: FakeHost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A gateway with the fake ComfyUI, which the tests share."""
    data = tmp_path_factory.mktemp("gateway")
    with Served(settings(data, comfyui_url=running_fake.url)) as gateway:
        yield gateway.connected()


class Page:
    """The page of a gateway, in a browser profile of its own.

    Attributes
    ----------
    page : Playwright's page
    errors : uncaught errors of its scripts
    """

    def __init__(self, browser: Any, url: str, **options: Any) -> None:
        window = {"viewport": {"width": 1280, "height": 900}, **options}
        self.page = browser.new_context(**window).new_page()
        self.page.set_default_timeout(TIMEOUT_MS)
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(url)

    def __call__(self, test_id: str) -> Any:
        return self.page.get_by_test_id(test_id)

    def choose(self, name: str = "coffee") -> None:
        """Choose an example photo."""
        from playwright.sync_api import expect

        self("photo-input").set_input_files(EXAMPLES / f"{name}.png")
        expect(self("canvas")).to_be_visible()

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Return the place on the screen of a point of the photo, both 0..1."""
        box = self("canvas").bounding_box()
        return box["x"] + box["width"] * x, box["y"] + box["height"] * y

    def paint(self, *points: tuple[float, float]) -> None:
        """Paint a stroke through points of the photo, 0..1."""
        self("tool-brush").check()
        for index, point in enumerate(points):
            self.page.mouse.move(*self.place(*point), steps=3)
            if index == 0:
                self.page.mouse.down()
        self.page.mouse.up()

    def marked(self) -> str:
        """Return what the page says about the mask."""
        return str(self("mask-status").inner_text())

    def settle(self) -> None:
        """Wait until the page has saved its state, as it does a moment after the last change."""
        script = """async () => {
            const request = indexedDB.open("artmancer");
            await new Promise((done) => { request.onsuccess = done; });
            const states = request.result.transaction("states").objectStore("states").getAll();
            await new Promise((done) => { states.onsuccess = done; });
            return Math.max(0, ...states.result.map(({ time }) => time));
        }"""
        now = self.page.evaluate("Date.now()")
        self.page.evaluate("form.dispatchEvent(new Event('change'))")
        until(lambda: self.page.evaluate(script) > now)

    def go(self, results: int) -> None:
        """Run the edit, and wait until there are this many results."""
        from playwright.sync_api import expect

        self("go").click()
        expect(self("strip").locator("li", has_text=re.compile(r"^\d"))).to_have_count(results)
        expect(self("result")).to_be_visible()
        expect(self("go")).to_be_visible()


@pytest.fixture
def tab(browser: Any, served: Served, fake: FakeHost) -> Iterator[Page]:
    """The page on a desktop."""
    tab = Page(browser, served.url)
    yield tab
    assert not tab.errors
    tab.page.context.close()


@pytest.fixture
def phone(browser: Any, served: Served, fake: FakeHost) -> Iterator[Page]:
    """The page on a phone."""
    phone = Page(browser, served.url, **PHONE)
    yield phone
    assert not phone.errors
    phone.page.context.close()


MARKED = """() => {
    const { width, height } = canvas;
    const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
    const xs = [], ys = [];
    for (let pixel = 0; pixel < width * height; pixel++) {
        if (!data[4 * pixel + 3]) continue;
        xs.push((pixel % width) / width);
        ys.push(Math.floor(pixel / width) / height);
    }
    const mean = (values) => values.reduce((sum, value) => sum + value) / values.length;
    return [mean(xs), mean(ys), Math.max(...ys) - Math.min(...ys)];
}"""
"""JavaScript that returns the middle and the height of what is marked, as shares of the photo."""


class TestZoom:
    def test_the_wheel_zooms_at_the_pointer(self, tab: Page) -> None:
        from playwright.sync_api import expect

        tab.choose()
        before = tab("canvas").bounding_box()
        point = tab.place(0.7, 0.3)
        tab.page.mouse.move(*point)
        tab.page.mouse.wheel(0, -500)
        expect(tab("zoom-out")).to_be_enabled()
        after = tab("canvas").bounding_box()
        assert after["width"] > 1.5 * before["width"]
        assert tab.place(0.7, 0.3) == pytest.approx(point, abs=1.5)
        tab("zoom-fit").click()
        assert tab("canvas").bounding_box() == pytest.approx(before)

    @pytest.mark.parametrize("way", ["space", "middle button", "click tool"])
    def test_a_drag_moves_the_photo_and_marks_nothing(self, tab: Page, way: str) -> None:
        tab.choose()
        tab("zoom-in").click()
        tab("zoom-in").click()
        if way != "click tool":
            tab("tool-brush").check()
        start = tab.place(0.5, 0.5)
        tab.page.mouse.move(*start)
        if way == "space":
            tab.page.keyboard.down(" ")
        button = "middle" if way == "middle button" else "left"
        tab.page.mouse.down(button=button)
        tab.page.mouse.move(start[0] + 60, start[1] + 40, steps=4)
        tab.page.mouse.up(button=button)
        tab.page.keyboard.up(" ")
        assert tab.place(0.5, 0.5) == pytest.approx((start[0] + 60, start[1] + 40), abs=1.5)
        assert "marked" not in tab.marked().replace("Nothing is marked", "")
        assert tab("undo").is_disabled()

    def test_the_photo_never_leaves_a_gap(self, tab: Page) -> None:
        tab.choose()
        tab("zoom-in").click()
        view = tab("viewport").bounding_box()
        tab.page.mouse.move(view["x"] + 300, view["y"] + 300)
        tab.page.mouse.down()
        tab.page.mouse.move(view["x"] + 700, view["y"] + 600, steps=3)
        tab.page.mouse.up()
        box = tab("canvas").bounding_box()
        assert (box["x"], box["y"]) == pytest.approx((view["x"], view["y"]), abs=1)

    def test_a_stroke_lies_where_it_was_painted_when_zoomed(self, tab: Page) -> None:
        tab.choose()
        tab.page.mouse.move(*tab.place(0.25, 0.25))
        tab.page.mouse.wheel(0, -900)
        tab.paint((0.24, 0.25), (0.26, 0.25))
        tab("zoom-fit").click()
        x, y, height = tab.page.evaluate(MARKED)
        assert (x, y) == pytest.approx((0.25, 0.25), abs=0.01)
        # Where the whole photo is in view, this brush is as wide as 9 % of the photo's height.
        assert height < 0.05

    def test_two_fingers_zoom_and_drop_the_stroke_that_one_began(self, phone: Page) -> None:
        phone.choose()
        phone("tool-brush").check()
        phone("canvas").scroll_into_view_if_needed()
        before = phone("canvas").bounding_box()
        x, y = phone.place(0.5, 0.5)
        session = phone.page.context.new_cdp_session(phone.page)

        def touch(kind: str, *distances: float) -> None:
            points = [{"x": x + offset, "y": y, "id": i} for i, offset in enumerate(distances)]
            session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

        touch("touchStart", -30)
        touch("touchMove", -34)
        touch("touchStart", -34, 30)
        for distance in (40, 60, 90):
            touch("touchMove", -distance, distance)
        touch("touchEnd")
        assert phone("canvas").bounding_box()["width"] > 1.5 * before["width"]
        assert phone("undo").is_disabled()

    def test_the_keyboard_zooms_sizes_the_brush_and_keeps_its_cursor_in_view(
        self, tab: Page
    ) -> None:
        from playwright.sync_api import expect

        tab.choose()
        tab("tool-brush").check()
        tab("canvas").focus()
        for key in ("+", "+", "+", "+"):
            tab.page.keyboard.press(key)
        before = tab.place(0, 0)
        for _ in range(40):
            tab.page.keyboard.press("ArrowLeft")
        assert tab.place(0, 0)[0] > before[0]
        ring = tab.page.locator("#ring")
        expect(ring).to_be_in_viewport()
        width = ring.bounding_box()["width"]
        tab.page.keyboard.press("]")
        assert ring.bounding_box()["width"] > width
        tab.page.keyboard.press("[")
        tab.page.keyboard.press("[")
        assert ring.bounding_box()["width"] < width
        tab.page.keyboard.press("Enter")
        expect(tab("undo")).to_be_enabled()


class TestMarks:
    def test_what_was_undone_is_redone_until_something_new_is_marked(self, tab: Page) -> None:
        tab.choose()
        tab.paint((0.2, 0.2), (0.4, 0.2))
        one = tab.marked()
        tab.paint((0.2, 0.6), (0.6, 0.6), (0.6, 0.8))
        two = tab.marked()
        assert one != two
        tab.page.keyboard.press("Control+z")
        assert tab.marked() == one
        tab.page.keyboard.press("Control+Shift+z")
        assert tab.marked() == two
        tab("undo").click()
        tab.page.keyboard.press("Control+y")
        assert tab.marked() == two
        tab("undo").click()
        tab.paint((0.1, 0.1), (0.15, 0.1))
        assert tab("redo").is_disabled()

    def test_the_brush_shows_its_size(self, tab: Page) -> None:
        from playwright.sync_api import expect

        tab.choose()
        tab("tool-brush").check()
        tab.page.mouse.move(*tab.place(0.5, 0.5))
        ring = tab.page.locator("#ring")
        expect(ring).to_be_visible()
        # A quarter of the photo's longer side at most, 24 % of that to begin with.
        assert ring.bounding_box()["width"] == pytest.approx(
            tab("canvas").bounding_box()["width"] * 0.25 * 0.24, abs=2
        )


class TestResults:
    def test_edits_in_a_row_are_kept_in_the_history(self, tab: Page, fake: FakeHost) -> None:
        from playwright.sync_api import expect

        tab.choose()
        tab.paint((0.5, 0.5), (0.6, 0.6))
        marked = tab.marked()
        tab.go(1)
        first_seed = tab("facts").inner_text()
        tab("again").click()
        expect(tab("strip").locator("li")).to_have_count(3)
        expect(tab("go")).to_be_visible()
        assert tab("facts").inner_text() != first_seed
        tab("further").click()
        expect(tab("result")).to_be_hidden()
        expect(tab("undo")).to_be_disabled()
        tab("task-white-balance").check()
        tab.go(3)
        expect(tab("strip").locator("[aria-current=true]")).to_have_text("3 White balance")
        # The first result comes with the photo, the marks and the settings that made it.
        tab("strip").get_by_text("1 Remove").click()
        expect(tab("facts")).to_have_text(re.compile(first_seed.split()[3]))
        expect(tab("task-removal")).to_be_checked()
        tab("back").click()
        assert tab.marked() == marked
        tab("strip").get_by_text("Photo").click()
        expect(tab("result")).to_be_hidden()

    def test_the_slider_reveals_the_result_at_every_zoom(self, tab: Page) -> None:
        tab.choose()
        tab("task-white-balance").check()
        tab.go(1)
        view = tab("viewport").bounding_box()

        def cut() -> float:
            """Return where the result begins, in CSS pixels of the viewport."""
            left = float(tab("after").evaluate("after => after.getBoundingClientRect().left"))
            inset = tab("after").evaluate("after => getComputedStyle(after).clipPath")
            return left - float(view["x"]) + float(re.findall(r"([\d.]+)px\)", inset)[0])

        assert cut() == pytest.approx(view["width"] / 2, abs=2)
        # A press anywhere moves the divider there.
        tab.page.mouse.click(view["x"] + view["width"] * 0.75, view["y"] + 30)
        assert cut() == pytest.approx(view["width"] * 0.75, abs=12)
        tab("zoom-in").click()
        tab("slider").focus()
        tab.page.keyboard.press("Home")
        assert cut() == pytest.approx(0, abs=1)
        tab.page.keyboard.press("End")
        assert cut() == pytest.approx(view["width"], abs=1)

    def test_the_verdict_is_told_in_words(self, tab: Page) -> None:
        from playwright.sync_api import expect

        tab.choose()
        tab("task-white-balance").check()
        tab.go(1)
        expect(tab("verdict")).to_contain_text(re.compile("Looks good|Worth a look|Did not work"))

    def test_the_settings_reach_the_gateway(self, tab: Page, fake: FakeHost) -> None:
        tab.choose()
        tab.paint((0.5, 0.5), (0.6, 0.6))
        tab("more").locator("summary").click()
        tab("regions").select_option("apart")
        tab("context").fill("2.5")
        tab("recipe").select_option("image_edges")
        tab("output-format").select_option("jpeg")
        tab("seed").fill("77")
        tab.go(1)
        values = [node["inputs"].get("value") for node in fake.fake.posted[-1]["prompt"].values()]
        for value in ("apart", 2.5, "image_edges", 77):
            assert value in values
        assert tab("download").get_attribute("download") == "coffee-edited.jpg"

    def test_a_user_who_goes_on_meanwhile_is_not_interrupted(
        self, tab: Page, fake: FakeHost
    ) -> None:
        from playwright.sync_api import expect

        tab.choose()
        tab("task-white-balance").check()
        tab("prompt").fill("hold")
        tab("go").click()
        expect(tab("progress-text")).to_contain_text("Step 3")
        tab.paint((0.3, 0.3), (0.4, 0.4))
        marked = tab.marked()
        fake.release()
        expect(tab("progress-text")).to_contain_text("in the history")
        expect(tab("result")).to_be_hidden()
        assert tab.marked() == marked

    def test_go_is_in_sight_on_a_phone(self, phone: Page) -> None:
        from playwright.sync_api import expect

        expect(phone("go")).to_be_in_viewport(ratio=1)
        phone("sample").tap()
        expect(phone("canvas")).to_be_visible()
        expect(phone("go")).to_be_in_viewport(ratio=1)
        phone.go(1)
        expect(phone("after")).to_be_in_viewport()
        phone.page.mouse.wheel(0, 4000)
        expect(phone("go")).to_be_in_viewport(ratio=1)
        assert phone.page.evaluate("document.documentElement.scrollWidth") <= 360


class TestReload:
    def test_photo_marks_settings_and_history_stay(self, tab: Page) -> None:
        from playwright.sync_api import expect

        tab.choose()
        tab.paint((0.5, 0.5), (0.6, 0.6))
        tab.go(1)
        tab("back").click()
        tab.paint((0.2, 0.2), (0.3, 0.2))
        tab("task-insertion").check()
        tab("prompt").fill("a lemon")
        tab("reference-input").set_input_files(EXAMPLES / "coins.png")
        expect(tab("reference-preview")).to_be_visible()
        tab("more").locator("summary").click()
        tab("seed").fill("12")
        marked = tab.marked()
        tab.settle()
        tab.page.reload()
        expect(tab("strip").locator("li")).to_have_count(2)
        expect(tab("mask-status")).to_have_text(marked)
        expect(tab("task-insertion")).to_be_checked()
        expect(tab("prompt")).to_have_value("a lemon")
        expect(tab("seed")).to_have_value("12")
        expect(tab("reference-preview")).to_be_visible()
        tab("undo").click()
        tab("redo").click()
        expect(tab("mask-status")).to_have_text(marked)

    def test_a_reload_without_the_gateway_loses_no_work(self, tab: Page, tmp_path: Path) -> None:
        from playwright.sync_api import expect

        file = tmp_path / "photo.tif"
        Image.open(EXAMPLES / "coffee.png").save(file)
        tab("photo-input").set_input_files(file)
        tab.paint((0.5, 0.5), (0.6, 0.6))
        marked = tab.marked()
        tab.settle()
        # The browser shows a TIFF with the gateway's help.
        tab.page.route("**/api/image-utils/preview", lambda route: route.abort())
        tab.page.reload()
        expect(tab("error")).not_to_be_empty()
        tab.page.unroute("**/api/image-utils/preview")
        tab.page.reload()
        expect(tab("canvas")).to_be_visible()
        expect(tab("mask-status")).to_have_text(marked)

    def test_a_clicked_object_stays_and_can_be_refined(self, tab: Page) -> None:
        from playwright.sync_api import expect

        def answer(route: Any) -> None:
            mask = {"mask_base64": encoded("coffee_mask"), "image_id": "1", "candidates": 2}
            route.fulfill(json=mask)

        tab.page.route("**/api/smart-mask", answer)
        tab.choose()
        tab.page.mouse.click(*tab.place(0.2, 0.5))
        expect(tab("mask-status")).to_contain_text("Candidate 1 of 2")
        marked = tab.marked()
        tab.settle()
        tab.page.reload()
        expect(tab("mask-status")).to_have_text(marked)
        with tab.page.expect_request("**/api/smart-mask") as asked:
            tab.page.mouse.click(*tab.place(0.3, 0.5))
        expect(tab.page.locator(".marker")).to_have_count(2)
        assert len(asked.value.post_data_json["points"]) == 2

    def test_a_running_job_is_followed_again(self, tab: Page, fake: FakeHost) -> None:
        from playwright.sync_api import expect

        tab.choose()
        tab("task-white-balance").check()
        tab("prompt").fill("hold")
        tab("go").click()
        expect(tab("progress-text")).to_contain_text("Step 3")
        tab.page.reload()
        expect(tab("progress-text")).to_contain_text("Step 3")
        fake.release()
        expect(tab("result")).to_be_visible()
        expect(tab("after")).to_be_visible()

    def test_another_tab_starts_empty_and_start_over_deletes_all(self, tab: Page) -> None:
        from playwright.sync_api import expect

        tab.choose()
        tab("task-white-balance").check()
        tab.go(1)
        other = tab.page.context.new_page()
        other.goto(tab.page.url)
        expect(other.get_by_test_id("sample")).to_be_visible()
        other.close()
        tab.page.locator("#keys summary").click()
        tab("start-over").click()
        expect(tab("sample")).to_be_visible()
        count = """async () => {
            const request = indexedDB.open("artmancer");
            await new Promise((done) => { request.onsuccess = done; });
            const store = request.result.transaction("pictures").objectStore("pictures");
            const keys = store.getAllKeys();
            return new Promise((done) => { keys.onsuccess = () => done(keys.result.length); });
        }"""
        assert tab.page.evaluate(count) == 0

    def test_a_duplicated_tab_goes_on_with_a_copy(self, tab: Page) -> None:
        from playwright.sync_api import expect

        tab.choose()
        tab.paint((0.5, 0.5), (0.6, 0.6))
        marked = tab.marked()
        tab.settle()
        # A window that a page opens gets a copy of its sessionStorage, as a duplicated tab does.
        with tab.page.expect_popup() as opened:
            tab.page.evaluate("void window.open(location.href)")
        copy = opened.value
        expect(copy.get_by_test_id("mask-status")).to_have_text(marked)
        tab.paint((0.2, 0.2), (0.3, 0.2))
        changed = tab.marked()
        tab.settle()
        copy.reload()
        expect(copy.get_by_test_id("mask-status")).to_have_text(marked)
        tab.page.reload()
        expect(tab("mask-status")).to_have_text(changed)

    def test_the_work_of_an_open_tab_is_kept_however_old_it_is(self, tab: Page) -> None:
        from playwright.sync_api import expect

        tab.choose()
        tab.settle()
        tab.page.evaluate(
            """async () => {
                const request = indexedDB.open("artmancer");
                await new Promise((done) => { request.onsuccess = done; });
                const states = request.result.transaction("states", "readwrite")
                    .objectStore("states");
                const entries = states.getAll();
                await new Promise((done) => { entries.onsuccess = done; });
                states.put({ ...entries.result[0], time: 0 }, sessionStorage["artmancer.tab"]);
                const closed = states.put({ ...entries.result[0], time: 0 }, "a closed tab");
                await new Promise((done) => { closed.onsuccess = done; });
            }"""
        )
        other = tab.page.context.new_page()
        other.goto(tab.page.url)
        names = """async () => {
            const request = indexedDB.open("artmancer");
            await new Promise((done) => { request.onsuccess = done; });
            const keys = request.result.transaction("states").objectStore("states").getAllKeys();
            return new Promise((done) => { keys.onsuccess = () => done(keys.result); });
        }"""
        until(lambda: "a closed tab" not in other.evaluate(names))
        tab.page.reload()
        expect(tab("canvas")).to_be_visible()

    def test_a_state_that_cannot_be_read_is_dropped(self, tab: Page) -> None:
        from playwright.sync_api import expect

        tab.choose()
        tab.page.evaluate(
            """async () => {
                const request = indexedDB.open("artmancer");
                await new Promise((done) => { request.onsuccess = done; });
                const pictures = request.result.transaction("pictures", "readwrite")
                    .objectStore("pictures");
                pictures.clear();
            }"""
        )
        tab.settle()
        tab.page.reload()
        expect(tab("sample")).to_be_visible()
        tab.choose()


PASTE = """async ([text, type, kind]) => {
    const data = new DataTransfer();
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    data.items.add(new File([bytes], "pasted", { type }));
    const init = { bubbles: true, cancelable: true };
    const event = kind === "paste"
        ? new ClipboardEvent("paste", { ...init, clipboardData: data })
        : new DragEvent("drop", { ...init, dataTransfer: data });
    document.body.dispatchEvent(event);
}"""
"""JavaScript that pastes or drops a file."""


class TestStates:
    @pytest.mark.parametrize("kind", ["paste", "drop"])
    def test_a_photo_is_pasted_or_dropped(self, tab: Page, kind: str) -> None:
        from playwright.sync_api import expect

        tab.page.evaluate(PASTE, [encoded("coffee"), "image/png", kind])
        expect(tab("canvas")).to_be_visible()

    @pytest.mark.parametrize(
        ("type_", "message"),
        [("image/png", "is not an image that can be read"), ("text/plain", "not an image")],
    )
    def test_a_broken_file_is_refused_and_the_work_stays(
        self, tab: Page, type_: str, message: str
    ) -> None:
        from playwright.sync_api import expect

        tab.choose()
        tab.paint((0.5, 0.5), (0.6, 0.6))
        marked = tab.marked()
        tab.page.evaluate(PASTE, ["bm90IGEgcGljdHVyZQ==", type_, "drop"])
        expect(tab("error")).to_contain_text(message)
        assert tab.marked() == marked

    @pytest.mark.parametrize("opens", [True, False], ids=["opens", "is refused"])
    def test_go_waits_for_the_photo_that_is_being_opened(
        self, tab: Page, fake: FakeHost, tmp_path: Path, opens: bool
    ) -> None:
        from playwright.sync_api import expect

        file = tmp_path / "later.tif"
        Image.open(EXAMPLES / "coins.png").save(file)
        held: list[Any] = []
        tab.choose()
        tab("task-white-balance").check()
        before = len(fake.fake.posted)
        tab.page.route("**/api/image-utils/preview", lambda route: held.append(route), times=1)
        with tab.page.expect_request("**/api/image-utils/preview"):
            tab("photo-input").set_input_files(file)
        tab("go").click()
        expect(tab.page.locator("#photo-hint")).to_contain_text("coffee")
        if opens:
            held[0].continue_()
            name = "later.tif"
        else:
            held[0].abort()
            expect(tab("error")).not_to_be_empty()
            # Only this one edits the photo that is there.
            tab("go").click()
            name = "coffee.png"
        expect(tab("result")).to_be_visible()
        expect(tab.page.locator("#photo-hint")).to_contain_text(name)
        assert len(fake.fake.posted) == before + 1

    def test_an_edit_that_waits_for_the_cut_out_can_be_cancelled(self, tab: Page) -> None:
        from playwright.sync_api import expect

        held: list[Any] = []
        tab.choose()
        tab("task-insertion").check()
        tab.paint((0.5, 0.5), (0.6, 0.6))
        tab("reference-input").set_input_files(EXAMPLES / "coins.png")
        status = tab.page.locator("#cut-out-status")
        mask = {"mask_base64": encoded("coffee_mask")}
        tab.page.route("**/api/smart-mask/detect", lambda route: route.fulfill(json=mask), times=1)
        with tab.page.expect_response("**/api/smart-mask/detect"):
            tab.page.locator("#cut-out").check()
        expect(status).to_be_empty()
        tab.page.route("**/api/smart-mask/detect", lambda route: held.append(route))
        tab("reference-input").set_input_files(EXAMPLES / "chelsea.png")
        expect(status).to_have_text("Looking for the object")
        tab("go").click()
        tab("cancel").click()
        expect(tab("go")).to_be_visible()
        held[0].abort()

    def test_a_failed_job_says_why_and_keeps_the_marks(self, tab: Page) -> None:
        from playwright.sync_api import expect

        tab.choose()
        tab.paint((0.5, 0.5), (0.6, 0.6))
        marked = tab.marked()
        tab("prompt").fill("fail mask_empty")
        tab("go").click()
        expect(tab("error")).not_to_be_empty()
        expect(tab("go")).to_be_enabled()
        assert tab.marked() == marked
        tab("prompt").fill("remove it")
        tab.go(1)
        expect(tab("error")).to_be_empty()

    def test_a_cancelled_job_leaves_the_photo_as_it_was(self, tab: Page) -> None:
        from playwright.sync_api import expect

        tab.choose()
        tab("task-white-balance").check()
        tab("prompt").fill("hold")
        tab("go").click()
        expect(tab("progress-text")).to_contain_text("Step 3")
        tab("cancel").click()
        expect(tab("progress-text")).to_have_text("Cancelled")
        expect(tab("go")).to_be_visible()
        expect(tab("strip")).to_be_hidden()

    def test_a_gateway_that_is_gone_for_a_while_is_asked_again(
        self, tab: Page, fake: FakeHost
    ) -> None:
        from playwright.sync_api import expect

        tab.choose()
        tab("task-white-balance").check()
        tab("prompt").fill("hold")
        tab.page.route("**/api/generate/stream/*", lambda route: route.abort())
        tab("go").click()
        expect(tab("progress-text")).to_contain_text("Step 3")
        tab.page.route("**/api/**", lambda route: route.abort())
        expect(tab("progress-text")).to_contain_text("connection is lost")
        fake.release()
        tab.page.unroute_all()
        expect(tab("result")).to_be_visible()

    def test_a_gateway_that_stays_away_can_be_left(self, tab: Page) -> None:
        from playwright.sync_api import expect

        tab.choose()
        tab("task-white-balance").check()
        tab("prompt").fill("hold")
        tab("go").click()
        expect(tab("progress-text")).to_contain_text("Step 3")
        tab.page.route("**/api/**", lambda route: route.abort())
        tab("cancel").click()
        expect(tab("error")).to_contain_text("cannot be reached")
        expect(tab("go")).to_be_visible()
        tab("go").click()
        expect(tab("error")).to_contain_text("cannot be reached")
        expect(tab("go")).to_be_visible()

    def test_a_photo_that_the_gateway_refuses_gives_its_reason(
        self, browser: Any, fake: FakeHost, tmp_path: Any
    ) -> None:
        from playwright.sync_api import expect

        with Served(settings(tmp_path, comfyui_url=fake.url, max_body=2**17)) as served:
            tab = Page(browser, served.connected().url)
            tab.choose()
            tab("task-white-balance").check()
            tab("go").click()
            expect(tab("error")).to_contain_text("over 0.125 MB")
            tab.page.context.close()


class TestAccess:
    @pytest.mark.slow
    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_axe_finds_no_fault(self, browser: Any, served: Served, scheme: str) -> None:
        from axe_playwright_python.sync_playwright import Axe

        axe = Axe()
        tab = Page(browser, served.url, color_scheme=scheme)

        def check() -> None:
            assert axe.run(tab.page).response["violations"] == []

        check()
        tab("sample").click()
        tab.page.locator("#keys summary").click()
        tab("more").locator("summary").click()
        check()
        tab.go(1)
        check()
        tab.page.context.close()

    def test_an_edit_is_possible_with_the_keyboard_alone(self, tab: Page) -> None:
        from playwright.sync_api import expect

        for _ in range(4):
            if tab.page.evaluate("document.activeElement.id") == "sample":
                break
            tab.page.keyboard.press("Tab")
        tab.page.keyboard.press("Enter")
        expect(tab("go")).to_be_focused()
        tab.page.keyboard.press("Enter")
        expect(tab("result")).to_be_visible()
        tab("slider").focus()
        tab.page.keyboard.press("Control+Enter")
        expect(tab("strip").locator("li")).to_have_count(3)

    @pytest.mark.slow
    @pytest.mark.parametrize("width", [360, 768, 1280, 2560])
    def test_nothing_is_wider_than_the_window(
        self, browser: Any, served: Served, width: int
    ) -> None:
        tab = Page(browser, served.url, viewport={"width": width, "height": 900})
        tab("sample").click()
        tab("more").locator("summary").click()
        tab.go(1)
        assert tab.page.evaluate("document.documentElement.scrollWidth") == width
        tab.page.context.close()
