"""Weights with zeros left out: ``bitmask`` (any pattern) and ``n:m`` (n kept of every m columns)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Shape, TensorSpec
from .bits import pack, unpack, words_for
from .dtypes import dtype_from_name, dtype_name
from .integer import PackedInteger, dequantize

Values = torch.dtype | PackedInteger
"""How kept numbers are stored: as they are, or as codes of an integer grid that covers the whole weight."""

_GRID_SUFFIXES = ("weight_scale", "weight_zero_point")


@dataclass(frozen=True)
class SparseBitmask:
    """``bitmask``: one bit for every element, and the kept ones one after the other.

    ===================  =============  ===========================================================================
    tensor               dtype          shape
    ===================  =============  ===========================================================================
    weight_mask          uint8          ``[out, ⌈in/8⌉]``; bit ``j mod 8`` (low first) of byte ``⌊j/8⌋`` of a row is
                                        set where column j is kept; the bits behind the last column are 0
    weight_kept          ``values``     ``[kept]``: the kept numbers, row by row, by rising column
    weight_packed        int32          ``[⌈kept·bits/32⌉]`` instead of ``weight_kept`` if ``values`` is a grid: the
                                        kept codes in that order as one stream, low bits first, across words
    weight_scale, …      as the grid's  scales and zero points as in :class:`PackedInteger`, by column of the weight
    ===================  =============  ===========================================================================

    ``kept`` is the number of set bits of the whole mask. A row's first value follows the last one of the row before:
    where it starts is a running sum of set bits.
    """

    kept: int
    values: Values = torch.bfloat16

    name: ClassVar[str] = "bitmask"

    @property
    def scheme(self) -> SparseBitmask:
        """The layout without what differs from weight to weight."""
        return SparseBitmask(-1, self.values)

    def specs(self, shape: Shape) -> dict[str, TensorSpec]:
        out, columns = shape
        if not 0 <= self.kept <= out * columns:
            raise ValueError(f"{self.kept} numbers cannot be kept of a weight of {out * columns}")
        mask = TensorSpec((out, -(-columns // 8)), torch.uint8)
        if isinstance(self.values, torch.dtype):
            return {"weight_mask": mask, "weight_kept": TensorSpec((self.kept,), self.values)}
        words = TensorSpec((words_for(self.kept, self.values.bits),), torch.int32)
        return {"weight_mask": mask, "weight_packed": words, **_grid_specs(self.values, shape)}

    def encode(
        self, weight: Tensor, mask: Tensor, scale: Tensor | None = None, zero: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Pack ``weight`` ``[out, in]`` (numbers, or unsigned codes of the grid) where ``mask`` bool ``[out, in]``."""
        kept = weight[mask]
        if kept.numel() != self.kept:
            raise ValueError(f"the mask keeps {kept.numel()} numbers and the layout {self.kept}")
        tensors = {"weight_mask": pack_bits(mask)}
        if isinstance(self.values, torch.dtype):
            return {**tensors, "weight_kept": kept.to(self.values)}
        words = pack(kept.unsqueeze(0), self.values.bits)[0]
        return {**tensors, "weight_packed": words, **_grid_tensors(self.values, weight, scale, zero)}

    def mask(self, tensors: Mapping[str, Tensor], shape: Shape) -> Tensor:
        """Where numbers are kept, bool ``[out, in]``."""
        return unpack_bits(tensors["weight_mask"], shape[1])

    def decode(self, tensors: Mapping[str, Tensor], shape: Shape, dtype: torch.dtype) -> Tensor:
        mask = self.mask(tensors, shape)
        if isinstance(self.values, torch.dtype):
            kept = tensors["weight_kept"].to(dtype)
            return torch.zeros(shape, dtype=dtype, device=mask.device).masked_scatter_(mask, kept)
        codes, scale, zero = self.codes(tensors, shape)
        return dequantize(codes, scale, zero, dtype).masked_fill_(~mask, 0)

    def codes(self, tensors: Mapping[str, Tensor], shape: Shape) -> tuple[Tensor, Tensor, Tensor]:
        """Unsigned codes int32 ``[out, in]`` (0 where nothing is kept), scales and zeros ``[out or 1, groups]``."""
        assert isinstance(self.values, PackedInteger)
        kept = unpack(tensors["weight_packed"].unsqueeze(0), self.values.bits, self.kept)[0]
        mask = self.mask(tensors, shape)
        codes = torch.zeros(shape, dtype=torch.int32, device=mask.device).masked_scatter_(mask, kept)
        return codes, *self.values.parameters(tensors, shape)

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "kept": self.kept, "values": _values_json(self.values)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SparseBitmask:
        return cls(int(data["kept"]), _values_from_json(data["values"]))


@dataclass(frozen=True)
class SparseNM:
    """``n:m``: of every ``m`` columns of a row ``n`` are kept, with the place of each among the m.

    ===================  =============  ===========================================================================
    tensor               dtype          shape
    ===================  =============  ===========================================================================
    weight_kept          ``values``     ``[out, in·n/m]``: the kept numbers of a row by rising column
    weight_packed        int32          ``[out, ⌈(in·n/m)·bits/32⌉]`` instead of ``weight_kept`` if ``values`` is a
                                        grid: their codes, low bits first, each row starting a word
    weight_indices       int32          ``[out, ⌈(in·n/m)·b/32⌉]``: the place 0 … m−1 of each kept number among its m
                                        columns in ``b = ⌈log₂ m⌉`` bits, rising within the m, packed like codes
    weight_scale, …      as the grid's  scales and zero points as in :class:`PackedInteger`, by column of the weight
    ===================  =============  ===========================================================================
    """

    n: int
    m: int
    values: Values = torch.bfloat16

    name: ClassVar[str] = "n:m"

    def __post_init__(self) -> None:
        if not 0 < self.n < self.m:
            raise ValueError(f"an n:m pattern keeps some of every m columns, not {self.n} of {self.m}")

    @property
    def index_bits(self) -> int:
        """Bits of one place."""
        return (self.m - 1).bit_length()

    def specs(self, shape: Shape) -> dict[str, TensorSpec]:
        out, columns = shape
        if columns % self.m:
            raise ValueError(f"the pattern {self.n}:{self.m} does not divide {columns} input features")
        kept = columns // self.m * self.n
        indices = TensorSpec((out, words_for(kept, self.index_bits)), torch.int32)
        if isinstance(self.values, torch.dtype):
            return {"weight_kept": TensorSpec((out, kept), self.values), "weight_indices": indices}
        words = TensorSpec((out, words_for(kept, self.values.bits)), torch.int32)
        return {"weight_packed": words, "weight_indices": indices, **_grid_specs(self.values, shape)}

    def encode(
        self, weight: Tensor, mask: Tensor, scale: Tensor | None = None, zero: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Pack ``weight`` ``[out, in]`` (numbers, or unsigned codes of the grid) where ``mask`` bool ``[out, in]``."""
        out = weight.shape[0]
        if not bool((mask.view(out, -1, self.m).sum(-1) == self.n).all()):
            raise ValueError(f"the mask does not keep {self.n} of every {self.m} columns")
        kept = weight[mask].view(out, -1)
        places = (torch.arange(weight.shape[1], device=mask.device) % self.m).expand_as(mask)[mask].view(out, -1)
        tensors = {"weight_indices": pack(places, self.index_bits)}
        if isinstance(self.values, torch.dtype):
            return {"weight_kept": kept.to(self.values), **tensors}
        return {
            "weight_packed": pack(kept, self.values.bits),
            **tensors,
            **_grid_tensors(self.values, weight, scale, zero),
        }

    def mask(self, tensors: Mapping[str, Tensor], shape: Shape) -> Tensor:
        """Where numbers are kept, bool ``[out, in]``."""
        columns = self.columns(tensors, shape)
        mask = torch.zeros(shape, dtype=torch.bool, device=columns.device)
        return mask.scatter_(1, columns, True)

    def columns(self, tensors: Mapping[str, Tensor], shape: Shape) -> Tensor:
        """The column of each kept number, int64 ``[out, in·n/m]``."""
        kept = shape[1] // self.m * self.n
        places = unpack(tensors["weight_indices"], self.index_bits, kept).long()
        return places + torch.arange(kept, device=places.device) // self.n * self.m

    def decode(self, tensors: Mapping[str, Tensor], shape: Shape, dtype: torch.dtype) -> Tensor:
        if not isinstance(self.values, torch.dtype):
            codes, scale, zero = self.codes(tensors, shape)
            return dequantize(codes, scale, zero, dtype).masked_fill_(~self.mask(tensors, shape), 0)
        columns = self.columns(tensors, shape)
        dense = torch.zeros(shape, dtype=dtype, device=columns.device)
        return dense.scatter_(1, columns, tensors["weight_kept"].to(dtype))

    def codes(self, tensors: Mapping[str, Tensor], shape: Shape) -> tuple[Tensor, Tensor, Tensor]:
        """Unsigned codes int32 ``[out, in]`` (0 where nothing is kept), scales and zeros ``[out or 1, groups]``."""
        assert isinstance(self.values, PackedInteger)
        columns = self.columns(tensors, shape)
        kept = unpack(tensors["weight_packed"], self.values.bits, columns.shape[1])
        codes = torch.zeros(shape, dtype=torch.int32, device=columns.device).scatter_(1, columns, kept)
        return codes, *self.values.parameters(tensors, shape)

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "n": self.n, "m": self.m, "values": _values_json(self.values)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SparseNM:
        return cls(int(data["n"]), int(data["m"]), _values_from_json(data["values"]))


def pack_bits(mask: Tensor) -> Tensor:
    """bool ``[rows, columns]`` → uint8 ``[rows, ⌈columns/8⌉]``, low bit first."""
    grouped = F.pad(mask.to(torch.uint8), (0, -mask.shape[1] % 8)).view(mask.shape[0], -1, 8)
    places = torch.arange(8, dtype=torch.uint8, device=mask.device)
    return (grouped << places).sum(-1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, columns: int) -> Tensor:
    """Invert :func:`pack_bits`."""
    places = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return ((packed.unsqueeze(-1) >> places) & 1).view(packed.shape[0], -1)[:, :columns].bool()


def _grid_specs(grid: PackedInteger, shape: Shape) -> dict[str, TensorSpec]:
    return {suffix: spec for suffix, spec in grid.specs(shape).items() if suffix in _GRID_SUFFIXES}


def _grid_tensors(grid: PackedInteger, codes: Tensor, scale: Tensor | None, zero: Tensor | None) -> dict[str, Tensor]:
    if scale is None:
        raise ValueError("codes need the scales of their grid")
    return grid.encode_parameters(scale, zero, (codes.shape[0], codes.shape[1]))


def _values_json(values: Values) -> dict[str, Any]:
    return {"name": "dense", "dtype": dtype_name(values)} if isinstance(values, torch.dtype) else values.to_json()


def _values_from_json(data: Mapping[str, Any]) -> Values:
    return dtype_from_name(data["dtype"]) if data["name"] == "dense" else PackedInteger.from_json(data)
