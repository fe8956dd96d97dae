"""Photos over HTTP as photographers have them: the result is the photo's own file, but for the
edit.
"""

import base64
import io
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support import odd_files
from support.gateway import WAIT_TIMEOUT, FakeHost, Served, error
from support.odd_files import IPTC, PROFILES, SIDE, XMP, exif_tags, jpeg, photo, png, tiff

from artmancer import images
from artmancer.gateway import service
from artmancer.images import formats

from .conftest import REAL

_y, _x = np.mgrid[:SIDE, :SIDE] - SIDE // 2
MASK = _y**2 + _x**2 <= 8**2
OUTSIDE = _y**2 + _x**2 > 28**2


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def request(data: bytes, **more: Any) -> dict[str, Any]:
    mask = np.where(MASK, 255, 0).astype(np.uint8)[..., None]
    sent = {"input_image": encoded(data), "mask_image": encoded(png(mask))}
    return {"prompt": "", "task_type": "white-balance", "editor": "draft", **sent, **more}


def edited(gateway: Served, body: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
    """Return the image and the report of an edit."""
    answer = gateway.http.post("/api/generate", json=body)
    assert answer.status_code == 200, answer.text
    return base64.b64decode(answer.json()["image"]), answer.json()["report"]


@pytest.mark.parametrize("gateway", ["fake", "modal"], indirect=True)
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("bits", [8, 16])
def test_the_result_has_the_photos_depth_profile_and_metadata(
    gateway: Served, channels: int, bits: int
) -> None:
    pixels, profile = photo(channels, bits), PROFILES["gray" if channels == 1 else "p3"]
    data, _ = edited(gateway, request(png(pixels, profile, True)))
    after = odd_files.read_png(data)
    assert after.pixels.dtype == pixels.dtype and (after.pixels == pixels).all()
    assert (after.profile, after.xmp, after.iptc) == (profile, XMP, IPTC)
    assert exif_tags(after.exif) == exif_tags(odd_files.exif())
    assert after.dpi == (300, 300)


FILES = {
    "png": png(photo(3, 8), PROFILES["adobe"], True),
    "png 16": png(photo(4, 16), PROFILES["p3"], True),
    "tiff 16": tiff(photo(3, 16), PROFILES["p3"], True),
    "tiff gray 16": tiff(photo(1, 16), PROFILES["gray"], True),
    "jpeg": jpeg(photo(3, 8), PROFILES["adobe"], True),
}


@pytest.mark.parametrize("gateway", [REAL], indirect=True)
@pytest.mark.parametrize("name", FILES)
def test_outside_the_mask_a_real_edit_is_exact_in_the_files_own_depth(
    gateway: Served, name: str
) -> None:
    reader = {"p": odd_files.read_png, "t": odd_files.read_tiff, "j": odd_files.read_jpeg}[name[0]]
    before = reader(FILES[name])
    data, report = edited(gateway, request(FILES[name]))
    after = odd_files.read_png(data)
    assert after.pixels.dtype == before.pixels.dtype
    assert (after.pixels[OUTSIDE] == before.pixels[OUTSIDE]).all()
    if before.pixels.shape[2] > 2:
        assert (after.pixels[MASK] != before.pixels[MASK]).any()
    if before.pixels.dtype == np.uint16 and before.pixels.shape[2] > 2:
        # The edit itself has 16 bits, too: not all of its values are those of 8 bits.
        assert (after.pixels[MASK][:, :3] % 257 != 0).mean() > 0.9
    assert after.profile == before.profile
    assert (after.xmp, after.iptc) == (XMP, IPTC)
    assert report["notes"] == []


@pytest.mark.parametrize("gateway", ["fake", REAL], indirect=True)
def test_a_jpeg_asked_for_has_the_photos_own_tables(gateway: Served) -> None:
    data = jpeg(photo(3, 8), PROFILES["adobe"], True, quality=71, subsampling=2)
    result, _ = edited(gateway, request(data, output_format="jpeg"))
    before, after = Image.open(io.BytesIO(data)), Image.open(io.BytesIO(result))
    assert after.quantization == before.quantization
    assert [layer[:3] for layer in after.layer] == [layer[:3] for layer in before.layer]
    content = odd_files.read_jpeg(result)
    assert (content.profile, content.xmp, content.iptc) == (PROFILES["adobe"], XMP, IPTC)
    chosen, _ = edited(gateway, request(data, output_format="jpeg", output_quality=30))
    assert Image.open(io.BytesIO(chosen)).quantization != before.quantization


@pytest.mark.parametrize("gateway", ["fake"], indirect=True)
def test_the_report_names_what_the_format_cannot_hold(gateway: Served) -> None:
    _, report = edited(gateway, request(png(photo(4, 16)), output_format="jpeg"))
    notes = " ".join(report["notes"])
    assert "the photo has more" in notes and "no transparency" in notes


def test_a_reference_is_sent_to_comfyui_in_the_photos_profile(
    fake: FakeHost, quick: Served
) -> None:
    red = np.full((30, 30, 3), (220, 30, 30), np.uint8)
    body = request(
        png(photo(3, 8), PROFILES["adobe"]),
        task_type="insertion",
        prompt="a red square",
        reference_image=encoded(png(red)),
    )
    edited(quick, body)
    graph = fake.fake.posted[-1]["prompt"]
    sent = next(
        node["inputs"]["image"]
        for node in graph.values()
        if node["inputs"].get("name") == "reference_image"
    )
    stored = fake.fake.temp[sent.removesuffix(" [temp]")]
    after = odd_files.read_png(stored)
    assert after.profile == PROFILES["adobe"]
    assert np.abs(after.pixels - odd_files.adobe_rgb((220, 30, 30))).max() < 1.5


def test_floating_point_is_refused_before_a_job_is_made(fake: FakeHost, quick: Served) -> None:
    arrived = fake.fake.arrived
    data = tiff(photo(3, 8).astype(np.float32))
    answer = quick.http.post("/api/generate", json=request(data))
    assert error(answer) == (400, "invalid_image")
    assert "floating-point" in answer.json()["detail"]
    assert fake.fake.arrived == arrived


@pytest.mark.parametrize("gateway", [REAL], indirect=True)
@pytest.mark.parametrize(
    ("name", "module"), [("HEIF", "pillow_heif"), ("AVIF", "PIL._avif"), ("JXL", "pillow_jxl")]
)
def test_newer_formats_are_edited(gateway: Served, name: str, module: str) -> None:
    pytest.importorskip(module)
    assert name in formats.readable()
    buffer = io.BytesIO()
    Image.fromarray(photo(3, 8)).save(buffer, name, quality=90, icc_profile=PROFILES["p3"])
    shown = np.asarray(Image.open(io.BytesIO(buffer.getvalue())).convert("RGB"))
    data, _ = edited(gateway, request(buffer.getvalue()))
    after = odd_files.read_png(data)
    assert (after.pixels[OUTSIDE] == shown[OUTSIDE]).all()
    assert (after.pixels[MASK] != shown[MASK]).any()


@pytest.mark.parametrize("gateway", ["fake", "modal", REAL], indirect=True)
@pytest.mark.parametrize("method", ["manual", "ai"])
def test_white_balance_as_a_tool_keeps_the_photos_file(gateway: Served, method: str) -> None:
    pixels = photo(3, 16)
    file = {"file": ("photo.png", png(pixels, PROFILES["adobe"], True), "image/png")}
    form = {"method": method, "temperature": "0"}
    answer = gateway.http.post("/api/image-utils/white-balance", files=file, data=form).json()
    after = odd_files.read_png(base64.b64decode(answer["corrected_image"]))
    assert after.pixels.dtype == np.uint16
    assert (after.profile, after.xmp, after.iptc) == (PROFILES["adobe"], XMP, IPTC)


@pytest.mark.parametrize("name", ["tiff 16", "png 16"])
def test_a_preview_is_a_jpeg_that_looks_like_the_photo(quick: Served, name: str) -> None:
    answer = quick.http.post("/api/image-utils/preview", json={"image": encoded(FILES[name])})
    assert answer.headers["content-type"] == "image/jpeg"
    after = odd_files.read_jpeg(answer.content)
    assert after.profile == PROFILES["p3"] and not after.exif
    colors, alpha = photo(4 if "png" in name else 3, 16) / 65535, 1
    if "png" in name:
        colors, alpha = colors[..., :3], colors[..., 3:]
    over_white = (colors * alpha + 1 - alpha) * 255
    assert np.abs(after.pixels - over_white).mean() < 6


def test_few_photos_are_decoded_at_a_time(quick: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    decoding: set[int] = set()
    waiting = threading.Barrier(service.DECODED_AT_A_TIME)

    def preview(path: Path) -> bytes:
        decoding.add(threading.get_ident())
        decoded.append(len(decoding))
        waiting.wait(WAIT_TIMEOUT)
        decoding.discard(threading.get_ident())
        return path.read_bytes()

    monkeypatch.setattr(images, "preview", preview)
    body = {"image": encoded(FILES["tiff 16"])}
    count = 4 * service.DECODED_AT_A_TIME
    with ThreadPoolExecutor(count) as pool:
        answers = pool.map(
            lambda _: quick.http.post("/api/image-utils/preview", json=body), range(count)
        )
    assert [answer.status_code for answer in answers] == [200] * count
    assert max(decoded) == service.DECODED_AT_A_TIME


def test_a_preview_of_no_image_says_why(quick: Served) -> None:
    body = {"image": encoded(b"v/1\x01" + bytes(100))}
    answer = quick.http.post("/api/image-utils/preview", json=body)
    assert error(answer) == (400, "invalid_image") and "OpenEXR" in answer.json()["detail"]
