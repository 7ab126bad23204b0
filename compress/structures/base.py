"""Structures: the set of weights that a recipe allows, and the capabilities that solvers ask of it.

A structure finds parameters (scales, a mask, factors) for a weight, rounds the weight to the nearest allowed one, and packs
it. What else it can do is said by Protocols: a solver names the one it needs in ``requires`` and types its problem by it, so
that a recipe is refused before the run and mypy sees every call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from compress_kernels.layouts import Layout, PackedInteger, nbytes
from torch import Tensor

from compress.linalg.rounding import ColumnRounder, ElementRounder
from compress.score.metric import Metric

Shape = tuple[int, int]


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
        """Bytes of its tensors on disk."""
        return nbytes(self.layout, self.shape)


class StaysDense(ValueError):
    """A structure would not make this weight smaller: it is left as it is, and the message says why."""


class SparsityPattern(Protocol):
    """Sparsity pattern: which elements of a weight ``[out, in]`` may be nonzero, and how many."""

    def kept(self, shape: Shape) -> int:
        """Number of elements that are kept.

        Raises:
            ValueError: the pattern does not fit the shape.
        """
        ...

    def choose(self, importance: Tensor) -> Tensor:
        """The allowed mask, bool ``[out, in]``, that keeps most of ``importance`` fp32 ``[out, in]``, none negative."""
        ...

    def columns_block(self, importance: Tensor, first: int, shape: Shape) -> Tensor:
        """The mask of one block of columns alone, bool ``[out, columns]``.

        The blocks of a weight together keep :meth:`kept` elements.

        Args:
            importance: of the columns from ``first`` on, fp32 ``[out, columns]``.
            first: a multiple of :attr:`width`.
            shape: of the whole weight.
        """
        ...

    @property
    def width(self) -> int:
        """Number of neighbouring columns among which elements compete (m of n:m)."""
        ...

    def layout(self, shape: Shape, dtype: torch.dtype, grid: PackedInteger | None = None) -> Layout:
        """How a weight of ``shape`` with this pattern is stored: numbers of ``dtype``, or codes of ``grid``."""
        ...


@runtime_checkable
class Structure(Protocol):
    """Structure: a set of allowed weights Θ ``[out, in]``. Every structure can project."""

    def layout(self, shape: Shape) -> Layout:
        """How a weight of ``shape`` is stored.

        Raises:
            ValueError: the structure does not fit the shape.
            StaysDense: it would not make the weight smaller.
        """
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


@runtime_checkable
class DependsOnShape(Structure, Protocol):
    """Which weights are allowed depends on the weight's shape."""

    def for_shape(self, shape: Shape) -> Structure:
        """The structure of a weight of ``shape`` ``[out, in]``."""
        ...


@runtime_checkable
class SharesScale(Structure, Protocol):
    """A scale of the whole weight, which has to be equal in weights that servers run as one."""

    def reaching(self, largest: float) -> Structure:
        """The structure of a weight among several whose largest absolute value is ``largest``."""
        ...


@runtime_checkable
class HasColumns(Structure, Protocol):
    """Columns can be rounded one at a time under fitted parameters, as GPTQ's recursion needs."""

    def column_rounder(self, parameters: Any, shape: Shape) -> ColumnRounder:
        """Nearest allowed values of single columns of a weight of ``shape``."""
        ...


@runtime_checkable
class HasElements(Structure, Protocol):
    """Elements can be rounded in any order and arrangement, as two-sided rounding by tiles needs."""

    def element_rounder(self, parameters: Any, shape: Shape) -> ElementRounder:
        """Nearest allowed values of all elements of a weight of ``shape``."""
        ...


@runtime_checkable
class HasCodes(Structure, Protocol):
    """Each element has ``top + 1`` allowed values; code k names the k-th smallest. They need not be evenly spaced."""

    @property
    def top(self) -> int:
        """The highest code."""
        ...

    def codes(self, weight: Tensor, parameters: Any) -> Tensor:
        """The codes of the allowed values nearest to ``weight``, integers ``[out, in]``."""
        ...

    def position(self, weight: Tensor, parameters: Any) -> Tensor:
        """Real-valued codes of ``weight`` ``[out, in]``: linear between the codes of its lower and upper neighbour.

        Neither rounded nor clipped: beyond the lowest and the highest value the axis goes on at the last spacing.
        """
        ...

    def values(self, codes: Tensor, parameters: Any, factor: Tensor | None = None) -> Tensor:
        """The values of ``codes`` ``[out, in]`` of any dtype, the inverse of :meth:`position`.

        Differentiable in the codes and in ``factor`` ``[out or 1, groups]``, by which scales are multiplied before they are
        rounded to their dtype; the factor's gradient goes straight through that rounding.
        """
        ...


@runtime_checkable
class HasScales(Structure, Protocol):
    """Groups of columns have scales that a solver may fit anew."""

    def scales_of(self, parameters: Any) -> Tensor:
        """The scales fp32 ``[out or 1, groups]``."""
        ...

    def rescale(self, weight: Tensor, parameters: Any, scale: Tensor) -> tuple[Tensor, Any]:
        """``weight``, which lies on the grid, with the same codes under other scales, rounded to their dtype on disk."""
        ...

    def where(self, condition: Tensor, new: Any, old: Any) -> Any:
        """The parameters ``new`` for the groups where ``condition``, bool ``[out, groups or 1]``, holds, else ``old``."""
        ...


@runtime_checkable
class RefitsScales(HasScales, Protocol):
    """Scales are stored in parts, of which some can be fitted anew more finely than the scales of single groups."""

    def refit(self, target: Tensor, weight: Tensor, parameters: Any, gram: Tensor) -> tuple[Tensor, Any]:
        """``weight``, which lies on the grid, with the same codes under the scales of least error in the metric.

        Args:
            target: what to approximate, fp32 ``[out, in]``.
            weight: on the grid of ``parameters``, fp32 ``[out, in]``.
            parameters: the scales that it has.
            gram: of the inputs, fp32 ``[in, in]``.
        """
        ...


@runtime_checkable
class HasZeroPoints(HasCodes, HasScales, Protocol):
    """Evenly spaced codes with a zero point for each group: ``Θ = (code − zero) · scale``."""

    @property
    def symmetric(self) -> bool:
        """Whether the zero points are fixed at the middle code."""
        ...

    def zeros_of(self, parameters: Any) -> Tensor:
        """The zero points, integers ``[out or 1, groups]``."""
        ...

    def with_zeros(self, parameters: Any, zeros: Tensor) -> Any:
        """The same scales with other zero points: whole numbers of any dtype, 0 … ``top``."""
        ...


@runtime_checkable
class HasClipRanges(Structure, Protocol):
    """Clipped ranges of the grid can be compared, and the best one taken for each row."""

    @property
    def rows_apart(self) -> bool:
        """Whether each row has parameters that no other row shares."""
        ...

    def clipped(self, parameters: Any, ratios: Sequence[float]) -> list[Any]:
        """The same grid at other sizes: one set of parameters for each ratio."""
        ...

    def rows_of(self, parameters: Any, rows: slice) -> Any:
        """The parameters of some rows, where :attr:`rows_apart`."""
        ...

    def stacked(self, several: Sequence[Any], rows: int) -> Any:
        """Parameters of several weights of ``rows`` rows as those of one weight, the rows below each other."""
        ...

    def picked(self, several: Sequence[Any], index: Tensor) -> Any:
        """For each row the parameters of the set that ``index`` int64 ``[out]`` names."""
        ...


@runtime_checkable
class HasColumnFits(HasColumns, Protocol):
    """Scales (and zero points) can be fitted to costs of the columns."""

    @property
    def rows_apart(self) -> bool:
        """Whether each row has parameters that no other row shares."""
        ...

    def fit_to(self, weight: Tensor, costs: Tensor, near: Any = None) -> Any:
        """The parameters of least ``Σ costs · error²`` of nearest rounding.

        Args:
            weight: fp32 ``[out, in]``.
            costs: positive, fp32 ``[in]``.
            near: parameters to search near to; ``None`` searches everywhere.
        """
        ...

    def where(self, condition: Tensor, new: Any, old: Any) -> Any:
        """``new`` for the groups where ``condition`` ``[out, groups or 1]`` holds, else ``old``."""
        ...

    def joined(self, parts: Sequence[Any]) -> Any:
        """The parameters of rows that lie below each other, from those of parts of them."""
        ...


@runtime_checkable
class HasGroups(HasColumns, HasScales, HasClipRanges, Protocol):
    """A group of columns can be rounded by itself, as a weight ``[out, width]`` of its own grid."""

    def group(self, parameters: Any, index: int) -> tuple[HasGroups, Any]:
        """The grid of group ``index`` alone, and its parameters."""
        ...

    def with_group(self, parameters: Any, index: int, group: Any) -> Any:
        """The parameters with those of group ``index`` replaced by ``group``."""
        ...


@runtime_checkable
class HasShifts(HasGroups, Protocol):
    """A grid that can be moved against the weight, other than by whole codes."""

    def shifted(self, parameters: Any) -> list[Any]:
        """The same grid moved to either side; one set of parameters for each move."""
        ...


@runtime_checkable
class Selects(Structure, Protocol):
    """Elements are chosen by a sparsity pattern; the rest is zero."""

    @property
    def pattern(self) -> SparsityPattern:
        """Which elements may be kept together."""
        ...

    def under(self, weight: Tensor, mask: Tensor, metric: Metric) -> Any:
        """Parameters for ``weight`` ``[out, in]`` with a given mask, bool ``[out, in]``."""
        ...

    def mask_of(self, parameters: Any) -> Tensor:
        """The mask, bool ``[out, in]``."""
        ...

    def with_mask(self, parameters: Any, mask: Tensor) -> Any:
        """The same parameters with another mask."""
        ...


@runtime_checkable
class HasPatterns(Selects, Protocol):
    """Every group of neighbouring columns has one of a few patterns, and what is kept are plain numbers."""

    @property
    def patterns(self) -> Tensor:
        """The allowed patterns of a group, bool ``[patterns, m]``."""
        ...
