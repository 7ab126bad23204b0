"""Small-float weights as compressed-tensors stores them: FP8, MXFP8, MXFP4 and NVFP4.

A value is ``element · scale``. The element is E4M3 or E2M1 (OCP Microscaling Formats 1.0, section 5.3). Its scale is shared by
a group of columns, by a row, by a block of 128 x 128 or by the whole weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..value_types import E2M1_MAGNITUDES, FLOAT_TYPES, Element, FloatType
from .base import Shape, TensorSpec
from .dtypes import dtype_from_name, dtype_name

FloatGroup = int | Literal["channel", "tensor", "block"]

BLOCK = 128
"""Rows and columns of a block of FP8."""
E8M0_BIAS = 127
_E4M3_FINITE = 127
_ALL = slice(None)
_STRIP = 1 << 22
"""Values that are decoded together."""


def magnitudes(element: Element) -> tuple[float, ...]:
    """The values of an element that are not negative, by rising code."""
    if element == "e2m1":
        return E2M1_MAGNITUDES
    octets = torch.arange(_E4M3_FINITE, dtype=torch.uint8)
    return tuple(octets.view(torch.float8_e4m3fn).float().tolist())


def rising_values(element: Element) -> tuple[float, ...]:
    """All values of an element in rising order, zero once."""
    positive = magnitudes(element)
    return (*(-value for value in reversed(positive[1:])), *positive)


@dataclass(frozen=True)
class PackedFloat:
    """Small floats and their scales.

    ===================  =============  ===================================================================================
    tensor               dtype          shape and values
    ===================  =============  ===================================================================================
    weight               fp8 e4m3       ``[out, in]``; fp8 and mxfp8
    weight_packed        uint8          ``[out, in/2]``, two codes of E2M1, the first in the low half; mxfp4 and nvfp4
    weight_scale         see type       ``[out, in/group]``; of fp8 ``scale_dtype`` ``[out, 1]`` (channel), ``[1]`` (tensor)
                                        or ``[⌈out/128⌉, in/128]`` (block); of mxfp4 and mxfp8 uint8, ``2^(byte − 127)``; of
                                        nvfp4 fp8 e4m3
    weight_global_scale  fp32           ``[1]``, by which nvfp4's scales are divided
    ===================  =============  ===================================================================================

    Values are computed in fp32 and rounded once.

    Attributes:
        type: a key of :data:`FLOAT_TYPES`.
        group_size: what shares a scale, for fp8; the others have groups of columns that the format fixes.
        scale_dtype: of fp8's scales.
    """

    type: str
    group_size: FloatGroup = "channel"
    scale_dtype: torch.dtype = torch.bfloat16

    name: ClassVar[str] = "float"

    def __post_init__(self) -> None:
        if self.type not in FLOAT_TYPES:
            raise ValueError(f"there is no float type {self.type!r}: known are {', '.join(FLOAT_TYPES)}")
        fixed = self.kind.group
        if fixed is None and self.group_size not in ("channel", "tensor", "block"):
            raise ValueError(f"{self.type} has a scale by channel, tensor or block, not {self.group_size}")
        if fixed is not None and self.group_size != fixed:
            raise ValueError(f"{self.type} has groups of {fixed}, not {self.group_size}")

    @property
    def kind(self) -> FloatType:
        """What the type is."""
        return FLOAT_TYPES[self.type]

    @property
    def bits(self) -> int:
        """Bits of an element."""
        return self.kind.bits

    @classmethod
    def of(
        cls, type: str, group_size: FloatGroup | None = None, scale_dtype: torch.dtype = torch.bfloat16
    ) -> PackedFloat:
        """The layout of a type, with its format's groups where it fixes them and ``group_size`` is ``None``."""
        return cls(type, group_size or FLOAT_TYPES[type].group or "channel", scale_dtype)

    def scale_grid(self, shape: Shape) -> tuple[int, int]:
        """Rows and columns of the scales.

        Raises:
            ValueError: the groups or blocks do not divide the columns.
        """
        out, columns = shape
        if self.group_size == "tensor":
            return 1, 1
        if self.group_size == "channel":
            return out, 1
        width = BLOCK if self.group_size == "block" else self.group_size
        if columns % width:
            unit = (
                f"blocks of {BLOCK} x {BLOCK} do" if self.group_size == "block" else f"groups of {width} do"
            )
            raise ValueError(f"{unit} not divide {columns} input features, as {self.type} needs")
        return (-(-out // BLOCK) if self.group_size == "block" else out), columns // width

    def specs(self, shape: Shape) -> dict[str, TensorSpec]:
        """FP8 values ``[out, in]``, or two FP4 codes in a byte ``[out, in/2]``, and their scales ``[out, groups]``."""
        out, columns = shape
        grid = self.scale_grid(shape)
        scale = TensorSpec((1,) if self.group_size == "tensor" else grid, self._scale_dtype())
        if self.kind.bits == 8:
            return {"weight": TensorSpec(shape, torch.float8_e4m3fn), "weight_scale": scale}
        specs = {"weight_packed": TensorSpec((out, columns // 2), torch.uint8), "weight_scale": scale}
        if self.kind.scale == "e4m3":
            specs["weight_global_scale"] = TensorSpec((1,), torch.float32)
        return specs

    def encode(self, codes: Tensor, scale: Tensor, outer: Tensor | None = None) -> dict[str, Tensor]:
        """Pack codes.

        Args:
            codes: ``[out, in]``, places in :func:`rising_values`.
            scale: fp32, of the shape of :meth:`scale_grid`, values of the scales' format.
            outer: fp32 ``[1]``, by which nvfp4's scales are divided.
        """
        shape = (codes.shape[0], codes.shape[1])
        octets = _octets(codes, self.kind)
        stored = _stored(scale, self.kind, self.scale_dtype).reshape(self.specs(shape)["weight_scale"].shape)
        if self.kind.bits == 8:
            return {"weight": octets.view(torch.float8_e4m3fn), "weight_scale": stored.contiguous()}
        tensors = {
            "weight_packed": octets[:, ::2] | (octets[:, 1::2] << 4),
            "weight_scale": stored.contiguous(),
        }
        if self.kind.scale == "e4m3":
            assert outer is not None
            tensors["weight_global_scale"] = outer.reshape(1).to(torch.float32).clone()
        return tensors

    def scales(self, tensors: Mapping[str, Tensor], shape: Shape) -> Tensor:
        """What the elements are multiplied by, fp32 ``[rows, groups]`` as in :meth:`scale_grid`."""
        stored = tensors["weight_scale"].reshape(self.scale_grid(shape))
        if self.kind.scale == "e8m0":
            powers = [2.0 ** (exponent - E8M0_BIAS) for exponent in range(255)]
            return torch.tensor([*powers, torch.nan], device=stored.device)[stored.to(torch.int32)]
        if self.kind.scale == "e4m3":
            return stored.to(torch.float32) / tensors["weight_global_scale"].to(torch.float32)
        return stored.to(torch.float32)

    def elements(self, tensors: Mapping[str, Tensor], rows: slice | Tensor) -> Tensor:
        """The elements of some rows, fp32 ``[rows, in]``."""
        if self.kind.bits == 8:
            return tensors["weight"][rows].to(torch.float32)
        codes = self.stored_codes(tensors, rows)
        table = torch.tensor([*E2M1_MAGNITUDES, *(-value for value in E2M1_MAGNITUDES)], device=codes.device)
        return table[codes]

    def stored_codes(self, tensors: Mapping[str, Tensor], rows: slice | Tensor = _ALL) -> Tensor:
        """The codes of E2M1 of some rows, sign and magnitude, int32 ``[rows, in]``."""
        packed = tensors["weight_packed"][rows]
        return torch.stack((packed & 15, packed >> 4), -1).flatten(1).to(torch.int32)

    def rows(self, tensors: Mapping[str, Tensor], shape: Shape, dtype: torch.dtype, rows: slice) -> Tensor:
        """Some rows of the dense weight, ``[rows, in]`` in ``dtype``."""
        first, last, _ = rows.indices(shape[0])
        scale = by_row(self.scales(tensors, shape), self.group_size, shape[0])[first:last]
        values = self.elements(tensors, slice(first, last)).view(last - first, scale.shape[1], -1)
        return (values * scale.unsqueeze(-1)).view(last - first, shape[1]).to(dtype)

    def decode(self, tensors: Mapping[str, Tensor], shape: Shape, dtype: torch.dtype) -> Tensor:
        """Values times scales, ``[out, in]`` in ``dtype``, some rows at a time."""
        dense = torch.empty(shape, dtype=dtype, device=tensors["weight_scale"].device)
        step = max(1, _STRIP // max(1, shape[1]))
        for first in range(0, shape[0], step):
            part = slice(first, min(first + step, shape[0]))
            dense[part] = self.rows(tensors, shape, dtype, part)
        return dense

    def to_json(self) -> dict[str, Any]:
        """Plain data that :meth:`from_json` reads back."""
        return {
            "name": self.name,
            "type": self.type,
            "group": self.group_size,
            "scale_dtype": dtype_name(self.scale_dtype),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PackedFloat:
        """The layout that :meth:`to_json` wrote."""
        return cls(data["type"], data["group"], dtype_from_name(data["scale_dtype"]))

    def _scale_dtype(self) -> torch.dtype:
        formats = {"e8m0": torch.uint8, "e4m3": torch.float8_e4m3fn, None: self.scale_dtype}
        return formats[self.kind.scale]


def by_row(scale: Tensor, group_size: FloatGroup, rows: int) -> Tensor:
    """Scales ``[scale rows, groups]`` for each of ``rows`` rows: ``[rows, groups]``."""
    if scale.shape[0] == rows:
        return scale
    if group_size == "block":
        return scale.repeat_interleave(BLOCK, 0)[:rows]
    return scale.expand(rows, -1)


def _octets(codes: Tensor, kind: FloatType) -> Tensor:
    """Codes by rising value as sign and magnitude, uint8 ``[out, in]``."""
    middle = len(magnitudes(kind.element)) - 1
    sign = torch.where(codes < middle, 1 << (kind.bits - 1), 0)
    return ((codes - middle).abs() | sign).to(torch.uint8)


def _stored(scale: Tensor, kind: FloatType, dtype: torch.dtype) -> Tensor:
    """Scales fp32 in the dtype on disk; they are values of that format already."""
    if kind.scale == "e8m0":
        return (torch.frexp(scale).exponent - 1 + E8M0_BIAS).to(torch.uint8)
    return scale.to(torch.float8_e4m3fn if kind.scale == "e4m3" else dtype)
