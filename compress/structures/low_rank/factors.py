"""Low-rank factors: ``Θ = B A`` with ``B [out, r]`` and ``A [r, in]``, as numbers or on an integer grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from compress_kernels.layouts import Dense, Layout, LowRank, nbytes
from torch import Tensor

from compress.linalg.weighted_svd import Truncation, as_kron, decompose, double, refit_left, refit_right
from compress.score.metric import Kron, Metric, Side
from compress.structures.base import CompressedWeight, Shape, StaysDense
from compress.structures.choices import MULTIPLE, Choice
from compress.structures.grids.integer import IntegerGrid

SHOWN = 48
"""Number of singular values of a weight that a report keeps."""


@dataclass(frozen=True)
class Stored:
    """A factor or a few columns as they are stored: values fp32, and the tensors on disk by suffix."""

    values: Tensor
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True)
class Storage:
    """How a matrix is stored: as numbers of ``dtype``, or on ``grid``."""

    dtype: torch.dtype = torch.bfloat16
    grid: IntegerGrid | None = None

    def layout(self, shape: Shape) -> Layout:
        """How one factor of this shape is stored."""
        return Dense(self.dtype) if self.grid is None else self._fitting(shape).layout(shape)

    def store(self, matrix: Tensor, metric: Metric | None = None) -> Stored:
        """Round ``matrix`` ``[rows, columns]`` to what the disk holds; the scales of a grid are fitted in ``metric``."""
        if self.grid is None:
            rounded = matrix.to(self.dtype)
            return Stored(rounded.float(), {"weight": rounded.contiguous()})
        grid = self._fitting((matrix.shape[0], matrix.shape[1]))
        parameters = grid.fit(matrix.float(), metric or Kron())
        values = grid.project(matrix.float(), parameters)
        return Stored(values, grid.encode(values, parameters).tensors)

    def _fitting(self, shape: Shape) -> IntegerGrid:
        """The grid, with scales by row where its groups do not divide the columns (of a left factor: the rank)."""
        assert self.grid is not None
        divides = isinstance(self.grid.group_size, str) or shape[1] % self.grid.group_size == 0
        return self.grid if divides else replace(self.grid, group_size="channel")


@dataclass(frozen=True)
class Factored:
    """The factors of a weight as stored, and the singular values ``[n]`` of the truncated matrix in its metric."""

    left: Stored
    right: Stored
    values: Tensor

    @property
    def dense(self) -> Tensor:
        """``B A``, fp32 ``[out, in]``."""
        return self.left.values @ self.right.values


@dataclass(frozen=True)
class Factors:
    """All weights of a given rank.

    Attributes:
        ratio: the share of the weight's parameters that both factors take: ``r = ratio · m n / (m + n)``.
        rank: the rank, in place of ``ratio``.
        storage: how the factors are stored.
        inside: whether the factors are part of a sum, whose bytes are counted as a whole.
        shared: whether several weights with the same inputs share the right factor: it is given, and its rank may exceed this
            weight's outputs.
    """

    ratio: float | None = None
    rank: int | None = None
    storage: Storage = Storage()
    inside: bool = False
    shared: bool = False

    def __post_init__(self) -> None:
        if (self.ratio is None) == (self.rank is None):
            raise ValueError("low rank needs either a ratio or a rank")
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise ValueError(f"ratio is a share of the parameters above 0 and up to 1, not {self.ratio}")
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"rank is at least 1, not {self.rank}")

    def with_rank(self, rank: int) -> Factors:
        """These factors at a given rank."""
        return replace(self, ratio=None, rank=rank)

    def chosen(self, choice: Choice) -> Factors:
        """Factors alone at the chosen rank."""
        return replace(self.with_rank(choice.rank), inside=False, shared=choice.shared is not None)

    def rank_of(self, shape: Shape, spared: float = 0.0) -> int:
        """The rank of a weight ``[out, in]``, when ``spared`` parameters of the budget go elsewhere.

        Raises:
            ValueError: the rank exceeds the weight's smaller side.
            StaysDense: no rank fits the ratio.
        """
        out, columns = shape
        if self.rank is not None:
            if self.rank > (columns if self.shared else min(shape)):
                raise ValueError(f"rank {self.rank} exceeds its smaller side {min(shape)}")
            return self.rank
        assert self.ratio is not None
        # The margin keeps 0.8 of a whole number from falling one short by rounding.
        exact = int((self.ratio * out * columns - spared) / (out + columns) + 1e-9)
        rank = exact // MULTIPLE * MULTIPLE or exact
        if rank < 1:
            raise StaysDense(f"a ratio of {self.ratio} leaves no rank")
        return rank

    def layout(self, shape: Shape) -> LowRank:
        """The layout of the factors.

        Raises:
            StaysDense: the factors would be larger than the weight.
        """
        return self.layout_of(shape, self.rank_of(shape))

    def layout_of(self, shape: Shape, rank: int) -> LowRank:
        """The layout at a given rank."""
        left, right = (shape[0], rank), (rank, shape[1])
        layout = LowRank(rank, self.storage.layout(left), self.storage.layout(right))
        if not self.inside and not self.shared:
            refuse_larger(layout, shape, self.storage.dtype)
        return layout

    def fit(self, weight: Tensor, metric: Metric) -> Factored:
        """The truncation of ``weight`` ``[out, in]`` in ``metric``."""
        return self.stored(
            weight, decompose(weight, metric), self.rank_of((weight.shape[0], weight.shape[1])), metric
        )

    def stored(self, weight: Tensor, parts: Truncation, rank: int, metric: Metric) -> Factored:
        """Store the leading factors: the left one first, then the right one fitted to the stored left one."""
        kron = as_kron(metric)
        leading = parts.right[:rank]
        cost = (double(kron.right).right_apply(leading) * leading).sum(1)
        left = self.storage.store(parts.left[:, :rank], Kron(right=Side(cost.float())))
        right = refit_right(weight, left.values, metric)
        return Factored(left, self.storage.store(right, Kron(right=kron.right)), parts.values)

    def under(self, weight: Tensor, right: Tensor, metric: Metric, values: Tensor) -> Factored:
        """The best left factor for a given right one ``[rank, in]``, which all weights that share it store alike."""
        stored = self.storage.store(right)
        cost = (double(as_kron(metric).right).right_apply(stored.values.double()) * stored.values).sum(1)
        left = self.storage.store(refit_left(weight, stored.values, metric), Kron(right=Side(cost.float())))
        return Factored(left, stored, values)

    def project(self, weight: Tensor, parameters: Factored) -> Tensor:
        """The product of the factors, fp32 ``[out, in]``; ``weight`` is not read."""
        return parameters.dense

    def encode(self, weight: Tensor, parameters: Factored) -> CompressedWeight:
        """Pack the factors, ``[out, rank]`` and ``[rank, in]``."""
        shape = (weight.shape[0], weight.shape[1])
        layout = self.layout_of(shape, parameters.left.values.shape[1])
        return CompressedWeight(
            layout, shape, layout.encode(parameters.left.tensors, parameters.right.tensors)
        )


def refuse_larger(layout: Layout, shape: Shape, dtype: torch.dtype) -> None:
    """Raise ``StaysDense`` unless ``layout`` is smaller than the dense weight."""
    size, dense = nbytes(layout, shape), nbytes(Dense(dtype), shape)
    if size >= dense:
        raise StaysDense(f"compressed it would take {size:,} bytes, dense it takes {dense:,}")


def spectrum(values: Tensor, rank: int) -> dict[str, float | str]:
    """Figures of a truncation at ``rank`` for the report: the share of energy lost, and some of the singular values."""
    energy = values.double().square()
    whole = float(energy.sum())
    step = max(1, -(-len(values) // SHOWN))
    top = float(values[0]) if len(values) and float(values[0]) > 0 else 1.0
    return {
        "rank": float(rank),
        "of": float(len(values)),
        "lost": float(energy[rank:].sum()) / whole if whole > 0 else 0.0,
        "spectrum": " ".join(f"{float(value) / top:.3g}" for value in values[::step]),
    }
