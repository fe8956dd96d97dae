"""Translations of the nodes' texts: complete, consistent, and shown by ComfyUI's frontend."""

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
    """Return the content of a language's files by file name, without ".json"."""
    files = (ROOT / "locales" / language).glob("*.json")
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in files}


def flat(tree: dict[str, Any], *path: str) -> Texts:
    """Return each text of a tree by its path, the keys from the root to the text."""
    texts: Texts = {}
    for key, value in tree.items():
        texts |= flat(value, *path, key) if isinstance(value, dict) else {(*path, key): value}
    return texts


EN, VI = flat(read("en")), flat(read("vi"))
NAMES = [path for path in EN if path[-1] == "name"]
SENTENCES = [path for path in EN if path[-1] in ("display_name", "description", "tooltip")]

UNTRANSLATED = (
    # a number
    r"\d+(?:\.\d+)?",
    # a name with an underscore or a slash
    r"\w+(?:[_/][\w-]+)+",
    # an option at the start of a sentence, before a colon
    r"(?:^|[.;] )([a-z][\w -]*):",
)
"""Patterns of the parts of a text that a translation keeps."""

DISPLAYED_TEXTS = """(ids) => Object.fromEntries(ids.map((id) => {
  const node = window.LiteGraph.createNode(id);
  return [id, {
    display_name: node.title,
    inputs: Object.fromEntries(node.inputs.map((input) => [input.name, input.localized_name])),
    outputs: Object.fromEntries(node.outputs.map((output, slot) => [slot, output.localized_name])),
  }];
}))"""
"""JavaScript function that returns the texts of new nodes in the frontend, by node id."""


def test_every_node_is_in_english() -> None:
    assert set(read("en")["nodeDefs"]) == set(NODES)


def test_vietnamese_has_every_text_of_english() -> None:
    assert VI.keys() == EN.keys()
    assert all(text and text == text.strip() for text in (*EN.values(), *VI.values()))


def test_no_text_remains_in_english() -> None:
    for path in SENTENCES:
        assert VI[path] != EN[path] and re.search("[à-ỹ]", VI[path].lower()), path
    assert not [VI[path] for path in NAMES if "_" in VI[path]]


def test_a_translation_keeps_numbers_file_names_and_options() -> None:
    translated_names = {path[-2] for path in NAMES}
    for path in SENTENCES:
        for pattern in UNTRANSLATED:
            expected = set(re.findall(pattern, EN[path], re.MULTILINE)) - translated_names
            assert expected <= set(re.findall(pattern, VI[path], re.MULTILINE)), path


@pytest.mark.parametrize("texts", [EN, VI], ids=["en", "vi"])
def test_texts_have_no_character_of_the_frontends_message_syntax(texts: Texts) -> None:
    assert not [path for path, text in texts.items() if set("{}@|%") & set(text)]


def test_equal_texts_have_equal_translations() -> None:
    for paths in (NAMES, SENTENCES):
        translated: dict[tuple[str, ...], str] = {}
        for path in paths:
            assert translated.setdefault((path[2], EN[path]), VI[path]) == VI[path], path


def test_every_quoted_name_is_a_name_on_a_node() -> None:
    names = {text for path, text in VI.items() if path[-1] in ("name", "display_name")}
    assert {quoted for text in VI.values() for quoted in re.findall("“(.+?)”", text)} <= names


@pytest.mark.comfyui
def test_english_equals_the_texts_of_the_schemas(comfyui: ComfyUI) -> None:
    written_by_hand = {"settings"}
    texts = {name: content for name, content in read("en").items() if name not in written_by_hand}
    assert texts == extract(comfyui.get("/object_info")), "run 'make locales' to write the files"


@pytest.mark.comfyui
def test_comfyui_serves_both_languages(comfyui: ComfyUI) -> None:
    served = comfyui.get("/i18n")
    for language in ("en", "vi"):
        assert served[language] == {
            "nodeDefs": read(language)["nodeDefs"],
            "settings": read(language)["settings"],
            **read(language)["main"],
        }


@pytest.mark.comfyui
@pytest.mark.browser
def test_the_frontend_shows_a_translation(comfyui: ComfyUI, browser: Any) -> None:
    # The frontend has no Vietnamese of its own and does not offer the language. It offers French,
    # so the Vietnamese texts are served as French.
    page = browser.new_page(locale="fr-FR")
    page.route("**/i18n", lambda route: route.fulfill(json={"fr": route.fetch().json()["vi"]}))
    page.goto(comfyui.url)
    page.wait_for_function(
        "!!(window.app?.graph && window.LiteGraph?.registered_node_types['ArtMancer_Compare'])"
    )
    nodes = read("vi")["nodeDefs"]
    for node_id, displayed in page.evaluate(DISPLAYED_TEXTS, list(nodes)).items():
        node = nodes[node_id]
        assert displayed["display_name"] == node["display_name"]
        for side in ("inputs", "outputs"):
            names = {key: texts["name"] for key, texts in node[side].items()}
            assert names.items() <= displayed[side].items(), node_id
    edges = "window.LiteGraph.registered_node_types['ArtMancer_Edges']"
    assert page.evaluate(f"{edges}.nodeData.description") == nodes["ArtMancer_Edges"]["description"]
    assert page.evaluate(f"{edges}.category") == "ArtMancer/công cụ"
    page.close()
