"""Reading .pt files: the same tensors as PyTorch reads, and no code of the file."""

import collections
import contextlib
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny_lama

from artmancer.torch_file import read_tensors

pytestmark = pytest.mark.usefixtures("spandrel")


class Command:
    """An object whose pickle runs a command when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def write(path: Path, content: bytes, compression: int = zipfile.ZIP_STORED) -> Path:
    """Write a .pt file with this pickle and one storage of four floats."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/data/0", struct.pack("4f", 1, 2, 3, 4))
    return path


def tensor_pickle(size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> bytes:
    """Return the pickle of {"a": a tensor of this shape in storage 0}."""
    opcodes = [b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n(("]
    opcodes += [b"X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000"]
    opcodes += [b"X\x03\x00\x00\x00cpuK\x04tQ", b"J" + struct.pack("<i", offset)]
    for numbers in (size, stride):
        opcodes += [b"(", *(b"J" + struct.pack("<i", number) for number in numbers), b"t"]
    return b"".join([*opcodes, b"\x89ccollections\nOrderedDict\n)RtRs."])


def test_torchscript_and_state_dicts_give_the_tensors_that_pytorch_reads(tmp_path: Path) -> None:
    script = tiny_lama.save(tmp_path / "script.pt")
    weights = tiny_lama.save_state_dict(tmp_path / "weights.pt")
    for path, expected in (
        (script, torch.jit.load(str(script)).state_dict()),
        (weights, torch.load(weights, weights_only=True)),
    ):
        tensors = read_tensors(path)
        assert tensors.keys() == expected.keys()
        for name, tensor in expected.items():
            assert tensors[name].dtype == tensor.dtype
            assert torch.equal(tensors[name], tensor), name


def test_views_and_types_are_kept(tmp_path: Path) -> None:
    base = torch.arange(24, dtype=torch.float16).view(4, 6)
    content = {"view": base[1:3, ::2].T, "long": torch.tensor(7), "none": torch.empty(0, 3)}
    torch.save(content, tmp_path / "views.pt")
    tensors = read_tensors(tmp_path / "views.pt")
    for name, tensor in content.items():
        assert torch.equal(tensors[name], tensor)
        assert tensors[name].dtype == tensor.dtype


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    torch.save({"weight": torch.ones(1), "bomb": Command(marker)}, tmp_path / "bomb.pt")
    with pytest.raises(ValueError, match=r"it names (posix|nt)\.mkdir, which is no tensor"):
        read_tensors(tmp_path / "bomb.pt")
    assert not marker.exists()


@pytest.mark.parametrize(
    "content",
    [
        # builtins.getattr, eval and a class of torch
        b"cbuiltins\neval\n(X\x01\x00\x00\x001tR.",
        b"\x80\x04\x8c\x08builtins\x8c\x07getattr\x93.",
        b"ctorch\nload\n(X\x01\x00\x00\x00atR.",
        # OrderedDict.fromkeys, a dotted name
        b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.fromkeys\x93.",
        b"ctorch.jit._pickle\nbuild\n)R.",
        # a persistent id that is no storage
        b"K\x01Q.",
        # no content, half an opcode, nothing on the stack
        b"",
        b"\x80",
        b"0.",
    ],
)
def test_names_and_opcodes_that_make_no_tensor_are_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ValueError, match="pickle cannot be read"):
        read_tensors(write(tmp_path / "file.pt", content))


@pytest.mark.parametrize(
    "content",
    [
        # 16 GB of memo, 1 GB of bytes that are not there
        b"\x80\x02Nr\xff\xff\xff\x7f.",
        b"\x80\x04\x8e\x00\x00\x00\x40\x00\x00\x00\x00.",
        pickle.dumps(collections.deque([1])),
    ],
    ids=["memo", "bytes", "deque"],
)
def test_a_pickle_cannot_take_much_memory(tmp_path: Path, content: bytes) -> None:
    import tracemalloc

    path = write(tmp_path / "file.pt", content)
    tracemalloc.start()
    try:
        with contextlib.suppress(ValueError):
            assert read_tensors(path) == {}
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()


def test_shared_objects_are_searched_once(tmp_path: Path) -> None:
    # 40 levels of a dictionary that holds the next one twice: a trillion ways to the last.
    value: dict[str, Any] = {"end": 1}
    for _ in range(40):
        value = {"a": value, "b": value}
    assert read_tensors(write(tmp_path / "file.pt", pickle.dumps(value, 2))) == {}
    value["loop"] = value
    assert read_tensors(write(tmp_path / "loop.pt", pickle.dumps(value, 2))) == {}


def test_a_tensor_has_the_values_of_its_bytes(tmp_path: Path) -> None:
    tensors = read_tensors(write(tmp_path / "file.pt", tensor_pickle((2, 2), (1, 2))))
    assert tensors["a"].tolist() == [[1, 3], [2, 4]]


@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [
        ((5,), (1,), 0),
        ((4,), (1,), 1),
        ((2, 2), (4, 1), 0),
        ((1000000, 1000000), (0, 0), 0),
        ((-1,), (1,), 0),
        ((4,), (-1,), 3),
        ((4,), (1,), -1),
        ((2, 2), (1,), 0),
    ],
)
def test_a_tensor_past_its_bytes_is_refused(
    tmp_path: Path, size: tuple[int, ...], stride: tuple[int, ...], offset: int
) -> None:
    with pytest.raises(ValueError, match=r"bytes|numbers"):
        read_tensors(write(tmp_path / "file.pt", tensor_pickle(size, stride, offset)))


def test_tensors_that_share_bytes_cannot_take_much_memory(tmp_path: Path) -> None:
    values = torch.zeros(100_000)
    torch.save({"a": values, "tied": values}, tmp_path / "tied.pt")
    assert len(read_tensors(tmp_path / "tied.pt")) == 2
    torch.save({str(number): values for number in range(100)}, tmp_path / "bomb.pt")
    with pytest.raises(ValueError, match="share bytes"):
        read_tensors(tmp_path / "bomb.pt")


def test_compressed_and_foreign_archives_are_refused(tmp_path: Path) -> None:
    pickled = pickle.dumps({})
    with pytest.raises(ValueError, match="compressed"):
        read_tensors(write(tmp_path / "file.pt", pickled, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as archive:
        archive.writestr("readme.txt", "no weights")
    with pytest.raises(ValueError, match=r"no data\.pkl"):
        read_tensors(tmp_path / "other.pt")
    (tmp_path / "page.pt").write_text("<html>404</html>")
    with pytest.raises(ValueError, match="not a zip archive"):
        read_tensors(tmp_path / "page.pt")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path: Path, share: float) -> None:
    path = tiny_lama.save_state_dict(tmp_path / "file.pt")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match="zip archive"):
        read_tensors(path)


def test_changed_bytes_are_refused(tmp_path: Path) -> None:
    path = tiny_lama.save_state_dict(tmp_path / "file.pt")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"zip archive|pickle"):
        read_tensors(path)
