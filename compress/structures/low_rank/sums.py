"""Sums of low-rank factors and a residual: ``Θ = B A + S``, where S is whole columns, a sparse weight or a point of a grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import torch
from compress_kernels.layouts import Columns, LowRank, SumOf
from torch import Tensor

from compress.linalg.weighted_svd import as_kron, decompose, double, solve_symmetric
from compress.score.metric import Metric
from compress.structures.base import CompressedWeight, Shape, StaysDense, Structure
from compress.structures.choices import Choice

from .factors import Factored, Factors, Storage, Stored, refuse_larger


@dataclass(frozen=True)
class ColumnParameters:
    """The kept input columns: their numbers, int64 ``[count]``, rising, and their values as stored, ``[out, count]``."""

    index: Tensor
    stored: Stored

    def dense(self, shape: Shape) -> Tensor:
        """The columns in a matrix of zeros, fp32 ``[out, in]``."""
        values = self.stored.values
        return torch.zeros(shape, dtype=values.dtype, device=values.device).index_copy_(1, self.index, values)


@dataclass(frozen=True)
class SumParameters:
    """The parameters of a sum: the factors, and the residual's.

    Attributes:
        factors: as they are stored.
        residual: parameters of the residual's structure, or the kept columns.
        values: the residual itself, fp32 ``[out, in]``, where it is settled; otherwise it is rounded when it is asked for.
    """

    factors: Factored
    residual: Any
    values: Tensor | None = None


@dataclass(frozen=True)
class FactorsAndColumns:
    """Factors and a few whole input columns (LOST, arXiv:2508.02668).

    Attributes:
        factors: a ratio counts for factors and columns together.
        share: share of the input columns that are kept.
        kept: their number, in place of the share.
    """

    factors: Factors
    share: float
    kept: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"columns is a share of the inputs above 0 and below 1, not {self.share}")

    def chosen(self, choice: Choice) -> FactorsAndColumns | Factors:
        """Factors of the chosen rank with the chosen number of columns."""
        if choice.columns == 0:
            return self.factors.chosen(choice)
        return replace(self, factors=self.factors.with_rank(choice.rank), kept=choice.columns or self.kept)

    def count(self, shape: Shape) -> int:
        """Number of kept columns."""
        if self.kept is not None:
            return self.kept
        return max(1, int(self.share * shape[1] + 1e-9))

    def rank_of(self, shape: Shape) -> int:
        """The factors' rank, from what the columns and their numbers leave of the budget."""
        place = 4 / self.factors.storage.dtype.itemsize
        return self.factors.rank_of(shape, spared=self.count(shape) * (shape[0] + place))

    def layout(self, shape: Shape) -> SumOf:
        """Factors and kept columns; raises ``ValueError`` where they take more bytes than the dense weight."""
        columns = Columns(self.count(shape), self.factors.storage.layout((shape[0], self.count(shape))))
        layout = SumOf((self.factors.layout_of(shape, self.rank_of(shape)), columns))
        refuse_larger(layout, shape, self.factors.storage.dtype)
        return layout

    def fit(self, weight: Tensor, metric: Metric) -> SumParameters:
        """The truncation, and the columns of the residual of largest loss."""
        shape = (weight.shape[0], weight.shape[1])
        parts = decompose(weight, metric)
        factors = self.factors.stored(weight, parts, self.rank_of(shape), metric)
        residual = weight - factors.dense
        index = (
            (residual.square() * metric.elements(weight)).sum(0).topk(self.count(shape)).indices.sort().values
        )
        return self.with_columns(factors, index, residual[:, index], shape)

    def with_columns(self, factors: Factored, index: Tensor, values: Tensor, shape: Shape) -> SumParameters:
        """The parameters for given factors and columns ``values`` ``[out, count]`` at ``index``."""
        columns = ColumnParameters(index, self.factors.storage.store(values))
        return SumParameters(factors, columns, columns.dense(shape))

    def project(self, weight: Tensor, parameters: SumParameters) -> Tensor:
        """The factors' product and the kept columns together, fp32 ``[out, in]``; ``weight`` is not read."""
        assert parameters.values is not None
        return parameters.factors.dense + parameters.values

    def encode(self, weight: Tensor, parameters: SumParameters) -> CompressedWeight:
        """Pack the factors and the kept columns."""
        shape = (weight.shape[0], weight.shape[1])
        layout = self.layout(shape)
        low, columns = layout.parts
        assert isinstance(low, LowRank) and isinstance(columns, Columns)
        kept: ColumnParameters = parameters.residual
        tensors = columns.encode(kept.index, kept.stored.tensors)
        return CompressedWeight(layout, shape, layout.encode((_encoded(low, parameters.factors), tensors)))


ResidualT = TypeVar("ResidualT", bound=Structure)


@dataclass(frozen=True)
class FactorsAnd(Generic[ResidualT]):
    """Factors and a point of another structure, which holds the residual: a grid, a sparse weight, or both.

    The factors begin at zero: ``fit`` gives plain rounding or pruning, and a solver finds the factors. Solvers that know
    nothing of factors see the residual's structure, and the weight less the factors
    (:class:`compress.solvers.residual.ResidualSolver`).
    """

    factors: Factors
    residual: ResidualT

    @property
    def group_size(self) -> Any:
        """The group of columns of the residual's grid."""
        return getattr(self.residual, "group_size", None)

    def chosen(self, choice: Choice) -> FactorsAnd[ResidualT] | Factors:
        """Factors of that rank and a residual that leaves out that share, if it is sparse."""
        if choice.sparsity is not None and choice.sparsity >= 1:
            return self.factors.chosen(choice)
        residual = self.residual
        if choice.sparsity is not None:
            sparse: Any = residual
            residual = replace(sparse, pattern=replace(sparse.pattern, sparsity=choice.sparsity))
        return replace(self, factors=self.factors.with_rank(choice.rank), residual=residual)

    def rank_of(self, shape: Shape) -> int:
        """The rank of the factors of a weight of this shape."""
        return self.factors.rank_of(shape)

    def layout(self, shape: Shape) -> SumOf:
        """Factors and residual; raises ``ValueError`` where they take more bytes than the dense weight."""
        layout = SumOf((self.factors.layout_of(shape, self.rank_of(shape)), self.residual.layout(shape)))
        refuse_larger(layout, shape, self.factors.storage.dtype)
        return layout

    def fit(self, weight: Tensor, metric: Metric) -> SumParameters:
        """The residual alone; the factors are zero."""
        return SumParameters(self.zero_factors(weight), self.residual.fit(weight, metric))

    def with_factors(self, target: Tensor, metric: Metric, residual: Any, values: Tensor) -> SumParameters:
        """The parameters with factors fitted to ``target`` − ``values``, where ``values`` ``[out, in]`` is the residual."""
        rest = target - values
        rank = self.rank_of((target.shape[0], target.shape[1]))
        return SumParameters(
            self.factors.stored(rest, decompose(rest, metric), rank, metric), residual, values
        )

    def project(self, weight: Tensor, parameters: SumParameters) -> Tensor:
        """The factors' product, and the nearest allowed residual to what it leaves of ``weight``, fp32 ``[out, in]``."""
        return parameters.factors.dense + self.residual_of(weight, parameters)

    def residual_of(self, weight: Tensor, parameters: SumParameters) -> Tensor:
        """The residual ``[out, in]`` of the point nearest to ``weight``."""
        if parameters.values is not None:
            return parameters.values
        return self.residual.project(weight - parameters.factors.dense, parameters.residual)

    def encode(self, weight: Tensor, parameters: SumParameters) -> CompressedWeight:
        """Pack the factors and the residual."""
        shape = (weight.shape[0], weight.shape[1])
        layout = self.layout(shape)
        low = layout.parts[0]
        assert isinstance(low, LowRank)
        values = parameters.values if parameters.values is not None else weight - parameters.factors.dense
        residual = self.residual.encode(values, parameters.residual).tensors
        return CompressedWeight(layout, shape, layout.encode((_encoded(low, parameters.factors), residual)))

    def zero_factors(self, weight: Tensor) -> Factored:
        """Factors of zeros."""
        rank = self.rank_of((weight.shape[0], weight.shape[1]))
        storage: Storage = self.factors.storage
        left = storage.store(weight.new_zeros(weight.shape[0], rank))
        return Factored(
            left, storage.store(weight.new_zeros(rank, weight.shape[1])), weight.new_zeros(min(weight.shape))
        )


def refit_columns(residual: Tensor, index: Tensor, metric: Metric) -> Tensor:
    """The values ``[out, count]`` of whole columns at ``index`` nearest to ``residual`` ``[out, in]``.

    They solve ``X R_SS = residual · R_:S``, whatever the left side is.
    """
    right = double(as_kron(metric).right)
    moved = right.right_apply(residual.double())[:, index]
    inside = right.full(residual.shape[1], residual.device)[index][:, index].double()
    return solve_symmetric(inside, moved.T).T


def _encoded(layout: LowRank, factors: Factored) -> Mapping[str, Tensor]:
    return layout.encode(factors.left.tensors, factors.right.tensors)


__all__ = [
    "ColumnParameters",
    "FactorsAnd",
    "FactorsAndColumns",
    "StaysDense",
    "SumParameters",
    "refit_columns",
]
