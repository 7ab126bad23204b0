"""An element's error costs its own share of the model's loss: ``Σ E[g_ij²] Δ_ij²``, the diagonal of the Fisher matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from compress.score.metric import Elementwise, Kron, Metric
from compress.score.statistics import Statistics


@dataclass(frozen=True)
class FisherDiagonal:
    """The diagonal of the Fisher matrix as a metric over single elements."""

    needs: ClassVar[frozenset[str]] = frozenset({"squared_gradient"})
    elementwise: ClassVar[bool] = True

    def metric(self, statistics: Statistics) -> Metric:
        """The mean squared gradient of each element, fp32 ``[out, in]``; the identity where no gradient came."""
        squared = statistics.squared_gradient
        # Where no batch's loss depends on the weight, every element counts the same.
        return Kron() if squared is None or float(squared.sum()) <= 0 else Elementwise(squared)


@dataclass(frozen=True)
class FisherSaliency:
    """``w² E[g²]``: what leaving an element out costs, to second order."""

    needs: ClassVar[frozenset[str]] = frozenset({"squared_gradient"})

    def importance(self, weight: Tensor, statistics: Statistics, seed: int) -> Tensor:
        """``w² · E[g²]`` of each element, fp32 ``[out, in]``; ``w²`` where no gradient came."""
        squared = statistics.squared_gradient
        return weight.square() if squared is None or float(squared.sum()) <= 0 else weight.square() * squared
