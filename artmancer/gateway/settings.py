"""What the gateway reads from its environment, and from an `.env` file; the environment wins."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

_INSTALLED = Path(__file__).parent / "graphs"
WORKFLOWS = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[2] / "workflows" / "api"


class Settings(BaseSettings):
    """Names of the contract are read as they stand, all others as ARTMANCER_....

    data : the folder of the job database, pictures, results and debug sessions
    workflows : the folder of graphs that are served
    result_hours : how long a finished job and its result are kept
    picture_hours, picture_gigabytes : how long a sent picture is kept after its last use,
        and how many in all
    max_waiting, max_per_client : unfinished jobs in all and of one client,
        beyond which a job is refused
    max_body : bytes of a request
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
    result_hours: float = 24
    picture_hours: float = 24
    picture_gigabytes: float = 4
    max_waiting: int = 500
    max_per_client: int = 250
    max_body: int = 40 * 2**20
    heavy_timeout: float = 600
    light_timeout: float = 300

    @field_validator("allowed_origins", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        origins = [origin.strip().rstrip("/") for origin in value.split(",") if origin.strip()]
        if "*" in origins:
            raise ValueError("every page would be let in; name their origins")
        return origins
