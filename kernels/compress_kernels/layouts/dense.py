"""A weight stored as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .base import Shape, TensorSpec
from .dtypes import dtype_from_name, dtype_name


@dataclass(frozen=True)
class Dense:
    """``weight`` ``[out, in]`` in ``dtype``, nothing packed."""

    dtype: torch.dtype = torch.bfloat16

    name: ClassVar[str] = "dense"

    def specs(self, shape: Shape) -> dict[str, TensorSpec]:
        """The weight itself, ``[out, in]`` in its dtype."""
        return {"weight": TensorSpec(shape, self.dtype)}

    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        """Store ``weight`` ``[out, in]``."""
        return {"weight": weight.to(self.dtype).contiguous()}

    def decode(self, tensors: Mapping[str, Tensor], shape: Shape, dtype: torch.dtype) -> Tensor:
        """The weight ``[out, in]`` in ``dtype``."""
        return tensors["weight"].to(dtype)

    def to_json(self) -> dict[str, Any]:
        """Plain data that :meth:`from_json` reads back."""
        return {"name": self.name, "dtype": dtype_name(self.dtype)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Dense:
        """The layout that :meth:`to_json` wrote."""
        return cls(dtype_from_name(data["dtype"]))
