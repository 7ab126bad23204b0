"""Input by input, by how large the inputs are (ASVD, arXiv:2312.05821, eq. 5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from compress.score.metric import Kron, Metric, Side
from compress.score.statistics import Statistics


@dataclass(frozen=True)
class InputScale:
    """``R = diag(E[|x_j|]^2α)`` ``[in]``: the inputs' columns are scaled by ``E|x_j|^α`` before the decomposition."""

    alpha: float = 0.5

    needs: ClassVar[frozenset[str]] = frozenset({"mean_abs"})

    def metric(self, statistics: Statistics) -> Metric:
        """``R = diag(E[|x|]^(2α))``, fp32 ``[in]``; the identity where no token reached the weight."""
        if statistics.mean_abs is None:
            raise ValueError("the input-scale score needs the inputs' mean magnitudes")
        return Kron(right=Side(statistics.mean_abs ** (2 * self.alpha))) if statistics.tokens else Kron()
