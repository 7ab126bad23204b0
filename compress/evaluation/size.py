"""Bytes of a checkpoint, read from the headers of its files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn
from transformers import PreTrainedModel

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


GGUF_OUTSIDE = ("token_embd.", "position_embd.", "token_types.", "output.")
"""How the names of embeddings and head begin in a GGUF file."""


def outside_bytes(path: str | Path, model: PreTrainedModel) -> int | None:
    """Bytes of the embeddings and the head on disk, compressed or not; a weight that they share counts once.

    Args:
        path: a folder of safetensors files, or a GGUF file or a folder of such.
        model: the checkpoint, loaded; its modules say what the embeddings and the head are called.

    Returns:
        None where a file cannot be read, or none is there.
    """
    folder = Path(path)
    files = [] if folder.is_file() else sorted(folder.glob("*.safetensors"))
    if files:
        sizes = {name: info.nbytes for file in files for name, info in read_header(file).items()}
        return sum(size for name, size in sizes.items() if _belongs(name, sizes, _outside_modules(model)))
    blocks = [folder] if folder.is_file() else sorted(folder.glob("*.gguf"))
    try:
        tensors = [tensor for file in blocks for tensor in read_gguf_header(file).tensors]
    except UserError:
        return None
    found = [tensor.spec.nbytes for tensor in tensors if tensor.name.startswith(GGUF_OUTSIDE)]
    return sum(found) if tensors else None


def _outside_modules(model: PreTrainedModel) -> frozenset[str]:
    """The names of all embeddings, those of positions included, and of the head."""
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    return frozenset(
        name
        for name, module in model.named_modules()
        if module is head or module is table or isinstance(module, nn.Embedding)
    )


def _belongs(tensor: str, tensors: Mapping[str, int], modules: frozenset[str]) -> bool:
    """Whether a tensor on disk is a part of one of the modules, by its name, or where none has that, by its last part."""
    for module in modules:
        if tensor.startswith(f"{module}."):
            return True
        leaf = module.rpartition(".")[2]
        named = any(name.startswith(f"{module}.") for name in tensors)
        if not named and (tensor.startswith(f"{leaf}.") or f".{leaf}." in tensor):
            return True
    return False
