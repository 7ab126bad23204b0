"""Importance matrices: the mean squares of each weight's inputs, in the file that llama.cpp's quantizer reads.

The file is GGUF: for each tensor ``NAME.in_sum2`` fp32 ``[matrices, in]``, sums of squares, and ``NAME.counts`` fp32
``[matrices, 1]``, how many tokens each was summed over. The older form (``imatrix.dat``) is read, too: the number of entries,
then for each the length of its name, the name, a count, the number of values, and fp32 values, mean squares times that count.
"""

from __future__ import annotations

import struct
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

    def of_width(self, columns: int) -> Tensor | None:
        """Mean squares ``[matrices, columns]``; ``None`` where the numbers do not divide into rows of that width.

        The older form does not say how many matrices there are.
        """
        if self.sums.shape[1] == columns:
            return self.means
        if len(self.counts) != 1 or self.sums.numel() % columns:
            return None
        return self.means.view(-1, columns)


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
    """GGUF tensor → its importance, from a file of either form.

    Raises:
        UserError: the file cannot be read, is damaged, or no importance matrix.
    """
    try:
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                return _read_older(path)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): give the path of an importance matrix"
        ) from None
    header = read_gguf_header(path)
    kind = header.metadata.get("general.type")
    if kind is None or kind.value != "imatrix":
        raise UserError(f"{path} is a GGUF file, but no importance matrix")
    data = path.read_bytes()
    held = {
        tensor.name: _values(path, data, header.offsets[tensor.name], tensor) for tensor in header.tensors
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


def _values(path: Path, data: bytes, offset: int, tensor: GGUFTensor) -> Tensor:
    stored = data[offset : offset + tensor.spec.nbytes]
    if tensor.type != torch.float32 or len(stored) != tensor.spec.nbytes:
        raise UserError(
            f"{path}: {tensor.name} is not fp32, or ends behind the file's end: copy the file again"
        )
    return (
        torch.frombuffer(bytearray(stored), dtype=torch.float32).view(tensor.shape)
        if stored
        else torch.empty(tensor.shape)
    )


def _read_older(path: Path) -> dict[str, Importance]:
    """The form before GGUF."""
    data, found = path.read_bytes(), dict[str, Importance]()
    try:
        (entries,), at = struct.unpack_from("<i", data), 4
        for _ in range(entries):
            (length,) = struct.unpack_from("<i", data, at)
            name, at = data[at + 4 : at + 4 + length].decode("utf-8"), at + 4 + length
            count, size = struct.unpack_from("<ii", data, at)
            if not name or length < 0 or size < 1 or size > (len(data) - at - 8) // 4:
                raise ValueError("an entry is longer than the file")
            values = torch.frombuffer(bytearray(data[at + 8 : at + 8 + 4 * size]), dtype=torch.float32)
            at += 8 + 4 * size
            found[name] = Importance(values.view(1, -1), torch.tensor([float(max(count, 0))]))
    except (struct.error, UnicodeDecodeError, ValueError) as error:
        raise UserError(
            f"{path} is neither form of llama.cpp's importance matrices, or is damaged: {error}"
        ) from None
    if not found:
        raise UserError(f"{path} is an importance matrix without entries")
    return found
