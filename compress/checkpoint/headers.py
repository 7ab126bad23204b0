"""The header of a safetensors file, read and checked without touching the tensors behind it.

The format: 8 bytes (little endian) with the length n of the header, n bytes of JSON that map a tensor's
name to its dtype, shape and byte range, then the tensors, packed without holes.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.errors import UserError

_MAX_HEADER = 100_000_000  # the limit that the safetensors library itself sets

_DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}
# Kinds that only newer versions of torch know.
for _name, _attribute in {"F8_E8M0": "float8_e8m0fnu", "F4": "float4_e2m1fn_x2"}.items():
    if hasattr(torch, _attribute):
        _DTYPES[_name] = getattr(torch, _attribute)


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies. `shape` is torch's (two 4-bit elements count as one); `offset` is from the
    file's start.

    With `decode` the tensor is stored in a quantized form that begins there, and `decode` gives it as `dtype` and
    `shape` say, from the stored tensors `parts`.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    nbytes: int
    file: Path
    offset: int
    decode: Callable[[], Tensor] | None = field(default=None, compare=False, repr=False)
    parts: tuple[TensorInfo, ...] = field(default=(), compare=False, repr=False)

    @property
    def numel(self) -> int:
        """Elements of the tensor; 1 of a scalar."""
        return math.prod(self.shape)


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Reads and checks the header of one safetensors file.

    Returns: every tensor of the file, by name, in the order of the bytes.
    Raises: `UserError` if the file is cut off or not a well-formed safetensors file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if len(start) < 8:
            raise _corrupt(path, f"it has {size} bytes, too few for a header")
        (length,) = struct.unpack("<Q", start)
        if length > _MAX_HEADER or 8 + length > size:
            raise _corrupt(path, f"its header claims {length} bytes, but the file has {size}")
        text = file.read(length)
    entries = _parse(path, text)
    infos = {name: _tensor_info(path, name, entry, 8 + length) for name, entry in entries.items()}
    ordered = dict(sorted(infos.items(), key=lambda item: (item[1].offset, item[1].nbytes)))
    _check_layout(path, ordered, 8 + length, size)
    return ordered


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            raise ValueError("a key occurs twice")
        return result

    try:
        entries = json.loads(text.decode("utf-8"), object_pairs_hook=no_duplicates)
    except (ValueError, RecursionError) as error:
        raise _corrupt(path, f"its header is not valid JSON ({error})") from None
    if not isinstance(entries, dict):
        raise _corrupt(path, "its header is not a JSON object")
    entries.pop("__metadata__", None)
    return entries


def _tensor_info(path: Path, name: str, entry: Any, data_start: int) -> TensorInfo:
    try:
        kind, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        sound = all(type(n) is int and n >= 0 for n in (*shape, begin, end)) and begin <= end
        sound = sound and isinstance(kind, str) and isinstance(shape, list)
    except (TypeError, KeyError, ValueError):
        sound = False
    if not sound:
        raise _corrupt(path, f"its entry for {name} is malformed")
    if kind not in _DTYPES:
        raise UserError(f"{path}: tensor {name} has dtype {kind}, which this version of torch does not know.")
    dtype = _DTYPES[kind]
    if kind == "F4":
        if not shape or shape[-1] % 2:
            raise _corrupt(path, f"tensor {name} has 4-bit elements in a last dimension that is not even")
        shape = [*shape[:-1], shape[-1] // 2]
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes != end - begin:
        raise _corrupt(
            path, f"tensor {name} of shape {shape} needs {nbytes} bytes, its entry gives {end - begin}"
        )
    return TensorInfo(dtype, tuple(shape), nbytes, path, data_start + begin)


def _check_layout(path: Path, infos: dict[str, TensorInfo], start: int, size: int) -> None:
    """The tensors must fill the file from the header to its end, without holes and without overlaps."""
    position = start
    for name, info in infos.items():
        if info.offset != position:
            problem = "overlaps the tensor before it" if info.offset < position else "leaves a hole before it"
            raise _corrupt(path, f"tensor {name} {problem}")
        position = info.offset + info.nbytes
        if position > size:
            raise _corrupt(path, f"tensor {name} ends at byte {position}, but the file has {size} bytes")
    if position != size:
        raise _corrupt(path, f"{size - position} bytes at its end belong to no tensor")


def _corrupt(path: Path, what: str) -> UserError:
    return UserError(f"{path} is corrupt or truncated: {what}; download or copy it again.")
