"""An error costs what it does to the layer's output on the calibration inputs: ``E‖Δx‖² = tr(Δ C Δᵀ)``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from compress.score.metric import Kron, Metric, Side
from compress.score.statistics import Statistics


@dataclass(frozen=True)
class Activation:
    """The whole Gram matrix ``C = E[x xᵀ] [in, in]`` (GPTQ, arXiv:2210.17323, eq. 1)."""

    needs: ClassVar[frozenset[str]] = frozenset({"gram"})

    def metric(self, statistics: Statistics) -> Metric:
        """``R`` is the Gram matrix of the inputs, fp32 ``[in, in]``; the identity where no token reached the weight."""
        if statistics.gram is None:
            raise ValueError("the activation score needs the Gram matrix")
        # Inputs that no token reached say nothing: every element then costs the same.
        return Kron(right=Side(statistics.gram)) if statistics.tokens else Kron()


@dataclass(frozen=True)
class ActivationDiagonal:
    """Its diagonal ``E[x_j²] [in]`` alone (Wanda, arXiv:2306.11695, eq. 1)."""

    needs: ClassVar[frozenset[str]] = frozenset({"diagonal"})

    def metric(self, statistics: Statistics) -> Metric:
        """``R`` is the diagonal of the Gram matrix, fp32 ``[in]``; the identity where no token reached the weight."""
        if statistics.diagonal is None:
            raise ValueError("the activation-diagonal score needs the inputs' mean squares")
        return Kron(right=Side(statistics.diagonal)) if statistics.tokens else Kron()
