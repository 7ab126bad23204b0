"""Where every output tensor will lie: safetensors files laid out before the first weight is solved.

The plan is the file. Dtypes and shapes are known from headers and recipe alone, so each shard's header, its length and
the offset of every tensor in it are pure functions of the plan; the writer only fills in the bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from compress_kernels.layouts import TensorSpec

DEFAULT_SHARD_SIZE = 5_000_000_000
ALIGNMENT = 64

_SAFETENSORS_NAMES: dict[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
# Kinds that only newer versions of torch know.
for _attribute, _name in {"float8_e8m0fnu": "F8_E8M0", "float4_e2m1fn_x2": "F4"}.items():
    if hasattr(torch, _attribute):
        _SAFETENSORS_NAMES[getattr(torch, _attribute)] = _name


@dataclass(frozen=True)
class Slot:
    """One tensor's place: absolute byte ``offset`` in its file, and what belongs there."""

    name: str
    spec: TensorSpec
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor in the file."""
        return self.spec.nbytes


@dataclass(frozen=True)
class Shard:
    """One file of tensors, to the byte: its header and where each tensor goes.

    Between tensors lie zeros up to the next multiple of ``alignment``, as behind the last; safetensors has no gaps.
    """

    filename: str
    header: bytes
    slots: tuple[Slot, ...]
    alignment: int = 1

    @property
    def nbytes(self) -> int:
        """Bytes of the whole file."""
        return len(self.header) + sum(-(-s.nbytes // self.alignment) * self.alignment for s in self.slots)

    @property
    def tensor_bytes(self) -> int:
        """Bytes of the tensors, without the header."""
        return sum(slot.nbytes for slot in self.slots)


def lay_out(
    tensors: Iterable[tuple[str, TensorSpec]], max_shard_size: int = DEFAULT_SHARD_SIZE
) -> tuple[Shard, ...]:
    """Distribute ``tensors`` over as few files as their order allows, none over ``max_shard_size`` bytes of tensors.

    A tensor larger than that has a file of its own. Inside a file the tensors with wide elements come first: the
    format allows no holes, and so each tensor starts at a multiple of its element size.
    """
    groups: list[list[tuple[str, TensorSpec]]] = [[]]
    filled = 0
    for name, spec in tensors:
        if groups[-1] and filled + spec.nbytes > max_shard_size:
            groups.append([])
            filled = 0
        groups[-1].append((name, spec))
        filled += spec.nbytes
    return tuple(_shard(_filename(i, len(groups)), group) for i, group in enumerate(groups))


def index_json(shards: Iterable[Shard]) -> dict[str, Any]:
    """The contents of ``model.safetensors.index.json``."""
    shards = tuple(shards)
    weight_map = {slot.name: shard.filename for shard in shards for slot in shard.slots}
    return {
        "metadata": {"total_size": sum(shard.tensor_bytes for shard in shards)},
        "weight_map": dict(sorted(weight_map.items())),
    }


def dtype_code(dtype: torch.dtype) -> str:
    """The name safetensors gives to ``dtype``; raises ``ValueError`` for one it cannot store."""
    if dtype not in _SAFETENSORS_NAMES:
        raise ValueError(f"safetensors cannot store {dtype}")
    return _SAFETENSORS_NAMES[dtype]


def _shape(spec: TensorSpec) -> list[int]:
    """The shape as safetensors counts it: torch takes two 4-bit numbers for one element."""
    if _SAFETENSORS_NAMES[spec.dtype] == "F4":
        return [*spec.shape[:-1], 2 * spec.shape[-1]]
    return list(spec.shape)


def _filename(index: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{index + 1:05d}-of-{count:05d}.safetensors"


def _shard(filename: str, tensors: list[tuple[str, TensorSpec]]) -> Shard:
    ordered = sorted(tensors, key=lambda item: -item[1].dtype.itemsize)
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    starts = []
    for name, spec in ordered:
        end = begin + spec.nbytes
        entries[name] = {
            "dtype": dtype_code(spec.dtype),
            "shape": _shape(spec),
            "data_offsets": [begin, end],
        }
        starts.append(begin)
        begin = end
    if len(entries) != len(ordered) + 1:
        raise ValueError("two output tensors share one name")
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    header = len(text).to_bytes(8, "little") + text
    slots = (
        Slot(name, spec, len(header) + start) for (name, spec), start in zip(ordered, starts, strict=True)
    )
    return Shard(filename, header, tuple(slots))
