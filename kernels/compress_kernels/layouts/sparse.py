"""Sparse weights: one bit for each weight (bitmask), or n of every m with their places (N:M), over values or codes."""

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

_GRID_SUFFIXES = ("weight_scale", "weight_zero_point")


def pack_mask(mask: Tensor) -> Tensor:
    """bool ``[out, in]`` to uint8 ``[out, ⌈in/8⌉]``: column i is bit ``i mod 8`` of byte ``i div 8``."""
    padded = F.pad(mask.to(torch.uint8), (0, -mask.shape[1] % 8)).view(mask.shape[0], -1, 8)
    places = torch.arange(8, dtype=torch.uint8, device=mask.device)
    return (padded << places).sum(-1, dtype=torch.uint8)


def unpack_mask(packed: Tensor, columns: int) -> Tensor:
    """Invert :func:`pack_mask`: uint8 ``[out, ⌈in/8⌉]`` to bool ``[out, in]``."""
    places = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return ((packed.unsqueeze(-1) >> places) & 1).view(packed.shape[0], -1)[:, :columns].bool()


def masks_by_byte() -> Tensor:
    """The bits of the mask that a byte of packed 2:4 places stands for, uint8 ``[256]``; 0 where they are not ascending."""
    byte = torch.arange(256, dtype=torch.int32)
    places = (byte[:, None] >> torch.arange(0, 8, 2)) & 3
    first, second = places[:, ::2], places[:, 1::2]
    kept = ((1 << first) + (1 << second)) << torch.tensor([0, 4])
    return kept.sum(1).where((first < second).all(1), 0).to(torch.uint8)


def index_bits(m: int) -> int:
    """Bits of a place within m columns: 2 for 4, 3 for 8."""
    return max(1, (m - 1).bit_length())


def _grid_specs(grid: PackedInteger, shape: Shape) -> dict[str, TensorSpec]:
    specs = grid.specs(shape)
    return {suffix: specs[suffix] for suffix in _GRID_SUFFIXES if suffix in specs}


def _grid_tensors(grid: PackedInteger, shape: Shape, scale: Tensor, zero: Tensor | None) -> dict[str, Tensor]:
    """Scales and zero points as the grid stores them; the codes of that call are not used."""
    tensors = grid.encode(torch.zeros(shape, dtype=torch.int32, device=scale.device), scale, zero)
    return {suffix: tensors[suffix] for suffix in _GRID_SUFFIXES if suffix in tensors}


def _shape_tensor(shape: Shape) -> Tensor:
    return torch.tensor(list(shape), dtype=torch.int64)


def _to_json(layout: SparseBitmask | SparseNM, **fields: int) -> dict[str, Any]:
    grid = layout.grid.to_json() if layout.grid else None
    return {"name": layout.name, **fields, "grid": grid, "dtype": dtype_name(layout.dtype)}


def _grid_from_json(data: Mapping[str, Any]) -> PackedInteger | None:
    return PackedInteger.from_json(data["grid"]) if data["grid"] else None


@dataclass(frozen=True)
class SparseBitmask:
    """``bitmask``: any weights may be missing; ``nnz`` of them are kept.

    =================  =========  =============================================================================
    tensor             dtype      shape and bytes
    =================  =========  =============================================================================
    weight_mask        uint8      ``[out, ⌈in/8⌉]``: bit ``i mod 8`` of byte ``i div 8`` of a row says that column i
                                  is kept; bits beyond ``in`` are 0
    weight_values      ``dtype``  ``[nnz]``: the kept weights, row after row, columns ascending (no ``grid``)
    weight_packed      int32      ``[⌈nnz·bits/32⌉]``: their unsigned codes in one stream, code j at bit ``j·bits``,
                                  lowest bit first, across words and rows (with ``grid``)
    weight_scale, weight_zero_point   as in the ``grid`` (:class:`PackedInteger`), by groups of the dense columns
    weight_shape       int64      ``[2]``: out, in
    =================  =========  =============================================================================
    """

    nnz: int
    grid: PackedInteger | None = None
    dtype: torch.dtype = torch.bfloat16

    name: ClassVar[str] = "bitmask"

    @property
    def scheme(self) -> SparseBitmask:
        """The layout without what differs from weight to weight."""
        return SparseBitmask(-1, self.grid, self.dtype)

    def specs(self, shape: Shape) -> dict[str, TensorSpec]:
        """A mask of bits, uint8 ``[out, in/8]``, the kept values ``[nnz]`` or their codes and scales, and the shape."""
        out, columns = shape
        if not 0 <= self.nnz <= out * columns:
            raise ValueError(f"a weight of shape {list(shape)} cannot keep {self.nnz} values")
        specs = {"weight_mask": TensorSpec((out, -(-columns // 8)), torch.uint8)}
        if self.grid is None:
            specs["weight_values"] = TensorSpec((self.nnz,), self.dtype)
        else:
            specs["weight_packed"] = TensorSpec((words_for(self.nnz, self.grid.bits),), torch.int32)
            specs.update(_grid_specs(self.grid, shape))
        return {**specs, "weight_shape": TensorSpec((2,), torch.int64)}

    def encode(self, weight: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Store the values of ``weight`` ``[out, in]`` where ``mask`` is true (``nnz`` places)."""
        values = weight[self._counted(mask)].to(self.dtype)
        shape = (weight.shape[0], weight.shape[1])
        return {"weight_mask": pack_mask(mask), "weight_values": values, "weight_shape": _shape_tensor(shape)}

    def encode_codes(
        self, codes: Tensor, scale: Tensor, zero: Tensor | None, mask: Tensor
    ) -> dict[str, Tensor]:
        """Store unsigned codes ``[out, in]`` where ``mask`` is true, with the grid's scales and zeros."""
        if self.grid is None:
            raise ValueError("this layout stores values, not codes")
        shape = (codes.shape[0], codes.shape[1])
        stream = pack(codes[self._counted(mask)].view(1, -1), self.grid.bits).view(-1)
        kept = {"weight_mask": pack_mask(mask), "weight_packed": stream}
        return {**kept, **_grid_tensors(self.grid, shape, scale, zero), "weight_shape": _shape_tensor(shape)}

    def decode(self, tensors: Mapping[str, Tensor], shape: Shape, dtype: torch.dtype) -> Tensor:
        """The kept values in their places, 0 elsewhere, ``[out, in]`` in ``dtype``."""
        mask = unpack_mask(tensors["weight_mask"], shape[1])
        if self.grid is None:
            dense = torch.zeros(shape, dtype=dtype, device=mask.device)
            dense[mask] = tensors["weight_values"].to(dtype)
            return dense
        scale, zero = self.grid.parameters(tensors, shape)
        codes = torch.zeros(shape, dtype=torch.int32, device=mask.device)
        codes[mask] = unpack(tensors["weight_packed"].view(1, -1), self.grid.bits, self.nnz).view(-1)
        return dequantize(codes, scale, zero, dtype).masked_fill(~mask, 0)

    def to_json(self) -> dict[str, Any]:
        """Plain data that :meth:`from_json` reads back."""
        return _to_json(self, nnz=self.nnz)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SparseBitmask:
        """The layout that :meth:`to_json` wrote."""
        return cls(data["nnz"], _grid_from_json(data), dtype_from_name(data["dtype"]))

    def _counted(self, mask: Tensor) -> Tensor:
        if int(mask.sum()) != self.nnz:
            raise ValueError(f"the mask keeps {int(mask.sum())} weights where the layout declares {self.nnz}")
        return mask


@dataclass(frozen=True)
class SparseNM:
    """``n:m``: at most n of every m consecutive columns are kept; n are always stored.

    =================  =========  =============================================================================
    tensor             dtype      shape and bytes
    =================  =========  =============================================================================
    weight_indices     int32      ``[out, ⌈in/m·n·b/32⌉]``: for each stored value its place 0…m−1 among its m columns in
                                  b = ⌈log2 m⌉ bits (2 for 2:4), ascending, packed like codes
    weight_values      ``dtype``  ``[out, in/m·n]`` (no ``grid``)
    weight_packed      int32      ``[out, ⌈in/m·n·bits/32⌉]``: their unsigned codes, packed by rows (with ``grid``)
    weight_scale, weight_zero_point   as in the ``grid`` (:class:`PackedInteger`), by groups of the dense columns
    weight_shape       int64      ``[2]``: out, in
    =================  =========  =============================================================================

    Where fewer than n are kept, the first columns that are not kept are stored as zeros (codes: as the zero point).
    """

    n: int = 2
    m: int = 4
    grid: PackedInteger | None = None
    dtype: torch.dtype = torch.bfloat16

    name: ClassVar[str] = "n:m"

    def __post_init__(self) -> None:
        if not 1 <= self.n < self.m <= 32:
            raise ValueError(f"{self.n}:{self.m} is not a pattern: n is below m, and m at most 32")

    def _kept(self, shape: Shape) -> int:
        if shape[1] % self.m:
            raise ValueError(f"{self.n}:{self.m} needs input features in groups of {self.m}, not {shape[1]}")
        return shape[1] // self.m * self.n

    def specs(self, shape: Shape) -> dict[str, TensorSpec]:
        """Places within every m, packed int32, the kept values ``[out, kept]`` or their codes and scales, and the shape."""
        out, kept = shape[0], self._kept(shape)
        specs = {"weight_indices": TensorSpec((out, words_for(kept, index_bits(self.m))), torch.int32)}
        if self.grid is None:
            specs["weight_values"] = TensorSpec((out, kept), self.dtype)
        else:
            specs["weight_packed"] = TensorSpec((out, words_for(kept, self.grid.bits)), torch.int32)
            specs.update(_grid_specs(self.grid, shape))
        return {**specs, "weight_shape": TensorSpec((2,), torch.int64)}

    def encode(self, weight: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Store ``weight`` ``[out, in]`` where ``mask`` is true (at most n of every m)."""
        shape = (weight.shape[0], weight.shape[1])
        places, columns = self._places(mask)
        values = weight.masked_fill(~mask, 0).gather(1, columns).to(self.dtype)
        indices = pack(places, index_bits(self.m))
        return {"weight_indices": indices, "weight_values": values, "weight_shape": _shape_tensor(shape)}

    def encode_codes(
        self, codes: Tensor, scale: Tensor, zero: Tensor | None, mask: Tensor
    ) -> dict[str, Tensor]:
        """Store unsigned codes ``[out, in]`` where ``mask`` is true, with the grid's scales and zeros."""
        if self.grid is None:
            raise ValueError("this layout stores values, not codes")
        shape = (codes.shape[0], codes.shape[1])
        tensors = _grid_tensors(self.grid, shape, scale, zero)
        zeros = self.grid.parameters(tensors, shape)[1]
        nothing = zeros.to(codes.dtype).repeat_interleave(shape[1] // zeros.shape[1], 1).expand(shape)
        places, columns = self._places(mask)
        packed = pack(torch.where(mask, codes, nothing).gather(1, columns), self.grid.bits)
        kept = {"weight_indices": pack(places, index_bits(self.m)), "weight_packed": packed}
        return {**kept, **tensors, "weight_shape": _shape_tensor(shape)}

    def columns(self, tensors: Mapping[str, Tensor], shape: Shape) -> Tensor:
        """The dense column of each stored value, int64 ``[out, in/m·n]``; raises ``ValueError`` if out of range."""
        kept = self._kept(shape)
        places = unpack(tensors["weight_indices"], index_bits(self.m), kept).to(torch.int64)
        grouped = places.view(shape[0], -1, self.n)
        if bool((places >= self.m).any()):
            raise ValueError(
                f"weight_indices holds a place beyond {self.m - 1}, the last of {self.m} columns"
            )
        if self.n > 1 and bool((grouped.diff(dim=-1) <= 0).any()):
            raise ValueError("weight_indices is not ascending within a group of columns")
        first = torch.arange(0, shape[1], self.m, device=places.device).view(1, -1, 1)
        return (grouped + first).view(shape[0], kept)

    def mask(self, tensors: Mapping[str, Tensor], shape: Shape) -> Tensor:
        """bool ``[out, in]``: the columns that are stored."""
        mask = torch.zeros(shape, dtype=torch.bool, device=tensors["weight_indices"].device)
        return mask.scatter_(1, self.columns(tensors, shape), True)

    def packed_mask(self, tensors: Mapping[str, Tensor], shape: Shape) -> Tensor:
        """The same packed, uint8 ``[out, ⌈in/8⌉]``; raises ``ValueError`` as :meth:`columns` does."""
        if (self.n, self.m) == (2, 4) and shape[1] % 8 == 0:
            places = tensors["weight_indices"].contiguous().view(torch.uint8)[:, : shape[1] // 8]
            mask = masks_by_byte().to(places.device)[places.to(torch.int32)]
            if bool(mask.all()):
                return mask
        return pack_mask(self.mask(tensors, shape))

    def decode(self, tensors: Mapping[str, Tensor], shape: Shape, dtype: torch.dtype) -> Tensor:
        """The kept values in their places, 0 elsewhere, ``[out, in]`` in ``dtype``."""
        columns = self.columns(tensors, shape)
        if self.grid is None:
            dense = torch.zeros(shape, dtype=dtype, device=columns.device)
            return dense.scatter_(1, columns, tensors["weight_values"].to(dtype))
        scale, zero = self.grid.parameters(tensors, shape)
        packed = unpack(tensors["weight_packed"], self.grid.bits, columns.shape[1])
        codes = torch.zeros(shape, dtype=torch.int32, device=columns.device).scatter_(1, columns, packed)
        return dequantize(codes, scale, zero, dtype).masked_fill(~self.mask(tensors, shape), 0)

    def to_json(self) -> dict[str, Any]:
        """Plain data that :meth:`from_json` reads back."""
        return _to_json(self, n=self.n, m=self.m)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SparseNM:
        """The layout that :meth:`to_json` wrote."""
        return cls(data["n"], data["m"], _grid_from_json(data), dtype_from_name(data["dtype"]))

    def _places(self, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Places within the group and dense columns of what is stored, both ``[out, in/m·n]``."""
        out, columns = mask.shape
        kept = self._kept((out, columns))
        grouped = mask.view(out, -1, self.m)
        if bool((grouped.sum(-1) > self.n).any()):
            raise ValueError(f"the mask keeps more than {self.n} of {self.m} columns somewhere")
        # Kept columns first (a stable sort leaves both kinds in order), n of them, then ascending.
        order = grouped.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)
        places = order[..., : self.n].sort(-1).values
        first = torch.arange(0, columns, self.m, device=mask.device).view(1, -1, 1)
        return places.view(out, kept), (places + first).view(out, kept)
