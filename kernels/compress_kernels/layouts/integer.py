"""Integer-grid weights as compressed-tensors stores them: ``pack-quantized`` and ``int-quantized``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from .base import Shape, TensorSpec
from .bits import pack, unpack, words_for
from .dtypes import dtype_from_name, dtype_name

Group = int | Literal["channel", "tensor"]


def group_count(group: Group, in_features: int) -> int:
    """How many groups of columns share a scale; raises ``ValueError`` if ``group`` does not divide."""
    if isinstance(group, str):
        return 1
    if in_features % group:
        raise ValueError(f"group size {group} does not divide {in_features} input features")
    return in_features // group


def scale_shape(group: Group, shape: Shape) -> tuple[int, ...]:
    """Shape of the scales on disk: ``[out, groups]``, ``[out, 1]`` or ``[1]``."""
    return (1,) if group == "tensor" else (shape[0], group_count(group, shape[1]))


def dequantize(codes: Tensor, scale: Tensor, zero: Tensor, dtype: torch.dtype) -> Tensor:
    """``(codes − zero) · scale`` ``[out, in]`` in ``dtype``; scale and zero ``[out or 1, groups]``."""
    out, columns = codes.shape
    grouped = codes.view(out, scale.shape[-1], -1).to(dtype)
    centred = grouped - zero.to(dtype).unsqueeze(-1)
    return (centred * scale.to(dtype).unsqueeze(-1)).view(out, columns)


def by_rows(parameters: Tensor, out: int, groups: int) -> Tensor:
    """Scales or zero points ``[out or 1, fewer groups]``, repeated to ``[out, groups]``."""
    return parameters.expand(out, -1).repeat_interleave(groups // parameters.shape[-1], -1)


@dataclass(frozen=True)
class PackedInteger:
    """``pack-quantized``: b-bit codes in int32 words.

    ===================  =====================  =============================================================
    tensor               dtype                  shape
    ===================  =====================  =============================================================
    weight_packed        int32                  ``[out, ⌈in·bits/32⌉]``, codes ``q + 2^(bits−1)``, low bits first
    weight_scale         ``scale_dtype``        ``[out, in/group]``, ``[out, 1]`` (channel) or ``[1]`` (tensor)
    weight_shape         int64                  ``[2]``: out, in
    weight_zero_point    int32, asymmetric only ``[⌈out·bits/32⌉, groups]``, packed along the output dimension
    ===================  =====================  =============================================================

    A symmetric weight has no zero-point tensor: its zero is the code ``2^(bits−1)``. Per-tensor asymmetric weights
    store one zero point, unpacked, as int32 ``[1]``.
    """

    bits: int
    group_size: Group = 128
    symmetric: bool = True
    scale_dtype: torch.dtype = torch.bfloat16

    name: ClassVar[str] = "pack-quantized"

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise ValueError(f"a packed integer weight has 2 to 8 bits, not {self.bits}")
        if isinstance(self.group_size, int) and self.group_size < 1:
            raise ValueError(f"a group has at least one column, not {self.group_size}")

    def specs(self, shape: Shape) -> dict[str, TensorSpec]:
        """Codes in int32 words ``[out, words]``, scales ``[out, groups]``, the shape, and zero points where there are any."""
        out, columns = shape
        groups = group_count(self.group_size, columns)
        specs = {
            "weight_packed": TensorSpec((out, words_for(columns, self.bits)), torch.int32),
            "weight_scale": TensorSpec(scale_shape(self.group_size, shape), self.scale_dtype),
            "weight_shape": TensorSpec((2,), torch.int64),
        }
        if not self.symmetric:
            per_tensor = self.group_size == "tensor"
            zero_shape = (1,) if per_tensor else (words_for(out, self.bits), groups)
            specs["weight_zero_point"] = TensorSpec(zero_shape, torch.int32)
        return specs

    def encode(self, codes: Tensor, scale: Tensor, zero: Tensor | None = None) -> dict[str, Tensor]:
        """Pack unsigned codes ``[out, in]`` with scales ``[out or 1, groups]`` and zeros of the same shape."""
        out, columns = codes.shape
        return {
            "weight_packed": pack(codes, self.bits),
            "weight_shape": torch.tensor([out, columns], dtype=torch.int64),
            **self.encode_parameters(scale, zero, (out, columns)),
        }

    def encode_parameters(self, scale: Tensor, zero: Tensor | None, shape: Shape) -> dict[str, Tensor]:
        """The tensors of the scales and zero points ``[out or 1, groups]`` of a weight of ``shape``."""
        tensors = {
            "weight_scale": scale.to(self.scale_dtype)
            .reshape(scale_shape(self.group_size, shape))
            .contiguous()
        }
        if not self.symmetric:
            if zero is None:
                raise ValueError("an asymmetric weight needs zero points")
            tensors["weight_zero_point"] = self._encode_zero(zero)
        return tensors

    def codes(self, tensors: Mapping[str, Tensor], shape: Shape) -> tuple[Tensor, Tensor, Tensor]:
        """Unsigned codes ``[out, in]`` int32, scales and zeros ``[out or 1, groups]``."""
        return unpack(tensors["weight_packed"], self.bits, shape[1]), *self.parameters(tensors, shape)

    def parameters(self, tensors: Mapping[str, Tensor], shape: Shape) -> tuple[Tensor, Tensor]:
        """Scales and zeros ``[out or 1, groups]``."""
        out, columns = shape
        scale = tensors["weight_scale"].view(-1, group_count(self.group_size, columns))
        if self.symmetric:
            zero = torch.full(scale.shape, 1 << (self.bits - 1), dtype=torch.int32, device=scale.device)
        elif self.group_size == "tensor":
            zero = tensors["weight_zero_point"].view(1, 1) + (1 << (self.bits - 1))
        else:
            zero = unpack(tensors["weight_zero_point"].T, self.bits, out).T
        return scale, zero

    def decode(self, tensors: Mapping[str, Tensor], shape: Shape, dtype: torch.dtype) -> Tensor:
        """``(code − zero) · scale``, ``[out, in]`` in ``dtype``."""
        return dequantize(*self.codes(tensors, shape), dtype)

    def to_json(self) -> dict[str, Any]:
        """Plain data that :meth:`from_json` reads back."""
        return {
            "name": self.name,
            "bits": self.bits,
            "group": self.group_size,
            "symmetric": self.symmetric,
            "scale_dtype": dtype_name(self.scale_dtype),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PackedInteger:
        """The layout that :meth:`to_json` wrote."""
        return cls(data["bits"], data["group"], data["symmetric"], dtype_from_name(data["scale_dtype"]))

    def _encode_zero(self, zero: Tensor) -> Tensor:
        if self.group_size == "tensor":
            return (zero.reshape(1) - (1 << (self.bits - 1))).to(torch.int32)
        return pack(zero.to(torch.int32).T.contiguous(), self.bits).T.contiguous()


@dataclass(frozen=True)
class PlainInteger:
    """``int-quantized``: one int8 per weight, symmetric, with the scale beside it.

    ``weight`` int8 ``[out, in]`` holds ``q`` in −2^(bits−1) … 2^(bits−1)−1; ``weight_scale`` as in
    :class:`PackedInteger`. It is the layout of servers that multiply integers: inputs are rounded when the layer runs.
    """

    bits: int = 8
    group_size: Group = "channel"
    scale_dtype: torch.dtype = torch.bfloat16

    name: ClassVar[str] = "int-quantized"

    def specs(self, shape: Shape) -> dict[str, TensorSpec]:
        """Codes int8 ``[out, in]`` and scales ``[out, groups]``, or one of the whole weight."""
        return {
            "weight": TensorSpec(shape, torch.int8),
            "weight_scale": TensorSpec(scale_shape(self.group_size, shape), self.scale_dtype),
        }

    def encode(self, codes: Tensor, scale: Tensor, zero: Tensor | None = None) -> dict[str, Tensor]:
        """Store unsigned codes ``[out, in]`` with scales ``[out or 1, groups]``; ``zero`` must be the middle code."""
        return {
            "weight": (codes - (1 << (self.bits - 1))).to(torch.int8),
            "weight_scale": scale.to(self.scale_dtype)
            .reshape(scale_shape(self.group_size, (codes.shape[0], codes.shape[1])))
            .contiguous(),
        }

    def codes(self, tensors: Mapping[str, Tensor], shape: Shape) -> tuple[Tensor, Tensor, Tensor]:
        """Unsigned codes ``[out, in]`` int32, scales and zeros ``[out or 1, groups]``."""
        middle = 1 << (self.bits - 1)
        scale = tensors["weight_scale"].view(-1, group_count(self.group_size, shape[1]))
        zero = torch.full(scale.shape, middle, dtype=torch.int32, device=scale.device)
        return tensors["weight"].to(torch.int32) + middle, scale, zero

    def as_packed(
        self, tensors: Mapping[str, Tensor], shape: Shape
    ) -> tuple[PackedInteger, dict[str, Tensor]]:
        """The same weight in the layout :class:`PackedInteger`: its layout and its tensors."""
        layout = PackedInteger(self.bits, self.group_size, True, self.scale_dtype)
        codes, scale, zero = self.codes(tensors, shape)
        packed = layout.encode(codes, scale, zero)
        return layout, {name: tensor.to(codes.device) for name, tensor in packed.items()}

    def decode(self, tensors: Mapping[str, Tensor], shape: Shape, dtype: torch.dtype) -> Tensor:
        """``code · scale``, ``[out, in]`` in ``dtype``."""
        return dequantize(*self.codes(tensors, shape), dtype)

    def to_json(self) -> dict[str, Any]:
        """Plain data that :meth:`from_json` reads back."""
        scale_dtype = dtype_name(self.scale_dtype)
        return {"name": self.name, "bits": self.bits, "group": self.group_size, "scale_dtype": scale_dtype}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PlainInteger:
        """The layout that :meth:`to_json` wrote."""
        return cls(data["bits"], data["group"], dtype_from_name(data["scale_dtype"]))
