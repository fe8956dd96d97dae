"""The smoke test of a deployment."""

from pathlib import Path

from support.fake_modal import FakeModal

from artmancer.hosting import smoke


def test_a_working_deployment_passes(modal: FakeModal, tmp_path: Path) -> None:
    with modal.gateway(tmp_path) as gateway:
        lines, passed = smoke.smoke(gateway.url, None)
    assert passed and "edit: done by draft/" in lines[-1]


def test_a_wrong_token_and_an_unreachable_gateway_are_reported(
    modal: FakeModal, tmp_path: Path
) -> None:
    with modal.gateway(tmp_path, api_token="s3cret") as gateway:
        lines, passed = smoke.smoke(gateway.url, "wrong")
    assert not passed and "401" in lines[-1]
    lines, passed = smoke.smoke("http://127.0.0.1:1", None)
    assert not passed and "does not answer" in lines[-1]
