"""The check of a deployment that works."""

from pathlib import Path

from support.fake_modal import FakeModal

from artmancer.hosting import smoke


def test_a_deployment_that_works(modal: FakeModal, tmp_path: Path) -> None:
    with modal.gateway(tmp_path) as one:
        lines, well = smoke.smoke(one.url, None)
    assert well and "edit: done by draft/" in lines[-1]


def test_one_that_asks_for_a_token_and_one_that_is_not_there(
    modal: FakeModal, tmp_path: Path
) -> None:
    with modal.gateway(tmp_path, api_token="s3cret") as one:
        lines, well = smoke.smoke(one.url, "wrong")
    assert not well and "401" in lines[-1]
    lines, well = smoke.smoke("http://127.0.0.1:1", None)
    assert not well and "does not answer" in lines[-1]
