"""The HTTP API and the nodes keep the names, types and defaults that others rely on."""

from pathlib import Path

import pytest
from support import contract
from support.comfyui import ComfyUI

from artmancer.images import MAX_PIXELS
from artmancer.options import ONE_MEGAPIXEL


def test_the_http_api_is_as_recorded(tmp_path: Path) -> None:
    document = contract.openapi(contract.served_document(tmp_path / "data"))
    assert document == contract.read("openapi")


def test_the_largest_max_megapixels_is_the_largest_photo() -> None:
    inputs = contract.read("object_info")["ArtMancer_Resize"]["input"]["required"]
    assert inputs["max_megapixels"][1]["max"] * ONE_MEGAPIXEL == MAX_PIXELS
    fields = contract.read("openapi")["components"]["schemas"]["GenerateInputs"]["properties"]
    assert fields["max_megapixels"]["maximum"] * ONE_MEGAPIXEL == MAX_PIXELS


@pytest.mark.comfyui
def test_the_nodes_are_as_recorded(comfyui: ComfyUI) -> None:
    info = comfyui.get("/object_info")
    if "search_aliases" not in info["LoadImage"]:
        pytest.skip("recorded in a newer ComfyUI, which writes options in another form")
    assert contract.object_info(info) == contract.read("object_info")
