"""Weights stored as two factors, as whole columns, or as a sum of such parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from .base import Layout, Shape, TensorSpec, part, prefixed
from .dense import Dense

Parse = Callable[[Mapping[str, Any]], Layout]
"""What turns the plain data of a part back into its layout."""


@dataclass(frozen=True)
class LowRank:
    """``W = left · right``: two factors, each in a layout of its own.

    ==================  =====================================================================================
    tensor              what it is
    ==================  =====================================================================================
    left_SUFFIX         the tensors of ``left`` ``[out, rank]``; ``left_weight`` if it is dense
    right_SUFFIX        the tensors of ``right`` ``[rank, in]``; ``right_weight`` if it is dense
    ==================  =====================================================================================

    A layer computes ``y = (x · rightᵀ) · leftᵀ``; the dense weight is the product in fp32, rounded once.
    """

    rank: int
    left: Layout = field(default_factory=Dense)
    right: Layout = field(default_factory=Dense)

    name: ClassVar[str] = "low-rank"

    @property
    def scheme(self) -> LowRank:
        """The layout without what differs from weight to weight."""
        return LowRank(-1, self.left, self.right)

    def shapes(self, shape: Shape) -> tuple[Shape, Shape]:
        """The shapes of both factors of a weight ``[out, in]``; raises ``ValueError`` if the rank is above it.

        A right factor that several weights share may have more rows than one of them has outputs, never more than inputs.
        """
        out, columns = shape
        if not 1 <= self.rank <= columns:
            raise ValueError(f"a weight [{out}, {columns}] has a rank of 1 to {columns}, not {self.rank}")
        return (out, self.rank), (self.rank, columns)

    def specs(self, shape: Shape) -> dict[str, TensorSpec]:
        """The tensors of both factors, ``[out, rank]`` and ``[rank, in]``, each in its own layout."""
        left, right = self.shapes(shape)
        return prefixed("left_", self.left.specs(left)) | prefixed("right_", self.right.specs(right))

    def encode(self, left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Put together the encoded factors."""
        return prefixed("left_", left) | prefixed("right_", right)

    def factors(
        self, tensors: Mapping[str, Tensor], shape: Shape, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Both factors in ``dtype``: ``[out, rank]`` and ``[rank, in]``."""
        left, right = self.shapes(shape)
        return (
            self.left.decode(part("left_", tensors), left, dtype),
            self.right.decode(part("right_", tensors), right, dtype),
        )

    def decode(self, tensors: Mapping[str, Tensor], shape: Shape, dtype: torch.dtype) -> Tensor:
        """The product of the factors, ``[out, in]`` in ``dtype``, computed in fp32."""
        left, right = self.factors(tensors, shape, torch.float32)
        return (left @ right).to(dtype)

    def to_json(self) -> dict[str, Any]:
        """Plain data that :meth:`from_json` reads back."""
        return {
            "name": self.name,
            "rank": self.rank,
            "left": self.left.to_json(),
            "right": self.right.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], parse: Parse) -> LowRank:
        """The layout that :meth:`to_json` wrote; ``parse`` reads the layouts inside it."""
        return cls(int(data["rank"]), parse(data["left"]), parse(data["right"]))


@dataclass(frozen=True)
class Columns:
    """A few whole input columns, all others zero.

    ``columns_index`` int32 ``[count]``, rising, says which; ``columns_SUFFIX`` are the tensors of ``values``
    ``[out, count]``: ``columns_weight`` if they are dense.
    """

    count: int
    values: Layout = field(default_factory=Dense)

    name: ClassVar[str] = "columns"

    @property
    def scheme(self) -> Columns:
        """The layout without what differs from weight to weight."""
        return Columns(-1, self.values)

    def specs(self, shape: Shape) -> dict[str, TensorSpec]:
        """Which columns, int32 ``[count]``, and their values ``[out, count]`` in a layout of their own."""
        out, columns = shape
        if not 1 <= self.count <= columns:
            raise ValueError(f"a weight of {columns} columns keeps 1 to {columns} of them, not {self.count}")
        index = {"columns_index": TensorSpec((self.count,), torch.int32)}
        return index | prefixed("columns_", self.values.specs((out, self.count)))

    def encode(self, index: Tensor, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Store ``index`` ``[count]``, rising, with the encoded columns."""
        return {"columns_index": index.to(torch.int32).contiguous()} | prefixed("columns_", values)

    def columns(
        self, tensors: Mapping[str, Tensor], shape: Shape, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Which columns, int64 ``[count]``, and their values ``[out, count]`` in ``dtype``."""
        values = self.values.decode(part("columns_", tensors), (shape[0], self.count), dtype)
        return tensors["columns_index"].long(), values

    def decode(self, tensors: Mapping[str, Tensor], shape: Shape, dtype: torch.dtype) -> Tensor:
        """The columns in their places, 0 elsewhere, ``[out, in]`` in ``dtype``."""
        index, values = self.columns(tensors, shape, dtype)
        return torch.zeros(shape, dtype=dtype, device=values.device).index_copy_(1, index, values)

    def to_json(self) -> dict[str, Any]:
        """Plain data that :meth:`from_json` reads back."""
        return {"name": self.name, "count": self.count, "values": self.values.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], parse: Parse) -> Columns:
        """The layout that :meth:`to_json` wrote; ``parse`` reads the layouts inside it."""
        return cls(int(data["count"]), parse(data["values"]))


@dataclass(frozen=True)
class SumOf:
    """The sum of its parts, each of the whole shape ``[out, in]``; tensors of part i begin with ``part{i}_``.

    The dense weight is summed in fp32 in the order of the parts and rounded once.
    """

    parts: tuple[Layout, ...]

    name: ClassVar[str] = "sum"

    def __post_init__(self) -> None:
        if len(self.parts) < 2:
            raise ValueError(f"a sum has two parts or more, not {len(self.parts)}")

    def specs(self, shape: Shape) -> dict[str, TensorSpec]:
        """The tensors of all parts, each of a weight ``[out, in]``."""
        specs: dict[str, TensorSpec] = {}
        for index, layout in enumerate(self.parts):
            specs |= prefixed(f"part{index}_", layout.specs(shape))
        return specs

    def encode(self, parts: tuple[Mapping[str, Tensor], ...]) -> dict[str, Tensor]:
        """Put together the encoded parts."""
        tensors: dict[str, Tensor] = {}
        for index, each in enumerate(parts):
            tensors |= prefixed(f"part{index}_", each)
        return tensors

    def tensors_of(self, index: int, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of one part, under the names that its own layout gives them."""
        return part(f"part{index}_", tensors)

    def decode(self, tensors: Mapping[str, Tensor], shape: Shape, dtype: torch.dtype) -> Tensor:
        """The sum of the parts, ``[out, in]`` in ``dtype``, computed in fp32."""
        total: Tensor | None = None
        for index, layout in enumerate(self.parts):
            dense = layout.decode(self.tensors_of(index, tensors), shape, torch.float32)
            total = dense if total is None else total + dense
        assert total is not None
        return total.to(dtype)

    def to_json(self) -> dict[str, Any]:
        """Plain data that :meth:`from_json` reads back."""
        return {"name": self.name, "parts": [layout.to_json() for layout in self.parts]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], parse: Parse) -> SumOf:
        """The layout that :meth:`to_json` wrote; ``parse`` reads the layouts inside it."""
        return cls(tuple(parse(each) for each in data["parts"]))
