"""Settings of the gateway, from the environment and an `.env` file; the environment wins."""

import binascii
from base64 import b64decode
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from ..options import JOB_TIMEOUTS
from .fetch import parse_host

_INSTALLED = Path(__file__).parent / "graphs"
WORKFLOWS = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[2] / "workflows" / "api"
"""The folder of served graphs: in an installed package, else in the checkout."""


class Settings(BaseSettings):
    """Settings of the gateway.

    A field with a `validation_alias` is read from the environment variable with that name, every
    other field from ARTMANCER_ and its own name.

    Attributes
    ----------
    host : address to listen on
    port : port to listen on
    debug : record debug sessions for requests with enable_debug
    allowed_origins : origins of web pages that may use the gateway
    comfyui_url : ComfyUI of the heavy lane
    comfyui_light_url : ComfyUI of the light lane; None: the same one
    api_token : bearer token that requests must have; None: they need none
    role : lanes that this deployment serves
    page : serve the page at /
    data : folder of the job database, uploads, results and debug sessions
    workflows : folder of the served graphs
    trusted_workflows : names of served graphs that are not checked by workflow_safety
    fetch_hosts : hosts of pictures that clients send as URLs; see fetch.parse_host
    webhook_secret : signs webhooks: whsec_ and 24 to 64 bytes as base64; None: there are none
    public_url : address of the gateway, which the URLs in webhooks begin with
    result_hours : hours that a finished job and its results are kept
    picture_hours : hours that an upload is kept after its last use
    picture_gigabytes : largest total size of the uploads
    max_waiting : most unfinished jobs in a lane; further jobs are refused
    max_per_client : most unfinished jobs of one client in a lane
    max_body : largest request, in bytes
    heavy_timeout : seconds a job of the heavy lane may run
    light_timeout : seconds a job of the light lane may run
    """

    model_config = SettingsConfigDict(
        env_file=".env",
        env_prefix="ARTMANCER_",
        env_ignore_empty=True,
        extra="ignore",
        populate_by_name=True,
    )

    host: str = Field("127.0.0.1", validation_alias="HOST")
    port: int = Field(8003, validation_alias="PORT")
    debug: bool = Field(False, validation_alias="DEBUG")
    allowed_origins: Annotated[list[str], NoDecode] = Field(
        ["http://localhost:3000"], validation_alias="ALLOWED_ORIGINS"
    )
    comfyui_url: str = Field("http://127.0.0.1:8188", validation_alias="COMFYUI_URL")
    comfyui_light_url: str | None = Field(None, validation_alias="COMFYUI_LIGHT_URL")
    api_token: SecretStr | None = None
    role: Literal["all", "heavy", "light"] = "all"
    page: bool = True
    data: Path = Path.home() / ".artmancer"
    workflows: Path = WORKFLOWS
    trusted_workflows: Annotated[list[str], NoDecode] = []
    fetch_hosts: Annotated[list[str], NoDecode] = []
    webhook_secret: SecretStr | None = None
    public_url: str = ""
    result_hours: float = 24
    picture_hours: float = 24
    picture_gigabytes: float = 4
    max_waiting: int = 500
    max_per_client: int = 250
    max_body: int = 40 * 2**20
    heavy_timeout: float = JOB_TIMEOUTS["heavy"]
    light_timeout: float = JOB_TIMEOUTS["light"]

    @field_validator("allowed_origins", mode="before")
    @classmethod
    def _split_origins(cls, value: Any) -> Any:
        """Split a comma-separated list of origins."""
        if not isinstance(value, str):
            return value
        origins = [origin.strip().rstrip("/") for origin in value.split(",") if origin.strip()]
        if "*" in origins:
            raise ValueError("* would allow every web page; list the origins of your pages")
        return origins

    @field_validator("trusted_workflows", "fetch_hosts", mode="before")
    @classmethod
    def _split_names(cls, value: Any) -> Any:
        """Split a comma-separated list of names."""
        if not isinstance(value, str):
            return value
        return [name.strip() for name in value.split(",") if name.strip()]

    @field_validator("webhook_secret")
    @classmethod
    def _check_secret(cls, value: SecretStr | None) -> SecretStr | None:
        expected = "expected whsec_ and 24 to 64 bytes as base64"
        prefix, _, key = value.get_secret_value().partition("_") if value else ("", "", "")
        try:
            if value and not (prefix == "whsec" and 24 <= len(b64decode(key, validate=True)) <= 64):
                raise ValueError(expected)
        except binascii.Error:
            raise ValueError(expected) from None
        return value

    @field_validator("public_url")
    @classmethod
    def _strip_slash(cls, value: str) -> str:
        return value.rstrip("/")

    @field_validator("fetch_hosts")
    @classmethod
    def _check_hosts(cls, value: list[str]) -> list[str]:
        for host in value:
            parse_host(host)
        return value
