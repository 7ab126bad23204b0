"""An error costs what it does to the model's loss, to second order, as the gradients of the dense model tell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from compress.score.metric import Kron, Side
from compress.score.statistics import Statistics

NO_GRADIENT = "no gradient reached it"


@dataclass(frozen=True)
class FisherRows:
    """Output by output, ``L = diag(Σ_j E[g_ij²])`` ``[out]`` (FWSVD, arXiv:2207.00112, eq. 6)."""

    needs: ClassVar[frozenset[str]] = frozenset({"gradient_rows"})

    def metric(self, statistics: Statistics) -> Kron:
        """``L`` is what an error of each output costs, fp32 ``[out]``; the identity where no gradient came."""
        if statistics.gradient_rows is None or float(statistics.gradient_rows.sum()) <= 0:
            return Kron()
        return Kron(left=Side(statistics.gradient_rows))

    def fallback(self, statistics: Statistics) -> str | None:
        """What was counted in place of the gradients, in words, if they tell nothing."""
        return (
            None
            if self.metric(statistics).left.matrix is not None
            else f"{NO_GRADIENT}: every element counted the same"
        )


@dataclass(frozen=True)
class Fisher:
    """A Kronecker product in the place of the Fisher matrix, ``L [out, out]`` and ``R [in, in]`` (GFWSVD, arXiv:2505.17974).

    Attributes:
        factors: ``"output_gradients"`` takes the mean products of the gradients by the weight's outputs and of its inputs,
            token by token (K-FAC, arXiv:1503.05671, eq. 1). ``"triple"`` takes the product nearest in norm to the Fisher
            matrix of whole batches, as the paper does (on the text's own next tokens, ``calibrate: {labels: data}``): a few
            large inputs decide it, and it says little of all others.
        tokens: ``"alike"`` counts every token the same in the products of ``output_gradients``, as if sizes of gradients and
            inputs had nothing to do with each other. With ``"by_gradient"`` a token counts in R by the squared size of its
            output gradient δ, and in L by δ's direction: ``L = E[δ δᵀ/‖δ‖²] E‖δ‖²``, ``R = E[‖δ‖² x xᵀ] / E‖δ‖²``. Where
            attention gathers on one token (a sink), that token's gradients are most of E[δ δᵀ] and say nothing of others.
        inputs: ``"compressed"`` takes as R the Gram matrix of the inputs that the compressed blocks before send; with
            ``"dense"`` R is the dense model's, which belongs to L.
        damping: added to L's diagonal, relative to its mean. The loss is a parabola only near the dense weights: what L calls
            free is not free for an error of any size, and pruning makes large ones.

    L counts where a solver looks at it: truncations, AWP, ALPS and YAQA do; those that take each row by itself read R alone.
    """

    factors: str = "output_gradients"
    tokens: str = "alike"
    inputs: str = "compressed"
    damping: float = 0.1

    def __post_init__(self) -> None:
        if self.factors not in ("output_gradients", "triple"):
            raise ValueError(f"factors are 'output_gradients' or 'triple', not '{self.factors}'")
        if self.tokens not in ("alike", "by_gradient"):
            raise ValueError(f"tokens are 'alike' or 'by_gradient', not '{self.tokens}'")
        if self.tokens == "by_gradient" and self.factors != "output_gradients":
            raise ValueError("'tokens: by_gradient' goes with 'factors: output_gradients'")
        if self.inputs not in ("compressed", "dense"):
            raise ValueError(f"inputs are 'compressed' or 'dense', not '{self.inputs}'")
        if self.damping < 0:
            raise ValueError("damping is 0 or more")

    @property
    def needs(self) -> frozenset[str]:
        """The statistics of its factors: Gram matrices of inputs and of output gradients, or the triple's."""
        if self.factors == "triple":
            return frozenset({"fisher", "gram"})
        return frozenset({"token_gradients" if self.tokens == "by_gradient" else "output_gradients", "gram"})

    def fallback(self, statistics: Statistics) -> str | None:
        """What was counted in place of the gradients, in words, if they tell nothing."""
        return (
            None
            if self.metric(statistics).left.matrix is not None
            else f"{NO_GRADIENT}: only its inputs counted"
        )

    def metric(self, statistics: Statistics) -> Kron:
        """``L`` fp32 ``[out, out]`` and ``R`` fp32 ``[in, in]``: the two factors of the Fisher matrix."""
        if self.factors == "output_gradients":
            left, right = statistics.output_gradient_gram, statistics.dense_gram
        else:
            left, right = statistics.fisher_left, statistics.fisher_right
        gram = statistics.gram if statistics.tokens else None
        if left is None or right is None or float(left.trace()) <= 0:
            # No batch's loss depends on this weight: what is left is what it does to its own output.
            return Kron(right=Side(gram))
        if self.damping:
            left = left.clone()
            left.diagonal().add_(self.damping * left.diagonal().mean())
        return Kron(Side(left), Side(gram if self.inputs == "compressed" and gram is not None else right))
