"""AWQ's GEMM layout: 4-bit codes packed along the outputs, eight in a word in an interleaved order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .base import Shape, TensorSpec
from .integer import Group, by_rows, dequantize, group_count

BITS = 4
IN_WORD = 8
ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Which 4-bit place of a word holds the first, second, … of its eight outputs."""


@dataclass(frozen=True)
class AWQInteger:
    """4-bit codes with a scale and a zero point for every group of inputs.

    =======  =======  ==========================================
    tensor   dtype    shape
    =======  =======  ==========================================
    qweight  int32    ``[in, out/8]``
    qzeros   int32    ``[groups, out/8]``
    scales   float16  ``[groups, out]``
    =======  =======  ==========================================

    Attributes:
        group_size: inputs that share a scale, or ``"channel"`` for all of an output's.
        scale_dtype: float16; other programs also write bfloat16.
    """

    group_size: Group = 128
    scale_dtype: torch.dtype = torch.float16

    name: ClassVar[str] = "awq"
    bits: ClassVar[int] = BITS

    def specs(self, shape: Shape) -> dict[str, TensorSpec]:
        """See :class:`~compress_kernels.layouts.base.Layout`; the outputs have to be a multiple of eight."""
        out, columns = shape
        groups = group_count(self.group_size, columns)
        if out % IN_WORD:
            raise ValueError(f"{out} outputs are no multiple of the {IN_WORD} that share a word")
        return {
            "qweight": TensorSpec((columns, out // IN_WORD), torch.int32),
            "qzeros": TensorSpec((groups, out // IN_WORD), torch.int32),
            "scales": TensorSpec((groups, out), self.scale_dtype),
        }

    def encode(self, codes: Tensor, scale: Tensor, zero: Tensor) -> dict[str, Tensor]:
        """Pack unsigned codes ``[out, in]`` with scales and zero points ``[out or 1, groups]``."""
        out, columns = codes.shape
        groups = group_count(self.group_size, columns)
        return {
            "qweight": pack_interleaved(codes.T),
            "qzeros": pack_interleaved(by_rows(zero, out, groups).T),
            "scales": by_rows(scale, out, groups).T.to(self.scale_dtype).contiguous(),
        }

    def codes(self, tensors: Mapping[str, Tensor], shape: Shape) -> tuple[Tensor, Tensor, Tensor]:
        """Unsigned codes int32 ``[out, in]``, scales and zero points ``[out, groups]``."""
        codes, zero = (unpack_interleaved(tensors[key]).T.contiguous() for key in ("qweight", "qzeros"))
        return codes, tensors["scales"].T.contiguous(), zero

    def decode(self, tensors: Mapping[str, Tensor], shape: Shape, dtype: torch.dtype) -> Tensor:
        """See :class:`~compress_kernels.layouts.base.Layout`."""
        return dequantize(*self.codes(tensors, shape), dtype)

    def to_json(self) -> dict[str, Any]:
        """Plain data; scales of another dtype than float16 are only read, never planned."""
        return {"name": self.name, "group": self.group_size}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> AWQInteger:
        """The inverse of :meth:`to_json`."""
        return cls(data["group"])


def pack_interleaved(codes: Tensor) -> Tensor:
    """Pack codes ``[rows, 8·n]`` of four bits into int32 ``[rows, n]``."""
    places = codes.to(torch.int64).unflatten(-1, (-1, IN_WORD))
    shifts = BITS * torch.tensor(ORDER, device=codes.device)
    words = (places << shifts).sum(-1)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32).contiguous()


def unpack_interleaved(words: Tensor) -> Tensor:
    """Invert :func:`pack_interleaved`: int32 codes ``[rows, 8·n]``."""
    shifts = BITS * torch.tensor(ORDER, dtype=torch.int32, device=words.device)
    return ((words.unsqueeze(-1) >> shifts) & 15).flatten(-2)
