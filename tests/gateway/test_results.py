"""Tests of what an edit gets from the file of its photo when it has ended."""

import asyncio
from pathlib import Path

import pytest
from support.paths import EXAMPLES

from artmancer.errors import ArtMancerError
from artmancer.gateway.jobs import JobRecord
from artmancer.gateway.results import finished
from artmancer.gateway.runner import Outputs

PHOTO = EXAMPLES / "coffee.png"


def finish(outputs: Outputs, photo: Path) -> Outputs:
    record = JobRecord(
        *("1", "generate", "heavy", "somebody"),
        inputs={"input_image": "name"},
        images=["input_image"],
        results={},
        context={"photo": "input_image"},
        created=0.0,
    )
    return asyncio.run(finished(record, {"name": photo}, outputs))


@pytest.mark.parametrize(
    "outputs",
    [
        Outputs({"image": [PHOTO.read_bytes()]}, {"report": "no JSON"}),
        Outputs({"image": [PHOTO.read_bytes()]}, {"report": "{}"}),
        Outputs({"image": [PHOTO.read_bytes()] * 2}),
    ],
    ids=["report is no JSON", "report without notes", "two images"],
)
def test_a_result_that_does_not_fit_is_the_jobs_failure(outputs: Outputs) -> None:
    with pytest.raises(ArtMancerError, match="does not fit its photo") as caught:
        finish(outputs, PHOTO)
    assert caught.value.code == "generation_failed"


def test_without_its_photos_file_an_edit_stays_as_it_is(tmp_path: Path) -> None:
    outputs = Outputs({"image": [PHOTO.read_bytes()]}, {"report": '{"notes": []}'})
    assert finish(outputs, tmp_path / "gone.png") == outputs
