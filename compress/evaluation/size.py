"""Bytes of a checkpoint folder, read from the headers of its files."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from compress.errors import UserError

MAX_HEADER = 100_000_000
"""The largest header that the safetensors library itself accepts, in bytes."""


@dataclass(frozen=True)
class FolderSize:
    """`files`: bytes of the weight files; `tensors`: bytes of the tensors; `elements`: numbers in them."""

    files: int
    tensors: int
    elements: int


def folder_size(path: str | Path) -> FolderSize | None:
    """The size of the weights of a folder; None if it holds no safetensors files (a hub name, say)."""
    files = sorted(Path(path).glob("*.safetensors"))
    if not files:
        return None
    tensors = elements = 0
    for file in files:
        for shape, nbytes in _header(file):
            tensors += nbytes
            elements += math.prod(shape)
    return FolderSize(sum(file.stat().st_size for file in files), tensors, elements)


def _header(file: Path) -> Iterator[tuple[list[int], int]]:
    """Shape and bytes of each tensor of a safetensors file."""
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > MAX_HEADER:
                raise ValueError("header too long")
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        for entry in header.values():
            start, end = entry["data_offsets"]
            yield entry["shape"], end - start
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise UserError(
            f"{file} is not a whole safetensors file ({error}): write or download it again."
        ) from error
