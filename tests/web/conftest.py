"""ComfyUI's editor in a real browser, with the pack installed."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.comfyui import ComfyUI
from support.editor import EMPTY_GRAPH, open_editor


@pytest.fixture(scope="module")
def shared_page(comfyui: ComfyUI, browser: Any) -> Iterator[Any]:
    page = open_editor(browser, comfyui)
    yield page
    page.close()


@pytest.fixture
def page(shared_page: Any) -> Any:
    """The editor with an empty graph drawn on the canvas.

    Opening it takes seconds, so the tests of a module share it. A test that reloads it, changes
    the page's own functions or makes ComfyUI open a dialog takes `own_page`.
    """
    shared_page.set_viewport_size({"width": 1800, "height": 1000})
    shared_page.evaluate(EMPTY_GRAPH, False)
    return shared_page


@pytest.fixture
def own_page(comfyui: ComfyUI, browser: Any) -> Iterator[Any]:
    """The editor in a page that no other test uses."""
    page = open_editor(browser, comfyui)
    yield page
    page.close()


@pytest.fixture(params=[False, True], ids=["canvas", "vue"])
def vue(page: Any, request: pytest.FixtureRequest) -> bool:
    """Draw the nodes with each of ComfyUI's renderers; True for the renderer that uses Vue."""
    if request.param and not page.evaluate("'vueNodesMode' in window.LiteGraph"):
        pytest.skip("this ComfyUI draws nodes on its canvas alone")
    page.evaluate(EMPTY_GRAPH, request.param)
    return bool(request.param)


@pytest.fixture
def watch() -> Iterator[Callable[[Any], list[str]]]:
    """Collect the errors of our files in a page's console; the test fails if any are left."""
    watched: list[tuple[Any, Any, Any]] = []
    errors: list[str] = []

    def watch(page: Any) -> list[str]:
        def on_error(error: Any) -> None:
            errors.append(str(error))

        def on_message(message: Any) -> None:
            source = message.location.get("url", "") + message.text
            if message.type == "error" and "extensions/artmancer" in source:
                errors.append(message.text)

        page.on("pageerror", on_error)
        page.on("console", on_message)
        watched.append((page, on_error, on_message))
        return errors

    yield watch
    for page, on_error, on_message in watched:
        page.remove_listener("pageerror", on_error)
        page.remove_listener("console", on_message)
    assert errors == []
