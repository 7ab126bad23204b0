"""A structure is the set of weights that a recipe allows: how to find one near, round to it, and pack it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from compress_kernels.layouts import Layout, PackedInteger, nbytes
from torch import Tensor

from compress.score.metric import Metric

Shape = tuple[int, int]

ColumnRounder = Callable[[Tensor, int], Tensor]
"""``(values [out], column) → rounded [out]``: the nearest allowed values of one input column."""


@dataclass(frozen=True)
class CompressedWeight:
    """A weight as it is stored: its layout, its shape ``[out, in]`` and its tensors by disk suffix."""

    layout: Layout
    shape: Shape
    tensors: Mapping[str, Tensor]

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weight ``[out, in]`` that a server computes with, in ``dtype``."""
        return self.layout.decode(self.tensors, self.shape, dtype)

    @property
    def nbytes(self) -> int:
        return nbytes(self.layout, self.shape)


class StaysDense(ValueError):
    """A structure would not make this weight smaller: it is left as it is, and the message says why."""


class SparsityPattern(Protocol):
    """Which elements of a weight ``[out, in]`` may be other than zero, and how many."""

    def kept(self, shape: Shape) -> int:
        """How many elements are kept; raises ``ValueError`` when the pattern does not fit the shape."""
        ...

    def choose(self, importance: Tensor) -> Tensor:
        """The allowed mask, bool ``[out, in]``, that keeps most of ``importance`` fp32 ``[out, in]``, none negative."""
        ...

    def columns_block(self, importance: Tensor, first: int, shape: Shape) -> Tensor:
        """The same for the columns from ``first`` on, ``[out, width]``, alone.

        The stretches of a weight of ``shape`` keep :meth:`kept` elements together; they begin at multiples of
        ``width``.
        """
        ...

    @property
    def width(self) -> int:
        """Columns that are chosen among together."""
        ...

    def eased(self, share: float) -> SparsityPattern:
        """A pattern that leaves out only ``share`` (0 to 1) of what this one does."""
        ...

    def layout(self, shape: Shape, dtype: torch.dtype, grid: PackedInteger | None = None) -> Layout:
        """How a weight of ``shape`` with this pattern is stored: numbers of ``dtype``, or codes of ``grid``."""
        ...


class Structure(Protocol):
    """The set of allowed weights Θ ``[out, in]``.

    ``capabilities`` says what a solver may ask: ``"project"`` (nearest point), ``"columns"`` (``column_rounder``:
    rounding of single columns under fitted parameters, as GPTQ needs), ``"scales"`` (``scales_of`` and ``rescale``:
    group-wise scales that a solver may re-fit), ``"clip"`` (``clipped``, ``rows_of``, ``stacked``, ``picked``: ranges to
    choose from row by row), ``"codes"`` (``values`` and ``top``: each element's values are evenly spaced), ``"uniform"``
    (besides, ``position`` and ``codes``: and there are as many everywhere) or ``"select"`` (choosing within a stretch of
    columns, as SparseGPT needs).
    """

    capabilities: ClassVar[frozenset[str]]

    def layout(self, shape: Shape) -> Layout:
        """How a weight of ``shape`` is stored; raises ``ValueError`` when the structure does not fit the shape."""
        ...

    def fit(self, weight: Tensor, metric: Metric) -> Any:
        """The parameters (scales, mask, factors) for ``weight`` ``[out, in]`` fp32 in ``metric``."""
        ...

    def project(self, weight: Tensor, parameters: Any) -> Tensor:
        """The nearest allowed weight under ``parameters``, fp32 ``[out, in]``."""
        ...

    def encode(self, weight: Tensor, parameters: Any) -> CompressedWeight:
        """Pack an allowed weight: ``encode(project(w, p), p).dense(float32) == project(w, p)``."""
        ...
