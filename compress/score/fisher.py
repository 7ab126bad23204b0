"""An error costs what it does to the model's loss, to second order, as the gradients of the dense model tell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from compress.metric import Kron, Metric, Side
from compress.statistics import Statistics


@dataclass(frozen=True)
class FisherRows:
    """Output by output, ``L = diag(Σ_j E[g_ij²])`` ``[out]`` (FWSVD, arXiv:2207.00112, eq. 6)."""

    needs: ClassVar[frozenset[str]] = frozenset({"gradient_rows"})

    def metric(self, statistics: Statistics) -> Metric:
        if statistics.gradient_rows is None or float(statistics.gradient_rows.sum()) <= 0:
            return Kron()
        return Kron(left=Side(statistics.gradient_rows))


@dataclass(frozen=True)
class Fisher:
    """The Kronecker product nearest to the Fisher matrix, ``L [out, out]`` and ``R [in, in]`` (GFWSVD, arXiv:2505.17974).

    Attributes:
        inputs: with ``"gram"`` the right factor is the Gram matrix of the inputs from the compressed blocks before
            (as in K-FAC, arXiv:1503.05671, eq. 1); with ``"fisher"`` it is the dense model's, from the gradients.
    """

    inputs: str = "gram"

    needs: ClassVar[frozenset[str]] = frozenset({"fisher", "gram"})

    def __post_init__(self) -> None:
        if self.inputs not in ("gram", "fisher"):
            raise ValueError(f"inputs are 'gram' or 'fisher', not '{self.inputs}'")

    def metric(self, statistics: Statistics) -> Metric:
        left, right = statistics.fisher_left, statistics.fisher_right
        gram = statistics.gram if statistics.tokens else None
        if left is None or right is None or float(left.trace()) <= 0:
            # No batch's loss depends on this weight: what is left is what it does to its own output.
            return Kron(right=Side(gram))
        return Kron(Side(left), Side(gram if self.inputs == "gram" and gram is not None else right))
