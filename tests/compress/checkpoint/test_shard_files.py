"""Tensors at their planned places: written, mapped, read back and hashed, and nothing else touched."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from compress_kernels.layouts import TensorSpec
from safetensors.torch import load_file

from compress.checkpoint.shard_files import Places, bytes_of, file_sha256
from compress.checkpoint.shards import Shard, lay_out

SPECS = {
    "wide": TensorSpec((6, 5), torch.float32),
    "half": TensorSpec((9,), torch.bfloat16),
    "bytes": TensorSpec((3, 3), torch.uint8),
    "empty": TensorSpec((0, 4), torch.float32),
}
VALUES = {
    name: torch.randint(0, 99, spec.shape, generator=torch.Generator().manual_seed(1)).to(spec.dtype)
    for name, spec in SPECS.items()
}


@pytest.fixture(params=[10**9, 64], ids=["one file", "several"])
def shards(request: pytest.FixtureRequest) -> tuple[Shard, ...]:
    return lay_out(SPECS.items(), request.param)


@pytest.fixture
def places(tmp_path: Path, shards: tuple[Shard, ...]) -> Iterator[Places]:
    opened = Places(tmp_path, shards)
    opened.create()
    yield opened
    opened.close()


def digest(name: str) -> str:
    return hashlib.sha256(bytes_of(VALUES[name])).hexdigest()


def test_the_library_reads_what_was_written(
    places: Places, shards: tuple[Shard, ...], tmp_path: Path
) -> None:
    for name, tensor in VALUES.items():
        assert places.write(name, bytes_of(tensor)) == digest(name)
    places.settle()
    found = {name: t for shard in shards for name, t in load_file(tmp_path / shard.filename).items()}
    assert found.keys() == VALUES.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in VALUES.items())


def test_files_have_their_full_length_from_the_start(
    places: Places, shards: tuple[Shard, ...], tmp_path: Path
) -> None:
    assert {path.name: path.stat().st_size for path in tmp_path.iterdir()} == {
        shard.filename: shard.nbytes for shard in shards
    }
    assert places.stand()


def test_reading_back(places: Places) -> None:
    for name, tensor in VALUES.items():
        places.write(name, bytes_of(tensor))
        found = places.read(name)
        assert torch.equal(found, tensor)
        assert found.dtype == tensor.dtype
        assert places.sha256(name) == digest(name)


def test_what_is_written_into_a_map_is_in_the_file(places: Places) -> None:
    places.map("half")[:] = VALUES["half"]
    assert places.map("half") is places.map("half")
    assert places.settle() == {"half": digest("half")}
    assert torch.equal(places.read("half"), VALUES["half"])
    assert places.settle() == {}


def test_progress_is_told_the_bytes(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compress.checkpoint.shard_files._CHUNK", 50)
    told: list[int] = []
    assert places.write("wide", bytes_of(VALUES["wide"]), told.append) == digest("wide")
    assert told == [50, 50, 20]
    assert places.sha256("wide") == digest("wide")


def test_a_tensor_of_another_size_is_refused(places: Places) -> None:
    with pytest.raises(ValueError, match="half: the plan has 18 bytes, not 4"):
        places.write("half", memoryview(b"1234"))


def test_a_tensor_that_the_plan_does_not_have(places: Places) -> None:
    with pytest.raises(ValueError, match="stranger is not in the plan"):
        places.slot("stranger")
    assert {slot.name for slot in places.slots} == set(SPECS)


def test_files_that_do_not_stand(places: Places, shards: tuple[Shard, ...], tmp_path: Path) -> None:
    path = tmp_path / shards[-1].filename
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert not places.stand()
    path.write_bytes(b"\0" * 9 + whole[9:])
    assert not places.stand()
    path.write_bytes(whole)
    assert places.stand()
    path.unlink()
    assert not places.stand()


def test_places_are_opened_again_after_they_were_closed(places: Places) -> None:
    places.write("bytes", bytes_of(VALUES["bytes"]))
    places.close()
    assert torch.equal(places.read("bytes"), VALUES["bytes"])


def test_a_file_system_that_reserves_nothing(
    tmp_path: Path, shards: tuple[Shard, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "not here")

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    opened = Places(tmp_path, shards)
    opened.create()
    assert opened.stand()
    opened.close()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_found_at_the_start(
    tmp_path: Path, shards: tuple[Shard, ...], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def full(*_: int) -> None:
        raise OSError(number, "full")

    monkeypatch.setattr(os, "posix_fallocate", full)
    opened = Places(tmp_path, shards)
    with pytest.raises(OSError, match="full"):
        opened.create()
    opened.close()


def test_bytes_of_views_and_of_nothing() -> None:
    tensor = torch.arange(12).view(3, 4)
    assert bytes(bytes_of(tensor.T)) == tensor.T.contiguous().numpy().tobytes()
    assert bytes(bytes_of(torch.empty(0))) == b""
    assert bytes(bytes_of(torch.nn.Parameter(torch.ones(2)))) == torch.ones(2).numpy().tobytes()


def test_hash_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"abc" * 1000)
    assert file_sha256(path) == hashlib.sha256(b"abc" * 1000).hexdigest()
