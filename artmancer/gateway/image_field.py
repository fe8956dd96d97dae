"""The field of a request that holds an image: base64, or a URL."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

TAG = "image:"
"""Prefix of the parts of a mistake's location that are no names of fields."""


class ImageUrl(BaseModel):
    """An image by its URL, for gateways whose operator lists the hosts."""

    model_config = ConfigDict(extra="forbid")

    url: str = Field(description="https://, of a host that this gateway lists.")


def _kind(value: Any) -> str:
    return f"{TAG}url" if isinstance(value, dict | ImageUrl) else f"{TAG}base64"


_Base64 = Annotated[
    str,
    Field(
        description="An image file as base64, with or without a data: prefix.",
        json_schema_extra={"contentEncoding": "base64"},
    ),
]

ImageField = Annotated[
    Annotated[_Base64, Tag(f"{TAG}base64")] | Annotated[ImageUrl, Tag(f"{TAG}url")],
    Discriminator(_kind),
]
"""An image file in JSON. The kind is decided first, so that a mistake is reported for one kind."""
