"""NF4 as bitsandbytes stores it: 4-bit codes of sixteen quantiles of a Gaussian, one absolute maximum per block."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .base import Shape, TensorSpec
from .dtypes import dtype_from_name, dtype_name

NF4_VALUES = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""The values of the codes 0 to 15 (QLoRA, arXiv:2305.14314, appendix E), as bitsandbytes has them in fp32."""


@dataclass(frozen=True)
class NormalFloat4:
    """``nf4``: ``Θ = table[code] · absmax`` with a maximum for every ``block`` of columns of a row.

    =================  ========  =================================================================================
    tensor             dtype     shape and bytes; the name in a bitsandbytes checkpoint
    =================  ========  =================================================================================
    weight_packed      uint8     ``[out·in/2, 1]``: codes row after row, the first of two in the high half of its
                                 byte; ``NAME.weight``
    weight_absmax      fp32      ``[out·in/block]``, row after row; ``NAME.weight.absmax``
    weight_quant_map   fp32      ``[16]``: the table; ``NAME.weight.quant_map``
    weight_state       uint8     JSON in UTF-8: type, block, dtype and shape of the weight;
                                 ``NAME.weight.quant_state.bitsandbytes__nf4``
    =================  ========  =================================================================================

    Products are computed in fp32 and rounded once. ``block`` must divide ``in``: where it does not, bitsandbytes (0.50)
    reads its own checkpoints wrongly on a CPU.
    """

    block: int = 64
    dtype: torch.dtype = torch.bfloat16

    name: ClassVar[str] = "nf4"

    def __post_init__(self) -> None:
        if self.block not in (32, 64, 128, 256, 512, 1024, 2048, 4096):
            raise ValueError(f"a block of nf4 is a power of two from 32 to 4096, not {self.block}")

    def specs(self, shape: Shape) -> dict[str, TensorSpec]:
        """Two codes in a byte ``[out · in/2, 1]``, the blocks' largest magnitudes, the 16 values, bitsandbytes' settings."""
        out, columns = shape
        if columns % self.block:
            raise ValueError(f"blocks of {self.block} do not divide {columns} input features")
        return {
            "weight_packed": TensorSpec((out * columns // 2, 1), torch.uint8),
            "weight_absmax": TensorSpec((out * columns // self.block,), torch.float32),
            "weight_quant_map": TensorSpec((16,), torch.float32),
            "weight_state": TensorSpec((len(self.state(shape)),), torch.uint8),
        }

    def encode(self, codes: Tensor, absmax: Tensor) -> dict[str, Tensor]:
        """Pack codes ``[out, in]`` in 0 … 15 with maxima ``[out, in/block]``."""
        shape = (codes.shape[0], codes.shape[1])
        pairs = codes.to(torch.uint8).reshape(-1, 2)
        return {
            "weight_packed": ((pairs[:, 0] << 4) | pairs[:, 1]).unsqueeze(1),
            "weight_absmax": absmax.to(torch.float32).reshape(-1).contiguous(),
            "weight_quant_map": torch.tensor(NF4_VALUES),
            "weight_state": torch.tensor(list(self.state(shape)), dtype=torch.uint8),
        }

    def codes(self, tensors: Mapping[str, Tensor], shape: Shape) -> tuple[Tensor, Tensor]:
        """Codes uint8 ``[out, in]`` and maxima fp32 ``[out, in/block]``."""
        packed = tensors["weight_packed"].view(-1)
        codes = torch.stack((packed >> 4, packed & 15), 1).view(shape)
        return codes, tensors["weight_absmax"].view(shape[0], -1)

    def decode(self, tensors: Mapping[str, Tensor], shape: Shape, dtype: torch.dtype) -> Tensor:
        """Values of the table times the blocks' largest magnitudes, ``[out, in]`` in ``dtype``."""
        codes, absmax = self.codes(tensors, shape)
        values = tensors["weight_quant_map"].to(absmax.device)[codes.to(torch.int32)]
        return (values.view(shape[0], -1, self.block) * absmax.unsqueeze(-1)).view(shape).to(dtype)

    def to_json(self) -> dict[str, Any]:
        """Plain data that :meth:`from_json` reads back."""
        return {"name": self.name, "block": self.block, "dtype": dtype_name(self.dtype)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> NormalFloat4:
        """The layout that :meth:`to_json` wrote."""
        return cls(data["block"], dtype_from_name(data["dtype"]))

    def state(self, shape: Shape) -> bytes:
        """What bitsandbytes packs beside the tensors, to the byte."""
        state = {
            "quant_type": "nf4",
            "blocksize": self.block,
            "dtype": str(self.dtype).removeprefix("torch."),
            "shape": list(shape),
        }
        return json.dumps(state).encode()
