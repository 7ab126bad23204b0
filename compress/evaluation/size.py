"""Bytes of a checkpoint, read from the headers of its files."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from compress.checkpoint.gguf import read_gguf_header
from compress.checkpoint.headers import read_header
from compress.errors import UserError


@dataclass(frozen=True)
class FolderSize:
    """`files`: bytes of the weight files; `tensors`: bytes of the tensors; `elements`: numbers in them."""

    files: int
    tensors: int
    elements: int


def folder_size(path: str | Path) -> FolderSize | None:
    """The size of the weights of a folder or of a GGUF file; None if there are neither safetensors nor GGUF files.

    Raises UserError if a safetensors file is cut off or malformed.
    """
    if Path(path).is_file():
        return _gguf_size([Path(path)])
    files = sorted(Path(path).glob("*.safetensors"))
    if not files:
        return _gguf_size(sorted(Path(path).glob("*.gguf")))
    infos = [info for file in files for info in read_header(file).values()]
    return FolderSize(
        files=sum(file.stat().st_size for file in files),
        tensors=sum(info.nbytes for info in infos),
        elements=sum(info.numel for info in infos),
    )


def _gguf_size(files: list[Path]) -> FolderSize | None:
    """Of GGUF files; one of a type that is not listed here counts by its length, and its numbers are not counted."""
    if not files:
        return None
    length = sum(file.stat().st_size for file in files)
    try:
        tensors = [tensor for file in files for tensor in read_gguf_header(file).tensors]
    except UserError:
        return FolderSize(length, length, 0)
    elements = sum(math.prod(tensor.shape) for tensor in tensors)
    return FolderSize(length, sum(tensor.spec.nbytes for tensor in tensors), elements)
