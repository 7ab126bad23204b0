"""The layout of the output files: exact, aligned, and read by the safetensors library."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from compress_kernels.layouts import TensorSpec
from safetensors import safe_open

from compress.checkpoint.headers import _DTYPES, read_header
from compress.checkpoint.shards import index_json, lay_out

MIXED = [
    ("a.weight", TensorSpec((3, 5), torch.bfloat16)),
    ("a.weight_shape", TensorSpec((2,), torch.int64)),
    ("b.weight_packed", TensorSpec((3, 1), torch.int32)),
    ("b.weight", TensorSpec((0,), torch.bfloat16)),
    ("c.flag", TensorSpec((7,), torch.bool)),
    ("d", TensorSpec((), torch.float32)),
]


def _write(folder: Path, shards: tuple) -> None:  # type: ignore[type-arg]
    for shard in shards:
        (folder / shard.filename).write_bytes(shard.header + bytes(shard.tensor_bytes))


@pytest.mark.parametrize("limit", [1, 20, 40, 10**9])
def test_the_files_are_what_safetensors_reads(tmp_path: Path, limit: int) -> None:
    shards = lay_out(MIXED, limit)
    _write(tmp_path, shards)
    found = {}
    for shard in shards:
        assert (tmp_path / shard.filename).stat().st_size == shard.nbytes
        assert len(shard.header) % 64 == 0
        assert all(slot.offset % slot.spec.dtype.itemsize == 0 for slot in shard.slots)
        infos = read_header(tmp_path / shard.filename)
        assert [(slot.name, slot.offset) for slot in shard.slots if slot.nbytes] == [
            (name, info.offset) for name, info in infos.items() if info.nbytes
        ]
        with safe_open(tmp_path / shard.filename, framework="pt") as file:
            assert file.metadata() == {"format": "pt"}
            for name in file.keys():  # noqa: SIM118 - not a mapping
                tensor = file.get_tensor(name)
                found[name] = TensorSpec(tuple(tensor.shape), tensor.dtype)
    assert found == dict(MIXED)


def test_a_file_holds_no_more_than_the_limit_unless_one_tensor_does() -> None:
    tensors = [
        (f"t{i}", TensorSpec((size,), torch.uint8)) for i, size in enumerate([30, 30, 30, 100, 10, 60])
    ]
    shards = lay_out(tensors, 64)
    assert [[slot.name for slot in shard.slots] for shard in shards] == [
        ["t0", "t1"],
        ["t2"],
        ["t3"],
        ["t4"],
        ["t5"],
    ]
    assert [shard.filename for shard in shards][:2] == [
        "model-00001-of-00005.safetensors",
        "model-00002-of-00005.safetensors",
    ]


def test_one_file_has_the_plain_name() -> None:
    assert [shard.filename for shard in lay_out(MIXED)] == ["model.safetensors"]


def test_the_index_names_every_tensor_once() -> None:
    shards = lay_out(MIXED, 20)
    index = json.loads(json.dumps(index_json(shards)))
    assert set(index["weight_map"]) == {name for name, _ in MIXED}
    assert index["metadata"]["total_size"] == sum(spec.nbytes for _, spec in MIXED)


def test_two_tensors_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="share one name"):
        lay_out([MIXED[0], MIXED[0]])


def test_every_dtype_that_can_be_read_can_be_written(tmp_path: Path) -> None:
    """Tensors that are passed through may be of any kind, down to two numbers in a byte."""
    specs = [(code, TensorSpec((3, 2), dtype)) for code, dtype in _DTYPES.items()]
    (shard,) = lay_out(specs)
    _write(tmp_path, (shard,))
    found = {
        name: TensorSpec(info.shape, info.dtype)
        for name, info in read_header(tmp_path / shard.filename).items()
    }
    assert found == dict(specs)
