"""Conjugate gradients: ``min_Θ tr(L (W−Θ) R (W−Θ)ᵀ)`` over the values on a fixed mask, or over factors of groups."""

from __future__ import annotations

import torch
from torch import Tensor

from compress.score.metric import Elementwise, Kron, Metric


def refit(
    weight: Tensor,
    mask: Tensor,
    metric: Metric,
    start: Tensor,
    *,
    steps: int,
    tolerance: float = 1e-5,
    gain: float = 0.0,
) -> Tensor:
    """The best values on a mask, by conjugate gradients preconditioned by the metric's diagonal.

    Rows are solved independently where the metric allows it. The loss never rises from step to step. In a singular metric,
    directions without cost keep the values of ``start``.

    Args:
        weight: ``[out, in]`` fp32, what is approximated.
        mask: bool ``[out, in]``, where values may be nonzero.
        metric: what an error costs.
        start: ``[out, in]``, first values; those off the mask are dropped.
        steps: products with the metric, at most.
        tolerance: stop once every row's preconditioned residual has shrunk by this factor.
        gain: stop once a step lowers the loss by less than this share of it.
    """
    if isinstance(metric, Elementwise):
        return torch.where(mask & (metric.weight > 0), weight, start * mask)
    axes = (1,) if metric.rows_apart else (0, 1)
    diagonal = metric.elements(weight)
    precondition = torch.where(diagonal > 0, 1 / diagonal.clamp_min(torch.finfo(diagonal.dtype).tiny), 0.0)
    theta = start * mask
    delta = weight - theta
    residual = metric.apply(delta)
    loss = (residual * delta).sum()
    residual = residual.mul_(mask)
    direction = residual * precondition
    product = (residual * direction).sum(axes, keepdim=True)
    enough = product * tolerance**2
    # A device is asked rarely: it has to finish all it was given first, and a step too many does no harm.
    between = 1 if weight.device.type == "cpu" else 10
    lowered = torch.full_like(loss, torch.inf)
    for step in range(steps):
        if step % between == 0 and bool((product <= enough).all() | (lowered < gain * loss)):
            break
        moved = metric.apply(direction).mul_(mask)
        curvature = (direction * moved).sum(axes, keepdim=True)
        length = _ratio(product, curvature)
        lowered = (product * length).sum()
        loss = loss - lowered
        theta = torch.addcmul(theta, length.expand_as(theta), direction)
        residual = torch.addcmul(residual, length.expand_as(theta), moved, value=-1)
        conditioned = residual * precondition
        following = (residual * conditioned).sum(axes, keepdim=True)
        direction = torch.addcmul(conditioned, _ratio(following, product).expand_as(theta), direction)
        product = following
    return theta


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """``above / below``, and 0 where ``below`` vanishes: a row that has converged no longer moves."""
    positive = below > torch.finfo(below.dtype).tiny
    return torch.where(positive, above / torch.where(positive, below, 1.0), 0.0)


def refit_factors(target: Tensor, theta: Tensor, metric: Kron, groups: int, *, steps: int = 4) -> Tensor:
    """Least-squares factors of each group of columns of each row of ``theta``, fp32 ``[out, groups]``, 0.25 … 4.

    Conjugate gradients on ``tr(L (T − f∘Θ) R (T − f∘Θ)ᵀ)`` from f = 1, preconditioned by the metric's diagonal: in a
    two-sided metric all factors interact.

    Args:
        target, theta: ``[out, in]`` fp32.
        metric: what an error costs.
        groups: that divide ``in``.
        steps: products with the metric.
    """

    def gathered(matrix: Tensor) -> Tensor:
        return (matrix * theta).view(len(theta), groups, -1).sum(2)

    def spread(factor: Tensor) -> Tensor:
        return (factor.unsqueeze(2) * theta.view(len(theta), groups, -1)).view(theta.shape)

    diagonal = gathered(theta * metric.elements(theta))
    precondition = torch.where(diagonal > 0, 1 / diagonal.clamp_min(torch.finfo(diagonal.dtype).tiny), 0.0)
    factor = torch.ones_like(diagonal)
    residual = gathered(metric.apply(target - theta))
    direction = residual * precondition
    product = (residual * direction).sum()
    for _ in range(steps):
        moved = gathered(metric.apply(spread(direction)))
        length = _ratio(product, (direction * moved).sum())
        factor = factor + length * direction
        residual = residual - length * moved
        conditioned = residual * precondition
        following = (residual * conditioned).sum()
        direction = conditioned + _ratio(following, product) * direction
        product = following
    return factor.clamp_(0.25, 4.0)
