"""Every request, valid by the OpenAPI document or not, receives a documented answer, and never
status 500.
"""

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, given
from hypothesis import settings as effort
from hypothesis.errors import Unsatisfiable
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from support.gateway import FakeHost, Served, settings


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A gateway with short timeouts and without limits of the queue."""
    gateway_settings = settings(
        tmp_path_factory.mktemp("gateway"),
        comfyui_url=FakeHost().url,
        debug=True,
        heavy_timeout=5,
        light_timeout=5,
        max_waiting=10**6,
        max_per_client=10**6,
    )
    with Served(gateway_settings) as gateway:
        yield gateway.connected()


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
def test_every_answer_is_documented(served: Served, mode: schemathesis.GenerationMode) -> None:
    document = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    operations = [result.ok() for result in document.get_all_operations()]
    assert len(operations) > 30
    for operation in operations:

        @effort(
            max_examples=10,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def check_answers(case: schemathesis.Case) -> None:
            response = case.call()
            assert response.status_code != 500, response.text
            case.validate_response(
                response,
                checks=[
                    status_code_conformance,
                    content_type_conformance,
                    response_schema_conformance,
                ],
            )

        try:
            check_answers()
        except Unsatisfiable:
            # An operation without parameters accepts every request.
            assert mode == schemathesis.GenerationMode.NEGATIVE
