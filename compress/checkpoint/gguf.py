"""GGUF files: metadata and tensor table as bytes, laid out before the first tensor is written, and read back.

The format (version 3): magic, version, counts, key-value pairs, an entry for each tensor, then the tensors, each at a
multiple of 32 bytes. All numbers are little endian; dimensions are listed with the fastest first.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from compress_kernels.layouts import BLOCK_TYPES, TensorSpec

from compress.errors import UserError

from .shards import Shard, Slot

FILENAME = "model.gguf"
ALIGNMENT = 32
_MAGIC, _VERSION = b"GGUF", 3

Kind = Literal["u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array", "u64", "i64", "f64"]
_KINDS: tuple[Kind, ...] = (
    "u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array", "u64", "i64", "f64",
)  # fmt: skip
_STRUCTS = {"u8": "B", "i8": "b", "u16": "H", "i16": "h", "u32": "I", "i32": "i", "f32": "f", "bool": "?"}
_STRUCTS |= {"u64": "Q", "i64": "q", "f64": "d"}
_DENSE_CODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 30}
_DENSE_OF_CODE = {code: dtype for dtype, code in _DENSE_CODES.items()}
_BLOCK_OF_CODE = {kind.code: name for name, kind in BLOCK_TYPES.items()}


@dataclass(frozen=True)
class Value:
    """A metadata value: its kind, and whether it is an array of that kind."""

    kind: Kind
    value: Any
    array: bool = False


@dataclass(frozen=True)
class GGUFTensor:
    """A tensor of a GGUF file: its name, its shape as torch has it, and its type.

    ``type`` is a dtype, or the name of a block type, of which ``shape``'s last dimension counts the columns, not bytes.
    """

    name: str
    shape: tuple[int, ...]
    type: torch.dtype | str

    @property
    def spec(self) -> TensorSpec:
        """What is stored: uint8 for blocks, the last dimension in bytes."""
        if isinstance(self.type, torch.dtype):
            return TensorSpec(self.shape, self.type)
        kind = BLOCK_TYPES[self.type]
        return TensorSpec((*self.shape[:-1], self.shape[-1] // kind.block * kind.nbytes), torch.uint8)

    @property
    def code(self) -> int:
        """The type's number in the file."""
        return BLOCK_TYPES[self.type].code if isinstance(self.type, str) else _DENSE_CODES[self.type]


@dataclass(frozen=True)
class GGUFHeader:
    """What a GGUF file says before its tensors; ``offsets`` are from the file's start."""

    metadata: Mapping[str, Value]
    tensors: tuple[GGUFTensor, ...]
    offsets: Mapping[str, int]


def lay_out_gguf(
    metadata: Mapping[str, Value], tensors: Sequence[GGUFTensor], filename: str = FILENAME
) -> Shard:
    """One GGUF file, to the byte: its header and where each tensor goes."""
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise ValueError("two output tensors share one name")
    starts, position = [], 0
    for tensor in tensors:
        starts.append(position)
        position += _aligned(tensor.spec.nbytes)
    parts = [_MAGIC, struct.pack("<IQQ", _VERSION, len(tensors), len(metadata))]
    parts += [_string(key) + _value(value) for key, value in metadata.items()]
    for tensor, start in zip(tensors, starts, strict=True):
        dims = tensor.shape[::-1]
        parts.append(
            _string(tensor.name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, tensor.code, start)
        )
    header = b"".join(parts)
    header += b"\0" * (_aligned(len(header)) - len(header))
    slots = tuple(
        Slot(tensor.name, tensor.spec, len(header) + start)
        for tensor, start in zip(tensors, starts, strict=True)
    )
    return Shard(filename, header, slots, ALIGNMENT)


def read_gguf_header(path: Path) -> GGUFHeader:
    """The metadata and the tensor table of a GGUF file; no tensor is read.

    Raises:
        UserError: the file is cut off, not GGUF, or holds a tensor of a type that is not read here.
    """
    reader = _Reader(path)
    try:
        return reader.header()
    except (struct.error, UnicodeDecodeError, IndexError, OverflowError) as error:
        raise UserError(f"{path} is corrupt or truncated: {error}; download or copy it again.") from None


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _string(text: str) -> bytes:
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def _value(value: Value) -> bytes:
    if not value.array:
        return struct.pack("<I", _KINDS.index(value.kind)) + _items(value.kind, [value.value])
    items = list(value.value)
    head = struct.pack("<IIQ", _KINDS.index("array"), _KINDS.index(value.kind), len(items))
    return head + _items(value.kind, items)


def _items(kind: Kind, items: Iterable[Any]) -> bytes:
    if kind == "string":
        return b"".join(_string(item) for item in items)
    listed = list(items)
    return struct.pack(f"<{len(listed)}{_STRUCTS[kind]}", *listed)


class _Reader:
    """Reads the front of a file piece by piece."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._size = path.stat().st_size
        # The front of a file is at most its metadata: some megabytes of tokens.
        with path.open("rb") as file:
            self._data = file.read(min(self._size, 1 << 28))
        self._at = 0

    def header(self) -> GGUFHeader:
        """The metadata and the tensors' places.

        Raises:
            UserError: it is no GGUF file, or a damaged one.
        """
        if self._data[:4] != _MAGIC:
            raise UserError(f"{self._path} is not a GGUF file")
        self._at = 4
        version, tensors, pairs = self._take("<IQQ")
        if version != _VERSION:
            raise UserError(f"{self._path} is GGUF version {version}; version {_VERSION} is read here")
        metadata = {}
        for _ in range(pairs):
            key = self._text()
            metadata[key] = self._typed()
        entries = [self._tensor() for _ in range(tensors)]
        alignment = metadata["general.alignment"].value if "general.alignment" in metadata else ALIGNMENT
        start = -(-self._at // alignment) * alignment
        for tensor, offset in entries:
            if start + offset + tensor.spec.nbytes > self._size:
                raise UserError(f"{self._path} is cut off: tensor {tensor.name} ends behind the file's end")
        return GGUFHeader(
            metadata,
            tuple(tensor for tensor, _ in entries),
            {t.name: start + offset for t, offset in entries},
        )

    def _tensor(self) -> tuple[GGUFTensor, int]:
        name = self._text()
        (count,) = self._take("<I")
        *dims, code, offset = self._take(f"<{count}QIQ")
        kind = _BLOCK_OF_CODE.get(code) or _DENSE_OF_CODE.get(code)
        if kind is None:
            raise UserError(f"{self._path}: tensor {name} is of GGUF type {code}, which is not read here")
        return GGUFTensor(name, tuple(dims[::-1]), kind), offset

    def _typed(self) -> Value:
        (code,) = self._take("<I")
        kind = _KINDS[code]
        if kind != "array":
            return Value(kind, self._several(kind, 1)[0])
        inner, count = self._take("<IQ")
        return Value(_KINDS[inner], self._several(_KINDS[inner], count), array=True)

    def _several(self, kind: Kind, count: int) -> list[Any]:
        if kind == "string":
            return [self._text() for _ in range(count)]
        return list(self._take(f"<{count}{_STRUCTS[kind]}"))

    def _text(self) -> str:
        (length,) = self._take("<Q")
        end = self._at + length
        if end > len(self._data):
            raise IndexError("a text ends behind the file's end")
        data, self._at = self._data[self._at : end], end
        return data.decode("utf-8")

    def _take(self, form: str) -> tuple[Any, ...]:
        found = struct.unpack_from(form, self._data, self._at)
        self._at += struct.calcsize(form)
        return found
