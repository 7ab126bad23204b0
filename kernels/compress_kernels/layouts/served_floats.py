"""Small floats as the plain ``fp8`` configuration (DeepSeek's) and ModelOpt store them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..value_types import FLOAT_TYPES
from .base import Shape, TensorSpec
from .floats import FloatGroup, PackedFloat

KINDS: dict[str, tuple[tuple[str, FloatGroup], ...]] = {
    "fp8": (("fp8", "block"),),
    "modelopt": (
        ("fp8", "tensor"),
        ("fp8", "channel"),
        ("fp8", "block"),
        ("mxfp8", 32),
        ("nvfp4", 16),
    ),
}
"""Form → the types that it holds, each with what shares a scale."""


@dataclass(frozen=True)
class ServedFloat:
    """The elements and scales of :class:`~compress_kernels.layouts.floats.PackedFloat` under other names and in other shapes.

    ================  ==========================================================================================================
    tensor            dtype and shape
    ================  ==========================================================================================================
    weight            fp8 e4m3 ``[out, in]``; of nvfp4 uint8 ``[out, in/2]``
    weight_scale_inv  fp32 ``[⌈out/128⌉, in/128]``; the form ``fp8`` alone
    weight_scale      ``modelopt``: of fp8 fp32 ``[]`` (tensor), ``[out]`` (channel) or ``[⌈out/128⌉, 1, in/128, 1]`` (block);
                      of mxfp8 uint8 and of nvfp4 fp8 e4m3, ``[out, in/group]``
    weight_scale_2    fp32 ``[]``, by which nvfp4's scales are multiplied: the reciprocal of ``weight_global_scale``
    ================  ==========================================================================================================

    Attributes:
        form: ``fp8`` or ``modelopt``.
        type: ``fp8``, ``mxfp8`` or ``nvfp4``.
        group_size: what shares a scale.
    """

    form: str
    type: str
    group_size: FloatGroup

    name: ClassVar[str] = "served-float"

    def __post_init__(self) -> None:
        if (self.type, self.group_size) not in KINDS.get(self.form, ()):
            raise ValueError(f"the form {self.form!r} has no {self.type} with scales by {self.group_size}")

    @property
    def plain(self) -> PackedFloat:
        """The layout that operators multiply with."""
        return PackedFloat.of(self.type, self.group_size, torch.float32)

    @property
    def bits(self) -> int:
        """Bits of an element."""
        return FLOAT_TYPES[self.type].bits

    @property
    def scale_name(self) -> str:
        """The suffix of the scales."""
        return "weight_scale_inv" if self.form == "fp8" else "weight_scale"

    def specs(self, shape: Shape) -> dict[str, TensorSpec]:
        """See :class:`~compress_kernels.layouts.base.Layout`."""
        plain = self.plain.specs(shape)
        scale = plain["weight_scale"]
        specs = {
            "weight": plain["weight" if self.bits == 8 else "weight_packed"],
            self.scale_name: TensorSpec(self._scale_shape(scale.shape), scale.dtype),
        }
        if self.type == "nvfp4":
            specs["weight_scale_2"] = TensorSpec((), torch.float32)
        return specs

    def of_plain(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of :attr:`plain`, renamed and reshaped."""
        scale = tensors["weight_scale"]
        scale = scale.to(torch.float32) if self.type == "fp8" else scale
        found = {
            "weight": tensors["weight" if self.bits == 8 else "weight_packed"],
            self.scale_name: scale.reshape(self._scale_shape(tuple(scale.shape))),
        }
        if self.type == "nvfp4":
            found["weight_scale_2"] = tensors["weight_global_scale"].reshape(()).reciprocal()
        return found

    def to_plain(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of :meth:`of_plain`."""
        weight, scale = tensors["weight"], tensors[self.scale_name]
        if self.type == "nvfp4":
            outer = tensors["weight_scale_2"].reshape(1).reciprocal()
            return {"weight_packed": weight, "weight_scale": scale, "weight_global_scale": outer}
        shapes: dict[FloatGroup, tuple[int, ...]] = {"tensor": (1,), "channel": (weight.shape[0], 1)}
        blocks = scale.reshape(scale.shape[0], -1) if self.group_size == "block" else scale
        return {"weight": weight, "weight_scale": blocks.reshape(shapes.get(self.group_size, blocks.shape))}

    def decode(self, tensors: Mapping[str, Tensor], shape: Shape, dtype: torch.dtype) -> Tensor:
        """See :class:`~compress_kernels.layouts.base.Layout`."""
        return self.plain.decode(self.to_plain(tensors), shape, dtype)

    def to_json(self) -> dict[str, Any]:
        """See :class:`~compress_kernels.layouts.base.Layout`."""
        return {"name": self.name, "form": self.form, "type": self.type, "group": self.group_size}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ServedFloat:
        """The inverse of :meth:`to_json`."""
        return cls(data["form"], data["type"], data["group"])

    def _scale_shape(self, plain: tuple[int, ...]) -> tuple[int, ...]:
        if self.form == "fp8" or self.type != "fp8":
            return plain
        shapes: dict[FloatGroup, tuple[int, ...]] = {"tensor": (), "channel": plain[:1]}
        return shapes.get(self.group_size, (plain[0], 1, plain[-1], 1))
