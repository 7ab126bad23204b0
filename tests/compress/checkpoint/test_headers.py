"""Headers of safetensors files: what the library writes is read alike, and every damage is named."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from compress.checkpoint.headers import read_header
from compress.errors import UserError

TENSORS = {
    "a": torch.arange(12, dtype=torch.float32).view(3, 4),
    "b": torch.zeros(0, 5, dtype=torch.bfloat16),
    "c": torch.ones(7, dtype=torch.int8),
    "scalar": torch.tensor(3.0, dtype=torch.float64),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "t.safetensors"
    save_file(TENSORS, path, {"format": "pt"})
    return path


def raw(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(dtype: str = "U8", shape: Any = (4,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_as_the_library_reads_it(file: Path) -> None:
    infos = read_header(file)
    assert infos.keys() == TENSORS.keys()
    data = file.read_bytes()
    for name, tensor in TENSORS.items():
        info = infos[name]
        assert (info.dtype, info.shape, info.nbytes) == (tensor.dtype, tuple(tensor.shape), tensor.nbytes)
        assert info.numel == tensor.numel()
        flat = data[info.offset : info.offset + info.nbytes]
        assert flat == tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
    with safe_open(file, "pt") as opened:
        assert set(opened.keys()) == infos.keys()


def test_tensors_come_in_the_order_of_their_bytes(file: Path) -> None:
    offsets = [info.offset for info in read_header(file).values()]
    assert offsets == sorted(offsets)


@pytest.mark.parametrize(
    ("header", "data", "words"),
    [
        (b"{", b"", "not valid JSON"),
        (b"[1]", b"", "not a JSON object"),
        (b"\xff\xfe{}", b"", "not valid JSON"),
        (b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}", b"", "not valid JSON|malformed"),
        (b'{"a":1,"a":2}', b"", "a key occurs twice"),
        ({"a": 3}, b"", "entry for a is malformed"),
        ({"a": {"dtype": "U8", "shape": [1]}}, b"", "entry for a is malformed"),
        ({"a": entry(shape=[-4])}, b"1234", "entry for a is malformed"),
        ({"a": entry(shape=[4.0])}, b"1234", "entry for a is malformed"),
        ({"a": entry(shape=[True, 4])}, b"1234", "entry for a is malformed"),
        ({"a": entry(offsets=(4, 0))}, b"1234", "entry for a is malformed"),
        ({"a": entry(offsets=(0, 3))}, b"123", "needs 4 bytes, its entry gives 3"),
        ({"a": entry(offsets=(1, 5))}, b"12345", "tensor a leaves a hole before it"),
        ({"a": entry(), "b": entry(offsets=(3, 7))}, b"1234567", "tensor b overlaps the tensor before it"),
        ({"a": entry()}, b"123", "tensor a ends at byte"),
        ({"a": entry()}, b"12345678", "4 bytes at its end belong to no tensor"),
        ({"a": entry("F4", (3,), (0, 1))}, b"1", "not even"),
    ],
)
def test_a_damaged_header_is_named(tmp_path: Path, header: Any, data: bytes, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        read_header(raw(tmp_path / "x.safetensors", header, data))
    assert "x.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_dtype_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="tensor a has dtype Q7"):
        read_header(raw(tmp_path / "x.safetensors", {"a": entry("Q7")}, b"1234"))


@pytest.mark.parametrize("keep", [0, 3, 7, 8, 20, -1])
def test_a_file_that_is_cut_off(file: Path, keep: int) -> None:
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(UserError, match="corrupt or truncated"):
        read_header(file)


@pytest.mark.parametrize("length", [100_000_001, (1 << 63), 999])
def test_a_length_beyond_the_file(tmp_path: Path, length: int) -> None:
    with pytest.raises(UserError, match="its header claims"):
        read_header(raw(tmp_path / "x.safetensors", {}, length=length))


def test_a_file_without_tensors(tmp_path: Path) -> None:
    assert read_header(raw(tmp_path / "x.safetensors", {"__metadata__": {"format": "pt"}})) == {}


def test_four_bit_numbers_count_by_pairs(tmp_path: Path) -> None:
    info = read_header(raw(tmp_path / "x.safetensors", {"a": entry("F4", (2, 6), (0, 6))}, b"123456"))["a"]
    assert (info.shape, info.nbytes) == ((2, 3), 6)
