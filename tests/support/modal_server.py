"""A fake of Modal's servers, as far as `modal deploy` needs them: it records every request, and
builds and runs nothing.

Modal's own client connects to it by gRPC, as to the real servers.
"""

import asyncio
import inspect
import itertools
import os
import subprocess
import sys
import threading
from collections import defaultdict
from pathlib import Path
from typing import Any

from google.protobuf.empty_pb2 import Empty
from grpclib.server import Server
from modal_proto import api_grpc, api_pb2

from .gateway import free_port
from .paths import ROOT

_BUILDER_VERSION = "2025.06"
"""Version of Modal's image builder."""

_MAPPING = inspect.getsource(api_grpc.ModalClientBase.__mapping__)
"""Source text with the type of every method's answer."""


class ModalServer:
    """A gRPC server on a free port of loopback, in a thread.

    Attributes
    ----------
    requests : every request, by the name of its method
    answers : answers of a test's own, by the name of the method; an exception is raised, and a
        function gets the request
    """

    def __init__(self) -> None:
        self.requests: dict[str, list[Any]] = defaultdict(list)
        self.answers: dict[str, Any] = {}
        self.port = free_port()
        self._ids = itertools.count(1)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)

    async def _listen(self) -> None:
        names = [name for name in dir(api_grpc.ModalClientBase) if not name.startswith("_")]
        servicer = type(
            "Servicer", (api_grpc.ModalClientBase,), {name: self._method(name) for name in names}
        )
        self._server = Server([servicer()])
        await self._server.start("127.0.0.1", self.port)

    def _method(self, name: str) -> Any:
        async def handle(_: Any, stream: Any) -> None:
            async for request in stream:
                self.requests[name].append(request)
                await stream.send_message(self._answer(name, request))

        return handle

    def _answer(self, name: str, request: Any) -> Any:
        """Return the answer of a method; an empty answer where the client needs no more."""
        if answer := self.answers.get(name):
            if isinstance(answer, Exception):
                raise answer
            return answer(request) if callable(answer) else answer
        number = next(self._ids)
        special = {
            "ClientHello": lambda: api_pb2.ClientHelloResponse(
                image_builder_version=_BUILDER_VERSION
            ),
            "EnvironmentGetOrCreate": lambda: api_pb2.EnvironmentGetOrCreateResponse(
                environment_id=f"en-{number}",
                metadata=api_pb2.EnvironmentMetadata(
                    name="main",
                    settings=api_pb2.EnvironmentSettings(image_builder_version=_BUILDER_VERSION),
                ),
            ),
            "AppCreate": lambda: api_pb2.AppCreateResponse(app_id=f"ap-{number}"),
            "MountPutFile": lambda: api_pb2.MountPutFileResponse(exists=True),
            "MountGetOrCreate": lambda: api_pb2.MountGetOrCreateResponse(mount_id=f"mo-{number}"),
            "VolumeGetOrCreate": lambda: api_pb2.VolumeGetOrCreateResponse(
                volume_id=f"vo-{number}"
            ),
            "SecretGetOrCreate": lambda: api_pb2.SecretGetOrCreateResponse(
                secret_id=f"st-{number}"
            ),
            "ImageGetOrCreate": lambda: api_pb2.ImageGetOrCreateResponse(
                image_id=f"im-{number}",
                result=api_pb2.GenericResult(status=api_pb2.GenericResult.GENERIC_STATUS_SUCCESS),
            ),
            "FunctionPrecreate": lambda: api_pb2.FunctionPrecreateResponse(
                function_id=f"fu-{number}"
            ),
            "FunctionCreate": lambda: api_pb2.FunctionCreateResponse(
                function_id=request.existing_function_id or f"fu-{number}",
                function_data=api_pb2.FunctionData(
                    ranked_functions=[
                        api_pb2.FunctionData.RankedFunction(rank=0, function=request.function)
                    ]
                ),
                handle_metadata=api_pb2.FunctionHandleMetadata(
                    function_name=request.function.function_name,
                    web_url="https://example.modal.run"
                    if request.function.webhook_config.type
                    else "",
                ),
            ),
            "FunctionMap": lambda: api_pb2.FunctionMapResponse(
                function_call_id=f"fc-{number}",
                pipelined_inputs=[api_pb2.FunctionPutInputsResponseItem(input_id=f"in-{number}")],
            ),
            "DictGetOrCreate": lambda: api_pb2.DictGetOrCreateResponse(dict_id=f"di-{number}"),
            "FunctionBindParams": lambda: api_pb2.FunctionBindParamsResponse(
                bound_function_id=f"fu-{number}",
                handle_metadata=api_pb2.FunctionHandleMetadata(
                    function_name="Heavy.*",
                    method_handle_metadata={
                        name: api_pb2.FunctionHandleMetadata(
                            function_name=f"Heavy.{name}", use_method_name=name
                        )
                        for name in ("run", "free", "edit")
                    },
                ),
            ),
            "ClassCreate": lambda: api_pb2.ClassCreateResponse(class_id=f"cs-{number}"),
            # Without app_done the client requests the logs again, and waits ten seconds at its end.
            "AppGetLogs": lambda: api_pb2.TaskLogsBatch(app_done=True),
            "AppPublish": lambda: api_pb2.AppPublishResponse(url="https://modal.com/apps/x"),
        }
        if name in special:
            return special[name]()
        handlers = _MAPPING.split("grpclib.const.Handler(")
        handler = next(text for text in handlers if f"self.{name}," in text)
        answer_type = handler.split(",")[3].strip().rpartition(".")[2]
        return Empty() if answer_type == "Empty" else getattr(api_pb2, answer_type)()

    def modal(self, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        """Run the command `modal` against this server."""
        return self.python("-m", "modal", *arguments, **environment)

    def python(self, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        """Run Python with a Modal client of this server."""
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=ROOT,
            env={
                **os.environ,
                "MODAL_SERVER_URL": f"http://127.0.0.1:{self.port}",
                "MODAL_TOKEN_ID": "ak-1",
                "MODAL_TOKEN_SECRET": "as-1",
                "MODAL_CONFIG_PATH": str(Path(os.devnull)),
                **environment,
            },
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
