"""The table of error codes: complete, and equal to the table in docs/api.md."""

import re

import pytest
from support.paths import ROOT

from artmancer.errors import CODES, ArtMancerError

SOURCES = [
    path.read_text() for folder in ("artmancer", "nodes") for path in (ROOT / folder).rglob("*.py")
]
"""Text of every module of the library and of the nodes."""


def test_every_code_that_is_raised_is_in_the_table_and_every_row_is_raised() -> None:
    raised = {
        code for source in SOURCES for code in re.findall(r"ArtMancerError\(\s*\"(\w+)\"", source)
    }
    assert raised == set(CODES)


def test_the_api_page_has_the_same_table() -> None:
    text = (ROOT / "docs" / "api.md").read_text()
    rows = [f"| `{code}` | {row.status} | {row.meaning} |" for code, row in CODES.items()]
    assert "\n".join(rows) in text


@pytest.mark.parametrize("code", CODES)
def test_every_code_has_a_hint_and_an_error_status(code: str) -> None:
    error = ArtMancerError(code, "The image is empty. Choose another image.")
    assert error.hint.endswith(".")
    assert 400 <= error.status < 600
    assert str(error) == "The image is empty. Choose another image."
