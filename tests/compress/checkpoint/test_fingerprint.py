"""A checkpoint of other contents has another fingerprint, whatever its sizes and times."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from compress.checkpoint.fingerprint import PIECE, PIECES, content_fingerprint


@pytest.fixture
def file(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "large": torch.randn(300, 200, generator=generator),
        "small": torch.randn(16, generator=generator),
        "none": torch.empty(0, 4),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def rewritten(file: Path, **changes: torch.Tensor) -> str:
    """Write other values under the same size and time; the fingerprint before and after must differ."""
    before = file.stat()
    save_file({**load_file(file), **changes}, file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    return content_fingerprint([file])


def test_the_same_contents_elsewhere_are_the_same(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "copy" / file.name
    other.parent.mkdir()
    other.write_bytes(file.read_bytes())
    assert content_fingerprint([other]) == content_fingerprint([file])


def test_other_values_of_one_tensor_are_seen(file: Path) -> None:
    before = content_fingerprint([file])
    large = load_file(file)["large"]
    assert rewritten(file, large=large * 1.001) != before


def test_every_byte_of_a_small_tensor_counts(file: Path) -> None:
    before = content_fingerprint([file])
    small = load_file(file)["small"]
    assert small.nbytes <= PIECE * PIECES
    for index in range(len(small)):
        changed = small.clone()
        changed[index] += 1
        assert rewritten(file, small=changed) != before
    assert rewritten(file, small=small) == before


def test_names_shapes_and_file_names_count(file: Path, tmp_path: Path) -> None:
    before = content_fingerprint([file])
    tensors = load_file(file)
    save_file({**tensors, "small": tensors["small"].view(4, 4)}, file)
    assert content_fingerprint([file]) != before
    save_file({"other": tensors["small"], **{k: v for k, v in tensors.items() if k != "small"}}, file)
    assert content_fingerprint([file]) != before
    save_file(tensors, file)
    assert content_fingerprint([file]) == before
    assert content_fingerprint([file.rename(tmp_path / "other.safetensors")]) != before


@pytest.mark.parametrize("size", [0, 10, 5_000_000])
def test_a_file_of_another_format_is_sampled_all_over(tmp_path: Path, size: int) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(bytes(size))
    before = content_fingerprint([path])
    for place in (0, size // 2, size - 1) if size else ():
        data = bytearray(size)
        start = max(0, place - 2000)
        data[start : start + 4000] = b"x" * len(data[start : start + 4000])
        path.write_bytes(data)
        assert content_fingerprint([path]) != before
