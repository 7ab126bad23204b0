"""GPTQ's layout: codes packed along the inputs, zero points along the outputs, as AutoGPTQ, GPTQModel and vLLM read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .base import Shape, TensorSpec
from .bits import pack, unpack
from .integer import Group, by_rows, dequantize, group_count

_WORD = 32


@dataclass(frozen=True)
class GPTQInteger:
    """b-bit codes in int32 words, with a scale and a zero point for every group of inputs.

    =========  =======  =======================================================================
    tensor     dtype    shape
    =========  =======  =======================================================================
    qweight    int32    ``[in·bits/32, out]``, the codes of an output along its column, low bits first
    qzeros     int32    ``[groups, out·bits/32]``, zero points along the row, less one if ``less_one``
    scales     float16  ``[groups, out]``
    g_idx      int32    ``[in]``: the group of every input, rising
    =========  =======  =======================================================================

    Attributes:
        bits: of a code: 2, 3, 4 or 8.
        group_size: inputs that share a scale, or ``"channel"`` for all of an output's.
        symmetric: every zero point is the middle code; it is stored all the same.
        less_one: the first version of the format (``checkpoint_format: gptq``), where a zero point of 0 does not exist.
        scale_dtype: float16; other programs also write bfloat16.
    """

    bits: int
    group_size: Group = 128
    symmetric: bool = True
    less_one: bool = True
    scale_dtype: torch.dtype = torch.float16

    name: ClassVar[str] = "gptq"

    def __post_init__(self) -> None:
        if self.bits not in (2, 3, 4, 8):
            raise ValueError(f"GPTQ packs 2, 3, 4 or 8 bits, not {self.bits}")

    def specs(self, shape: Shape) -> dict[str, TensorSpec]:
        """See :class:`~compress_kernels.layouts.base.Layout`; both dimensions have to fill whole words."""
        out, columns = shape
        groups = group_count(self.group_size, columns)
        if columns * self.bits % _WORD or out * self.bits % _WORD:
            raise ValueError(f"a weight {list(shape)} of {self.bits} bits does not fill whole 32-bit words")
        return {
            "qweight": TensorSpec((columns * self.bits // _WORD, out), torch.int32),
            "qzeros": TensorSpec((groups, out * self.bits // _WORD), torch.int32),
            "scales": TensorSpec((groups, out), self.scale_dtype),
            "g_idx": TensorSpec((columns,), torch.int32),
        }

    def encode(self, codes: Tensor, scale: Tensor, zero: Tensor) -> dict[str, Tensor]:
        """Pack unsigned codes ``[out, in]`` with scales and zero points ``[out or 1, groups]``.

        Raises ``ValueError`` where ``less_one`` and a zero point is 0.
        """
        out, columns = codes.shape
        groups = group_count(self.group_size, columns)
        scale, zero = by_rows(scale, out, groups), by_rows(zero, out, groups).to(torch.int32)
        if self.less_one and int(zero.min()) < 1:
            raise ValueError("a zero point of 0 cannot be stored in the first version of GPTQ's format")
        stored = zero - 1 if self.less_one else zero
        return {
            "qweight": pack(codes, self.bits).T.contiguous(),
            "qzeros": pack(stored.T.contiguous(), self.bits),
            "scales": scale.T.to(self.scale_dtype).contiguous(),
            "g_idx": group_of_inputs(columns, groups, codes.device),
        }

    def codes(self, tensors: Mapping[str, Tensor], shape: Shape) -> tuple[Tensor, Tensor, Tensor]:
        """Unsigned codes int32 ``[out, in]``, scales and zero points ``[out, groups]``."""
        out, columns = shape
        zero = zero_points(tensors["qzeros"], self.bits, out, less_one=self.less_one)
        codes = unpack(tensors["qweight"].T.contiguous(), self.bits, columns)
        return codes, tensors["scales"].T.contiguous(), zero.T.contiguous()

    def decode(self, tensors: Mapping[str, Tensor], shape: Shape, dtype: torch.dtype) -> Tensor:
        """See :class:`~compress_kernels.layouts.base.Layout`."""
        return dequantize(*self.codes(tensors, shape), dtype)

    def to_json(self) -> dict[str, Any]:
        """Plain data; scales of another dtype than float16 are only read, never planned."""
        return {
            "name": self.name,
            "bits": self.bits,
            "group": self.group_size,
            "symmetric": self.symmetric,
            "less_one": self.less_one,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> GPTQInteger:
        """The inverse of :meth:`to_json`."""
        return cls(data["bits"], data["group"], data["symmetric"], data["less_one"])


def group_of_inputs(columns: int, groups: int, device: torch.device | str = "cpu") -> Tensor:
    """The group int32 ``[in]`` of every input where groups are runs of inputs."""
    return (torch.arange(columns, device=device) // (columns // groups)).to(torch.int32)


def zero_points(words: Tensor, bits: int, out: int, *, less_one: bool) -> Tensor:
    """The zero points int32 ``[groups, out]`` of ``qzeros``.

    Where ``less_one``, a one is added in every place of a word at once, carries included, as GPTQModel adds it; three bits,
    whose places cross words, are added place by place.
    """
    if not less_one:
        return unpack(words, bits, out)
    if _WORD % bits:
        return (unpack(words, bits, out) + 1) & ((1 << bits) - 1)
    ones = pack(torch.ones(1, _WORD // bits, dtype=torch.int32), bits)[0, 0].to(words.device, torch.int64)
    return unpack((words.to(torch.int64) + ones).to(torch.int32), bits, out)
