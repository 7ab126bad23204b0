"""AdaRound: learn for each element whether to round down or up, on the inputs' Gram matrix (arXiv:2004.10568, eq. 21–25)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compress.score.metric import Kron
from compress.structures.base import HasCodes

from .base import Problem, Solution, nearest_point

_ZETA, _GAMMA = 1.1, -0.1
_MARGIN = 0.02
"""Distance from one half, in codes, at which h starts where the earlier solver's code is not the nearest one."""


@dataclass(frozen=True)
class AdaRound:
    """AdaRound: ``Θ = lower + h(V) · (upper − lower)`` between an element's neighbouring allowed values.

    ``h(V) = clip(σ(V)(ζ − γ) + γ, 0, 1)``; the scales are fixed. Adam minimises
    ``tr(Δ C Δᵀ) + λ Σ_ij c_ij (1 − |2h_ij − 1|^β)`` over V. V starts where h is the element's position between its neighbours,
    or just beyond one half where the earlier solver's code is not the nearest one. At the end h is rounded. Rows whose loss
    has not fallen keep the start: the earlier solver's weight, or plain rounding.

    The weights ``c_ij``, which the paper does not have, are the cost of one step of the element when all others compensate for
    it, ``(upper − lower)² / (C⁻¹)_jj``. Without them λ settles the elements of small inputs before the loss settles those of
    outliers.

    Attributes:
        iterations: steps of Adam.
        rate: its step size.
        regularizer: λ.
        warmup: share of the steps without the regularizer.
        beta: first and last β; it falls linearly.
        damping: added to C's diagonal, relative to its mean.
    """

    iterations: int = 400
    rate: float = 0.05
    regularizer: float = 1.0
    warmup: float = 0.2
    beta: tuple[float, float] = (20.0, 2.0)
    damping: float = 0.01

    needs: ClassVar[frozenset[str]] = frozenset()
    requires: ClassVar[type] = HasCodes
    score: ClassVar[str] = "activation"
    two_sided: ClassVar[bool] = True

    def solve(self, problem: Problem[HasCodes], start: Solution | None = None) -> Solution:
        """Learn which way each element fp32 ``[out, in]`` is rounded, beginning at ``start`` or at rounding to nearest."""
        structure, target = problem.structure, problem.target
        start = start or nearest_point(problem, target)
        if not isinstance(problem.metric, Kron):
            return start
        gram = problem.metric.right.full(target.shape[1], target.device).clone()
        gram.diagonal().add_(self.damping * gram.diagonal().mean())
        before = _row_losses(target - start.theta, gram)
        codes = self._learn(structure, start, target, gram, before, _stiffness(problem, self.damping))
        theta = structure.values(codes, start.parameters)
        after = _row_losses(target - theta, gram)
        better = after < before
        theta = torch.where(better.unsqueeze(1), theta, start.theta)
        return Solution(
            theta, start.parameters, {**start.info, "adaround_rows": float(better.float().mean())}
        )

    def _learn(
        self,
        structure: HasCodes,
        start: Solution,
        target: Tensor,
        gram: Tensor,
        losses: Tensor,
        stiffness: Tensor,
    ) -> Tensor:
        """The learned codes, fp32 ``[out, in]``; ``losses`` fp64 ``[out]`` are those of the start."""
        codes = structure.codes(start.theta, start.parameters).float()
        position = structure.position(target, start.parameters)
        reach = 0.5 - _MARGIN
        position = torch.minimum(torch.maximum(position, codes - reach), codes + reach)
        base = position.floor().clamp_(0, structure.top - 1)
        lower = structure.values(base, start.parameters)
        step = structure.values(base + 1, start.parameters) - lower
        scale = target.shape[1] / losses.clamp_min(torch.finfo(torch.float32).tiny).float().unsqueeze(1)
        weight = step.square() * stiffness * scale * self.regularizer
        fraction = (position - base).clamp_(0.01, 0.99)
        variable = torch.logit((fraction - _GAMMA) / (_ZETA - _GAMMA))
        optimizer = torch.optim.Adam([variable], lr=self.rate)
        for iteration in range(self.iterations):
            sigmoid = variable.sigmoid()
            soft = sigmoid * (_ZETA - _GAMMA) + _GAMMA
            inside = (soft > 0) & (soft < 1)
            soft.clamp_(0, 1)
            delta = target - torch.addcmul(lower, step, soft)
            gradient = (delta @ gram).mul_(step).mul_(scale).mul_(-2)
            done = iteration / self.iterations
            if done >= self.warmup:
                gradient.addcmul_(weight, self._regularize(soft, (done - self.warmup) / (1 - self.warmup)))
            gradient.mul_(sigmoid * (1 - sigmoid) * (_ZETA - _GAMMA)).mul_(inside)
            variable.grad = gradient
            optimizer.step()
        return base + (variable >= 0)

    def _regularize(self, soft: Tensor, done: float) -> Tensor:
        """The regularizer's derivative by h, at the share ``done`` of the way from the first β to the last."""
        beta = self.beta[0] + (self.beta[1] - self.beta[0]) * done
        centred = 2 * soft - 1
        return centred.abs().pow(beta - 1).mul_(centred.sign()).mul_(-2 * beta)


def _stiffness(problem: Problem[HasCodes], damping: float) -> Tensor:
    """Cost of a unit error in each column when all other columns compensate for it, ``1 / (C⁻¹)_jj``, fp32 ``[in]``."""
    assert isinstance(problem.metric, Kron)
    matrix = problem.metric.right.matrix
    if matrix is None or matrix.ndim == 1:
        return torch.ones(1, device=problem.weight.device) if matrix is None else matrix
    factor = problem.input_root(damping, descending=True)
    stiffness = torch.empty(len(matrix), device=matrix.device)
    stiffness[factor.order] = 1 / factor.root.square().sum(0)
    return stiffness


def _row_losses(delta: Tensor, gram: Tensor) -> Tensor:
    return ((delta @ gram) * delta).sum(1, dtype=torch.float64)
