"""ModalRemote with Modal's own client, against a server that answers as Modal's."""

import asyncio
import hashlib
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
from grpclib import GRPCError, Status
from modal.client import Client
from modal.exception import ServiceError
from modal_proto import api_pb2
from support.modal_server import ModalServer

from artmancer.hosting.remote import (
    CallFailed,
    CallTimeout,
    ModalRemote,
    RetryingRemote,
    Unavailable,
    Unfinished,
)
from artmancer.hosting.worker import WorkerLost


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModalServer]:
    """A server of Modal that the client in this process connects to."""
    server = ModalServer()
    monkeypatch.setenv("MODAL_SERVER_URL", f"http://127.0.0.1:{server.port}")
    monkeypatch.setenv("MODAL_TOKEN_ID", "ak-1")
    monkeypatch.setenv("MODAL_TOKEN_SECRET", "as-1")
    Client._set_env_client(None)
    yield server
    Client.from_env().close()
    Client._set_env_client(None)


def output(**result: Any) -> api_pb2.FunctionGetOutputsResponse:
    """Make the answer to a request for a call's result."""
    item = api_pb2.FunctionGetOutputsItem(
        result=api_pb2.GenericResult(**result), data_format=api_pb2.DATA_FORMAT_PICKLE
    )
    return api_pb2.FunctionGetOutputsResponse(outputs=[item])


SUCCESS = api_pb2.GenericResult.GENERIC_STATUS_SUCCESS
FAILURE = api_pb2.GenericResult.GENERIC_STATUS_FAILURE

ENDS = {
    "it waits or runs": (
        api_pb2.FunctionGetOutputsResponse(num_unfinished_inputs=1),
        Unfinished,
    ),
    "Modal has forgotten it": (api_pb2.FunctionGetOutputsResponse(), CallFailed),
    "it took too long": (
        output(status=api_pb2.GenericResult.GENERIC_STATUS_TIMEOUT, exception="timeout"),
        CallTimeout,
    ),
    "it was cancelled": (
        output(status=api_pb2.GenericResult.GENERIC_STATUS_TERMINATED),
        CallFailed,
    ),
    "its container failed": (
        output(status=api_pb2.GenericResult.GENERIC_STATUS_INTERNAL_FAILURE, exception="x"),
        CallFailed,
    ),
    "its worker was lost, four times": (
        output(status=FAILURE, data=pickle.dumps(WorkerLost("ComfyUI has exited."))),
        CallFailed,
    ),
    "its worker could not reach Modal, four times": (
        output(status=FAILURE, data=pickle.dumps(Unavailable("ServiceError"))),
        CallFailed,
    ),
    "its worker has a bug": (
        output(status=FAILURE, data=pickle.dumps(KeyError("record"))),
        CallFailed,
    ),
    "its id is unknown": (GRPCError(Status.NOT_FOUND, "no such call"), CallFailed),
}
"""Answers to a request for a call's result, by what happened to the call."""


@pytest.mark.parametrize("what", ENDS)
def test_the_end_of_a_call_is_told_from_a_request_that_failed(
    server: ModalServer, what: str
) -> None:
    server.answers["FunctionGetOutputs"], kind = ENDS[what]
    with pytest.raises(kind) as raised:
        asyncio.run(ModalRemote({}).result("fc-1", 0))
    assert type(raised.value) is kind


def test_a_result_is_returned(server: ModalServer) -> None:
    server.answers["FunctionGetOutputs"] = output(status=SUCCESS, data=pickle.dumps({"values": {}}))
    assert asyncio.run(ModalRemote({}).result("fc-1", 0)) == {"values": {}}


@pytest.mark.slow
@pytest.mark.parametrize("status", [Status.UNAVAILABLE, Status.RESOURCE_EXHAUSTED])
def test_a_job_does_not_fail_because_modal_does_not_answer(
    server: ModalServer, status: Status, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("artmancer.hosting.remote._TRIES", 2)
    server.answers["FunctionGetOutputs"] = GRPCError(status, "down")
    with pytest.raises(Unavailable):
        asyncio.run(RetryingRemote(ModalRemote({})).result("fc-1", 0))


def test_a_request_is_sent_again_until_it_is_answered(server: ModalServer) -> None:
    class Flaky(ModalRemote):
        failures = 3

        async def get(self, key: str) -> Any:
            if self.failures:
                self.failures -= 1
                raise ServiceError("down")
            return await super().get(key)

    assert asyncio.run(RetryingRemote(Flaky({})).get("step:1")) is None
    assert len(server.requests["DictGet"]) == 1


def test_a_request_without_an_answer_times_out(
    server: ModalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Silent(ModalRemote):
        async def get(self, key: str) -> Any:
            await asyncio.Event().wait()

    monkeypatch.setattr("artmancer.hosting.remote._TRIES", 2)
    monkeypatch.setattr("artmancer.hosting.remote._REQUEST_TIMEOUT", 0.1)
    with pytest.raises(Unavailable):
        asyncio.run(RetryingRemote(Silent({})).get("step:1"))


@pytest.mark.parametrize("is_new", [True, False])
def test_a_value_that_is_there_is_not_replaced(server: ModalServer, is_new: bool) -> None:
    server.answers["DictUpdate"] = api_pb2.DictUpdateResponse(created=is_new)
    assert asyncio.run(ModalRemote({}).put_new("call:1", "fc-1")) is is_new
    (request,) = server.requests["DictUpdate"]
    assert request.if_not_exists


def test_a_file_is_stored_on_the_volume(server: ModalServer) -> None:
    asyncio.run(ModalRemote({}).store("batch-1/photo.png", b"pixels"))
    (request,) = server.requests["VolumePutFiles"]
    (file,) = request.files
    assert file.filename == "/batch-1/photo.png"
    assert file.sha256_hex == hashlib.sha256(b"pixels").hexdigest()
