import re

import pytest
from support.paths import ROOT

from artmancer.errors import CODES, ArtMancerError

SOURCES = [
    path.read_text() for folder in ("artmancer", "nodes") for path in (ROOT / folder).rglob("*.py")
]


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
def test_every_code_says_what_to_do_and_has_a_client_error_status(code: str) -> None:
    error = ArtMancerError(code, "What happened. What to do.")
    assert error.hint.endswith(".") and 400 <= error.status < 600
    assert str(error) == "What happened. What to do."
