"""Bytes of a checkpoint folder, read from the headers of its files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from compress.checkpoint.headers import read_header


@dataclass(frozen=True)
class FolderSize:
    """`files`: bytes of the weight files; `tensors`: bytes of the tensors; `elements`: numbers in them."""

    files: int
    tensors: int
    elements: int


def folder_size(path: str | Path) -> FolderSize | None:
    """The size of the weights of a folder; None if it holds no safetensors files (a hub name, say).

    Raises UserError if a file is cut off or malformed.
    """
    files = sorted(Path(path).glob("*.safetensors"))
    if not files:
        return None
    infos = [info for file in files for info in read_header(file).values()]
    return FolderSize(
        files=sum(file.stat().st_size for file in files),
        tensors=sum(info.nbytes for info in infos),
        elements=sum(info.numel for info in infos),
    )
