"""The nodes' texts by language: complete, in one set of words, and shown by ComfyUI's frontend."""

import json
import re
import runpy
from typing import Any

import pytest
from support.comfyui import ComfyUI
from support.paths import NODES, ROOT

Texts = dict[tuple[str, ...], str]

extract = runpy.run_path(str(ROOT / "docs" / "locales.py"))["texts"]


def read(language: str) -> dict[str, Any]:
    """The files of a language, by name."""
    files = (ROOT / "locales" / language).glob("*.json")
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in files}


def flat(tree: dict[str, Any], *path: str) -> Texts:
    """Each text by where it stands."""
    found: Texts = {}
    for key, value in tree.items():
        found |= flat(value, *path, key) if isinstance(value, dict) else {(*path, key): value}
    return found


EN, VI = flat(read("en")), flat(read("vi"))
NAMES = [path for path in EN if path[-1] == "name"]
SENTENCES = [path for path in EN if path[-1] in ("display_name", "description", "tooltip")]

KEPT = (r"\d+(?:\.\d+)?", r"\w+(?:[_/][\w-]+)+", r"(?:^|[.;] )([a-z][\w -]*):")
"""Numbers; what has an underscore or a slash;
what stands before a colon at the beginning of a sentence.
"""

SHOWN = """(ids) => Object.fromEntries(ids.map((id) => {
  const node = window.LiteGraph.createNode(id);
  return [id, {
    display_name: node.title,
    inputs: Object.fromEntries(node.inputs.map((input) => [input.name, input.localized_name])),
    outputs: Object.fromEntries(node.outputs.map((output, slot) => [slot, output.localized_name])),
  }];
}))"""


def test_every_node_is_in_english() -> None:
    assert set(read("en")["nodeDefs"]) == set(NODES)


def test_vietnamese_says_as_much_as_english() -> None:
    assert VI.keys() == EN.keys()
    assert all(text and text == text.strip() for text in (*EN.values(), *VI.values()))


def test_nothing_is_left_in_english() -> None:
    for path in SENTENCES:
        assert VI[path] != EN[path] and re.search("[à-ỹ]", VI[path].lower()), path
    assert not [VI[path] for path in NAMES if "_" in VI[path]]


def test_a_translation_keeps_the_numbers_the_files_and_the_choices() -> None:
    shown_otherwise = {path[-2] for path in NAMES}
    for path in SENTENCES:
        for kept in KEPT:
            wanted = set(re.findall(kept, EN[path], re.MULTILINE)) - shown_otherwise
            assert wanted <= set(re.findall(kept, VI[path], re.MULTILINE)), path


@pytest.mark.parametrize("texts", [EN, VI], ids=["en", "vi"])
def test_the_frontend_reads_no_message_syntax_in_them(texts: Texts) -> None:
    assert not [path for path, text in texts.items() if set("{}@|%") & set(text)]


def test_one_thing_has_one_name() -> None:
    for paths in (NAMES, SENTENCES):
        translated: dict[tuple[str, ...], str] = {}
        for path in paths:
            assert translated.setdefault((path[2], EN[path]), VI[path]) == VI[path], path


def test_what_a_tooltip_quotes_is_on_a_node() -> None:
    shown = {text for path, text in VI.items() if path[-1] in ("name", "display_name")}
    assert {quoted for text in VI.values() for quoted in re.findall("“(.+?)”", text)} <= shown


@pytest.mark.comfyui
def test_english_is_what_the_schemas_say(comfyui: ComfyUI) -> None:
    assert read("en") == extract(comfyui.get("/object_info")), "'make locales' writes it anew"


@pytest.mark.comfyui
def test_comfyui_serves_both(comfyui: ComfyUI) -> None:
    served = comfyui.get("/i18n")
    for language in ("en", "vi"):
        assert served[language] == {
            "nodeDefs": read(language)["nodeDefs"],
            **read(language)["main"],
        }


@pytest.mark.comfyui
@pytest.mark.browser
def test_the_frontend_shows_a_translation(comfyui: ComfyUI, browser: Any) -> None:
    # It has no Vietnamese of its own and so offers none:
    # ours goes in as French, which it does offer.
    page = browser.new_page(locale="fr-FR")
    page.route("**/i18n", lambda route: route.fulfill(json={"fr": route.fetch().json()["vi"]}))
    page.goto(comfyui.url)
    page.wait_for_function(
        "!!(window.app?.graph && window.LiteGraph?.registered_node_types['ArtMancer_Compare'])"
    )
    nodes = read("vi")["nodeDefs"]
    for name, shown in page.evaluate(SHOWN, list(nodes)).items():
        node = nodes[name]
        assert shown["display_name"] == node["display_name"]
        for side in ("inputs", "outputs"):
            assert {key: said["name"] for key, said in node[side].items()}.items() <= shown[
                side
            ].items(), name
    kind = "window.LiteGraph.registered_node_types['ArtMancer_Edges']"
    assert page.evaluate(f"{kind}.nodeData.description") == nodes["ArtMancer_Edges"]["description"]
    assert page.evaluate(f"{kind}.category") == "ArtMancer/công cụ"
    page.close()
