"""MLX's affine layout: codes along the inputs, with a scale and a bias of the model's dtype for every group of inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .base import Shape, TensorSpec
from .bits import pack, unpack
from .dtypes import dtype_from_name, dtype_name
from .integer import by_rows, group_count

BITS = (2, 3, 4, 5, 6, 8)
GROUPS = (32, 64, 128)
_WORD = 32


@dataclass(frozen=True)
class AffineInteger:
    """``w = scale · code + bias``: the zero point ``−bias / scale`` need not be a whole number.

    ======  ===============  ===================================================================
    tensor  dtype            shape
    ======  ===============  ===================================================================
    weight  uint32           ``[out, in·bits/32]``, low bits first, across words where bits do not divide 32
    scales  ``scale_dtype``  ``[out, groups]``
    biases  ``scale_dtype``  ``[out, groups]``
    ======  ===============  ===================================================================

    Attributes:
        bits: of a code: 2, 3, 4, 5, 6 or 8.
        group_size: inputs that share a scale: 32, 64 or 128.
        scale_dtype: of scales and biases.
    """

    bits: int
    group_size: int = 64
    scale_dtype: torch.dtype = torch.bfloat16

    name: ClassVar[str] = "affine"

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise ValueError(f"an affine weight has 2, 3, 4, 5, 6 or 8 bits, not {self.bits}")
        if self.group_size not in GROUPS:
            raise ValueError(f"an affine weight has groups of 32, 64 or 128, not {self.group_size}")

    def specs(self, shape: Shape) -> dict[str, TensorSpec]:
        """See :class:`~compress_kernels.layouts.base.Layout`."""
        out, columns = shape
        groups = group_count(self.group_size, columns)
        return {
            "weight": TensorSpec((out, columns * self.bits // _WORD), torch.uint32),
            "scales": TensorSpec((out, groups), self.scale_dtype),
            "biases": TensorSpec((out, groups), self.scale_dtype),
        }

    def encode(self, codes: Tensor, scale: Tensor, bias: Tensor) -> dict[str, Tensor]:
        """Pack unsigned codes ``[out, in]`` with scales and biases ``[out or 1, fewer or all groups]``."""
        out, columns = codes.shape
        groups = group_count(self.group_size, columns)
        return {
            "weight": pack(codes, self.bits).view(torch.uint32),
            "scales": by_rows(scale, out, groups).to(self.scale_dtype).contiguous(),
            "biases": by_rows(bias, out, groups).to(self.scale_dtype).contiguous(),
        }

    def codes(self, tensors: Mapping[str, Tensor], shape: Shape) -> tuple[Tensor, Tensor, Tensor]:
        """Unsigned codes int32 ``[out, in]``, scales and biases ``[out, groups]``."""
        words = tensors["weight"].contiguous().view(torch.int32)
        return unpack(words, self.bits, shape[1]), tensors["scales"], tensors["biases"]

    def decode(self, tensors: Mapping[str, Tensor], shape: Shape, dtype: torch.dtype) -> Tensor:
        """The dense weight ``[out, in]``; computed in fp32, since ``scale · code`` and ``bias`` nearly cancel."""
        return affine(*self.codes(tensors, shape)).to(dtype)

    def to_json(self) -> dict[str, Any]:
        """See :class:`~compress_kernels.layouts.base.Layout`."""
        return {
            "name": self.name,
            "bits": self.bits,
            "group": self.group_size,
            "scale_dtype": dtype_name(self.scale_dtype),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> AffineInteger:
        """The inverse of :meth:`to_json`."""
        return cls(data["bits"], data["group"], dtype_from_name(data["scale_dtype"]))


def affine(codes: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """``scale · codes + bias`` fp32 ``[out, in]``; scale and bias ``[out or 1, groups]``."""
    grouped = codes.to(torch.float32).unflatten(-1, (scale.shape[-1], -1))
    values = torch.addcmul(bias.float().unsqueeze(-1), grouped, scale.float().unsqueeze(-1))
    return values.flatten(-2)
