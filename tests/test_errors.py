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


@pytest.mark.parametrize("code", CODES)
def test_every_code_says_what_to_do_and_has_a_client_error_status(code: str) -> None:
    error = ArtMancerError(code, "What happened. What to do.")
    assert error.hint.endswith(".") and 400 <= error.status < 600
    assert str(error) == "What happened. What to do."
