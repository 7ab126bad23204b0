"""MLX's small floats: MXFP4, MXFP8 and NVFP4 in 32-bit words, with a byte for the scale of every group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..value_types import FLOAT_TYPES
from .base import Shape, TensorSpec
from .floats import PackedFloat

TYPES = ("mxfp4", "mxfp8", "nvfp4")
_WORD = 32


@dataclass(frozen=True)
class MLXFloat:
    """The elements and scales of :class:`~compress_kernels.layouts.floats.PackedFloat` under other names.

    ======  ======  ==============================================================================
    tensor  dtype   shape
    ======  ======  ==============================================================================
    weight  uint32  ``[out, in·bits/32]``, the element of the lowest column in the lowest bits
    scales  uint8   ``[out, in/group]``: E8M0, of nvfp4 the bits of E4M3
    ======  ======  ==============================================================================

    NVFP4 has no scale of the whole weight here: its group scales are the scales.

    Attributes:
        type: ``mxfp4``, ``mxfp8`` or ``nvfp4``.
    """

    type: str

    name: ClassVar[str] = "mlx-float"

    def __post_init__(self) -> None:
        if self.type not in TYPES:
            raise ValueError(f"MLX has no float mode {self.type!r}: known are {', '.join(TYPES)}")

    @property
    def plain(self) -> PackedFloat:
        """The layout that operators multiply with."""
        return PackedFloat.of(self.type)

    @property
    def bits(self) -> int:
        """Bits of an element."""
        return FLOAT_TYPES[self.type].bits

    def specs(self, shape: Shape) -> dict[str, TensorSpec]:
        """See :class:`~compress_kernels.layouts.base.Layout`; groups have to divide the columns and fill whole words."""
        out, columns = shape
        if columns * self.bits % _WORD:
            raise ValueError(f"{columns} columns of {self.bits} bits do not fill whole 32-bit words")
        return {
            "weight": TensorSpec((out, columns * self.bits // _WORD), torch.uint32),
            "scales": TensorSpec(self.plain.scale_grid(shape), torch.uint8),
        }

    def of_plain(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of :attr:`plain` as MLX names them.

        Raises ``ValueError`` where nvfp4 has a scale of the whole weight other than 1.
        """
        if self.type == "nvfp4" and float(tensors["weight_global_scale"]) != 1:
            raise ValueError("has a scale of the whole weight, which nvfp4 of MLX does not have")
        elements = tensors["weight" if self.bits == 8 else "weight_packed"].contiguous().view(torch.uint8)
        scales = tensors["weight_scale"].contiguous().view(torch.uint8)
        return {"weight": elements.view(torch.uint32), "scales": scales}

    def to_plain(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of :meth:`of_plain`."""
        octets, scales = tensors["weight"].contiguous().view(torch.uint8), tensors["scales"]
        if self.bits == 8:
            return {"weight": octets.view(torch.float8_e4m3fn), "weight_scale": scales}
        if self.type == "mxfp4":
            return {"weight_packed": octets, "weight_scale": scales}
        one = torch.ones(1, dtype=torch.float32, device=scales.device)
        stored = scales.contiguous().view(torch.float8_e4m3fn)
        return {"weight_packed": octets, "weight_scale": stored, "weight_global_scale": one}

    def decode(self, tensors: Mapping[str, Tensor], shape: Shape, dtype: torch.dtype) -> Tensor:
        """See :class:`~compress_kernels.layouts.base.Layout`."""
        return self.plain.decode(self.to_plain(tensors), shape, dtype)

    def to_json(self) -> dict[str, Any]:
        """See :class:`~compress_kernels.layouts.base.Layout`."""
        return {"name": self.name, "type": self.type}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> MLXFloat:
        """The inverse of :meth:`to_json`."""
        return cls(data["type"])
