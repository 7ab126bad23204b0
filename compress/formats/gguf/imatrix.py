"""Importance matrices: the mean squares of each weight's inputs, in the file that llama.cpp's quantizer reads.

The file is GGUF: for each tensor ``NAME.in_sum2`` fp32 ``[matrices, in]``, sums of squares, and ``NAME.counts`` fp32
``[matrices, 1]``, how many tokens each was summed over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from compress.checkpoint.gguf import GGUFTensor, Value, lay_out_gguf, read_gguf_header
from compress.checkpoint.shard_files import bytes_of
from compress.errors import UserError

_SUMS, _COUNTS = ".in_sum2", ".counts"


@dataclass(frozen=True)
class Importance:
    """Sums of squares fp32 ``[matrices, in]`` of a tensor's inputs, and tokens ``[matrices]`` that they are sums over."""

    sums: Tensor
    counts: Tensor

    @property
    def means(self) -> Tensor:
        """Mean squares ``[matrices, in]``; ones where a matrix has seen no token, as llama.cpp takes them."""
        counts = self.counts.unsqueeze(1)
        return torch.where(counts > 0, self.sums / counts.clamp_min(1), 1.0)


def write_imatrix(
    path: Path, tensors: Mapping[str, Importance], *, dataset: str, chunks: int, chunk_size: int
) -> None:
    """Write an importance matrix.

    Args:
        path: the file to make.
        tensors: GGUF tensor → its importance.
        dataset: the name of the text.
        chunks: how many windows of it were seen.
        chunk_size: tokens in each.
    """
    metadata = {
        "general.type": Value("string", "imatrix"),
        "imatrix.datasets": Value("string", [dataset], array=True),
        "imatrix.chunk_count": Value("u32", chunks),
        "imatrix.chunk_size": Value("u32", chunk_size),
    }
    held: dict[str, Tensor] = {}
    for name, importance in sorted(tensors.items()):
        held[name + _SUMS] = importance.sums.float()
        held[name + _COUNTS] = importance.counts.float().view(-1, 1)
    listed = [GGUFTensor(name, tuple(tensor.shape), torch.float32) for name, tensor in held.items()]
    shard = lay_out_gguf(metadata, listed, path.name)
    data = bytearray(shard.nbytes)
    data[: len(shard.header)] = shard.header
    for slot in shard.slots:
        data[slot.offset : slot.offset + slot.nbytes] = bytes_of(held[slot.name])
    path.write_bytes(data)


def read_imatrix(path: Path) -> dict[str, Importance]:
    """GGUF tensor → its importance.

    Raises:
        UserError: the file is damaged, or no importance matrix.
    """
    header = read_gguf_header(path)
    kind = header.metadata.get("general.type")
    if kind is None or kind.value != "imatrix":
        raise UserError(f"{path} is a GGUF file, but no importance matrix")
    data = path.read_bytes()
    held = {
        tensor.name: torch.frombuffer(
            bytearray(data[header.offsets[tensor.name] :][: tensor.spec.nbytes]), dtype=torch.float32
        ).view(tensor.shape)
        for tensor in header.tensors
    }
    names = [name.removesuffix(_SUMS) for name in held if name.endswith(_SUMS)]
    if lacking := [name for name in names if name + _COUNTS not in held]:
        raise UserError(f"{path}: the importance matrix has no counts of {lacking[0]}")
    return {
        name: Importance(
            held[name + _SUMS].view(-1, held[name + _SUMS].shape[-1]), held[name + _COUNTS].view(-1)
        )
        for name in names
    }
