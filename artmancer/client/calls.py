"""The requests of a client, and what their answers mean. Nothing here sends or waits."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import httpx

from ..errors import CODES, ArtMancerError
from .patience import NoAnswer
from .results import EditResponse, JobStatus

T = TypeVar("T")

_SUBMIT = "/api/generate/async"
"""Path that an edit is sent to."""

_PROXY_STATUSES = (502, 503, 504)
"""HTTP statuses of a proxy behind which nothing answers."""

_CODES = {401: "unauthorized", 413: "image_too_large"}
"""Error codes of answers that are not the gateway's, by HTTP status; of others: invalid_request."""

_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)
"""Errors after which it is certain that the gateway has not seen the request."""


@dataclass(frozen=True)
class Call(Generic[T]):
    """A request to the gateway.

    Attributes
    ----------
    method, path : of the request
    read : makes the result from the fields of the answer
    body : JSON; None: no body
    makes_job : True if the request makes a job each time that it arrives
    """

    method: str
    path: str
    read: Callable[[dict[str, Any]], T]
    body: bytes | None = None
    makes_job: bool = False


@dataclass(frozen=True)
class Connection:
    """The address and the token of a gateway.

    Attributes
    ----------
    url : the gateway's URL
    headers : of every request
    timeout : timeout of a request, in seconds
    """

    url: httpx.URL
    headers: dict[str, str]
    timeout: float

    @property
    def address(self) -> str:
        """The URL as messages show it: without a password."""
        return str(self.url.copy_with(userinfo=b"")).rstrip("/")


@dataclass(frozen=True)
class Accepted:
    """An edit that the gateway has queued.

    Attributes
    ----------
    ignored : names of the parameters that have no effect
    """

    task_id: str
    ignored: tuple[str, ...]


def connection(url: str, token: str | None, timeout: float) -> Connection:
    """Return the connection to a gateway; see `Client`.

    Raises
    ------
    ArtMancerError : invalid_request
    """
    headers = {"Content-Type": "application/json"}
    if token:
        headers["Authorization"] = f"Bearer {_check_token(token)}"
    return Connection(_check_url(url), headers, timeout)


def submit(body: bytes) -> Call[Accepted]:
    """Make the call that sends an edit."""

    def read(fields: dict[str, Any]) -> Accepted:
        # Older gateways do not list the fields that they ignore.
        return Accepted(str(fields["task_id"]), tuple(fields.get("ignored", ())))

    return Call("POST", _SUBMIT, read, body, makes_job=True)


def status(task_id: str) -> Call[JobStatus]:
    """Make the call for a job's status."""
    return Call("GET", f"/api/generate/status/{_quoted(task_id)}", _job_status)


def result(task_id: str) -> Call[EditResponse]:
    """Make the call for a job's result."""

    def read(fields: dict[str, Any]) -> EditResponse:
        return EditResponse(
            task_id,
            base64.b64decode(fields["image"], validate=True),
            fields["generation_time"],
            fields["model_used"],
            fields["parameters_used"],
            fields["report"],
        )

    return Call("GET", f"/api/generate/result/{_quoted(task_id)}", read)


def cancel(task_id: str) -> Call[bool]:
    """Make the call that cancels a job; it returns False where the job had ended before."""
    path = f"{_SUBMIT}/cancel/{_quoted(task_id)}"
    return Call("POST", path, lambda fields: bool(fields["success"]))


def field_names() -> Call[frozenset[str]]:
    """Make the call for the names of the fields of an edit's request."""
    return Call("GET", "/openapi.json", _field_names)


def read_answer(call: Call[T], connection: Connection, response: httpx.Response) -> T:
    """Return the result of a call.

    Raises
    ------
    ArtMancerError : the gateway's code and message; invalid_request, unauthorized or
        image_too_large where the answer is not a gateway's
    NoAnswer : a proxy found no gateway
    """
    fields = _fields(response)
    if response.is_success:
        with suppress(KeyError, TypeError, ValueError):
            return call.read(fields)
    elif isinstance(fields.get("error_type"), str) and isinstance(fields.get("detail"), str):
        raise _gateway_error(fields, response.status_code)
    elif response.status_code in _PROXY_STATUSES:
        raise NoAnswer(
            f"A proxy at {connection.address} answered {_describe(response)}: the gateway behind "
            f"it does not answer. Start the gateway, or wait until it has started.{_note(call)}"
        )
    raise _not_a_gateway(call, connection, response)


def no_answer(
    call: Call[T], connection: Connection, error: httpx.RequestError, timeout: float
) -> NoAnswer:
    """Make the error for a request that got no answer.

    Parameters
    ----------
    timeout : timeout of the request, in seconds
    """
    reason = str(error) or type(error).__name__
    if isinstance(error, _NOT_SENT):
        return NoAnswer(
            f"No gateway answers at {connection.address} ({reason}). Start a gateway with "
            "`artmancer serve`, or pass the URL of yours to Client."
        )
    if isinstance(error, httpx.TimeoutException):
        return NoAnswer(
            f"The gateway at {connection.address} did not answer a request within {timeout:.3g} "
            f"seconds. Look at its log, or pass a longer `timeout` to Client.{_note(call)}"
        )
    return NoAnswer(
        f"The connection to {connection.address} broke before the answer was complete "
        f"({reason}). Look at the log of the gateway.{_note(call)}"
    )


def _note(call: Call[T]) -> str:
    """Return the sentence that follows an error after which a job may have been made."""
    if not call.makes_job:
        return ""
    return " The edit may be in the queue; it was not sent again, so that it is not made twice."


def _check_url(url: str) -> httpx.URL:
    """Refuse a URL to which no request can be sent."""
    with suppress(httpx.InvalidURL):
        parsed = httpx.URL(url)
        if parsed.scheme in ("http", "https") and parsed.host:
            return parsed
    advice = "Correct it." if "://" in url else f"Write http://{url}."
    raise ArtMancerError(
        "invalid_request",
        f"'{url}' is not the URL of a gateway; expected one such as http://127.0.0.1:8003. "
        f"{advice}",
    )


def _check_token(token: str) -> str:
    """Refuse a token that cannot be sent in a header. The message does not repeat the token."""
    misfit = re.search(r"[^ -~]|^ | $", token)
    if misfit:
        raise ArtMancerError(
            "invalid_request",
            f"The token holds {misfit[0]!a} at position {misfit.start()}; expected visible "
            "ASCII characters. Remove it: a token that was read from a file often ends in a line "
            "break.",
        )
    return token


def _quoted(task_id: str) -> str:
    """Return a task id as a part of a path."""
    return quote(task_id, safe="", errors="replace")


def _job_status(fields: dict[str, Any]) -> JobStatus:
    return JobStatus(
        fields["status"],
        fields["progress"],
        fields["current_step"],
        fields["total_steps"],
        fields["loading_message"],
        fields["error"],
        fields["queue_position"],
    )


def _field_names(document: dict[str, Any]) -> frozenset[str]:
    """Return the names of the fields of an edit's request, from the OpenAPI document."""
    content = document["paths"][_SUBMIT]["post"]["requestBody"]["content"]
    schema = content["application/json"]["schema"]
    name = schema["$ref"].rpartition("/")[2]
    return frozenset(document["components"]["schemas"][name]["properties"])


def _fields(response: httpx.Response) -> dict[str, Any]:
    """Return the fields of an answer; none where it is not a JSON object."""
    try:
        fields = response.json()
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}


def _gateway_error(fields: dict[str, Any], status: int) -> ArtMancerError:
    """Make the error that a gateway answered with."""
    code = fields["error_type"]
    details = dict(fields.get("details") or {})
    if code not in CODES:
        # A newer gateway's.
        details["error_type"] = code
        code = "invalid_request" if status < 500 else "generation_failed"
    return ArtMancerError(code, fields["detail"], details)


def _not_a_gateway(
    call: Call[T], connection: Connection, response: httpx.Response
) -> ArtMancerError:
    """Make the error for an answer that is not a gateway's."""
    code = _CODES.get(response.status_code, "invalid_request")
    address = connection.address
    answered = f"{address} answered {call.method} {call.path} with {_describe(response)}"
    if response.has_redirect_location:
        # The rest of such an address may be a secret, for example of a login page.
        target = str(response.url.join(response.headers["location"])).partition("?")[0]
        base = target.removesuffix(call.path)
        gateway = "a gateway's URL" if base == target else base
        return ArtMancerError(
            code,
            f"{answered}, a redirect to {target}; expected the JSON of a gateway. Pass {gateway} "
            "to Client.",
        )
    if "aiohttp" in response.headers.get("server", ""):
        return ArtMancerError(
            code,
            f"{answered}, as ComfyUI itself does; expected a gateway. Start one with `artmancer "
            f"serve --comfyui-url {address}`, and pass its address to Client.",
        )
    return ArtMancerError(
        code,
        f"{answered}; expected the JSON of a gateway. Pass the address of a gateway to Client, and "
        "check the proxy in front of it, if there is one.",
    )


def _describe(response: httpx.Response) -> str:
    """Return an answer's status and type in words."""
    kind = response.headers.get("content-type", "no content").partition(";")[0]
    return " ".join(filter(None, (str(response.status_code), response.reason_phrase, f"({kind})")))
