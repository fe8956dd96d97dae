"""A fake Modal that the tests share."""

from collections.abc import Iterator

import pytest
from support.fake_modal import FakeModal


@pytest.fixture(scope="session")
def modal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeModal]:
    """A fake Modal with a worker for each lane."""
    with FakeModal(tmp_path_factory.mktemp("modal")) as modal:
        yield modal
