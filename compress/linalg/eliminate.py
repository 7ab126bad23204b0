"""Input columns left out of a weight, the others fitted anew to make up for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.errors import UserError

_ROUNDS = 16
_DAMPING = 1e-4


@dataclass(frozen=True)
class Elimination:
    """What is left of a weight ``[out, in]``.

    Attributes:
        kept: numbers of the units of columns that stay, int64, rising.
        theta: fp32 ``[out, in]``, zero in the columns that went.
        error: ``tr((W − Θ) C (W − Θ)ᵀ)`` relative to that of W itself.
    """

    kept: Tensor
    theta: Tensor
    error: float


def eliminate(
    weight: Tensor,
    gram: Tensor,
    units: Tensor,
    count: int,
    rooted: Tensor | None = None,
    first: Tensor | None = None,
) -> Elimination:
    """Optimal brain surgeon on columns: remove all but ``count`` units, cheapest first, and refit the others.

    With ``H = C⁻¹`` the loss rises by ``tr(W_S (H_SS)⁻¹ W_Sᵀ)`` when the columns S are removed and all others are refitted
    (ZipLM, arXiv:2302.04089, eq. 3). Removal takes a few rounds; after each, ``W`` and ``H`` are updated. The values are the
    least-squares fit of the dense weight on the columns that stay.

    Args:
        weight: fp32 ``[out, in]``.
        gram: ``C = E[x xᵀ]`` fp32 ``[in, in]``; it is damped, so it may be singular.
        units: int64 ``[units, size]``, the columns of each unit.
        count: how many units stay, 1 to all.
        rooted: ``Sᵀ W`` fp32 ``[out, in]`` where an error costs ``tr(S Sᵀ Δ C Δᵀ)``: units are then chosen by that. Their
            values do not depend on it.
        first: numbers of units that go before all others, int64, at most as many as go.

    Raises:
        UserError: ``gram`` is not finite.
    """
    full = _damped(gram)
    chosen = weight if rooted is None else rooted
    alive = torch.ones(len(units), dtype=torch.bool, device=weight.device)
    before = 0 if first is None else len(first)
    counts = _rounds(len(units) - before, count, units.shape[1] == 1)
    for left, _ in _removals(chosen, full, units, counts, first if before else None):
        alive = left
    kept = alive.nonzero().squeeze(1)
    columns = units[kept].flatten()
    theta = torch.zeros_like(weight)
    target = weight.double() @ full[:, columns]
    theta[:, columns] = torch.linalg.solve(full[columns][:, columns], target.T).T.float()
    delta = (weight - theta).double()
    whole = float((weight.double() @ full * weight).sum())
    error = float((delta @ full * delta).sum()) / whole if whole > 0 else 0.0
    return Elimination(kept, theta, error)


def elimination_losses(
    rooted: Tensor, gram: Tensor, units: Tensor, counts: Sequence[int]
) -> dict[int, float]:
    """Number of units that stay → the loss ``tr(S Sᵀ Δ C Δᵀ)`` of removing the others, for each of the falling ``counts``.

    The arguments are those of :func:`eliminate`; a unit that was removed for one count stays removed for the next.
    """
    removals = _removals(rooted, _damped(gram), units, counts)
    return {int(alive.sum()): loss for alive, loss in removals}


def _damped(gram: Tensor) -> Tensor:
    """``C`` fp64, definite."""
    full = gram.double()
    full = (full + full.T) / 2
    if not bool(torch.isfinite(full.sum())):
        raise UserError(
            "the calibration inputs of a weight are not finite: check the checkpoint for NaN or Inf"
        )
    scale = float(full.diagonal().mean())
    full.diagonal().add_(_DAMPING * scale if scale > 0 else 1.0)
    return full


def _rounds(total: int, count: int, single: bool) -> list[int]:
    """How many units are left after each round."""
    if not single:
        return list(range(total - 1, count - 1, -1))
    counts, left = [], total
    for step in range(_ROUNDS):
        if left > count:
            left -= -(-(left - count) // (_ROUNDS - step))
            counts.append(left)
    return counts


def _removals(
    weight: Tensor, full: Tensor, units: Tensor, counts: Sequence[int], first: Tensor | None = None
) -> Iterator[tuple[Tensor, float]]:
    """At each of ``counts``: the units that are left, bool ``[units]``, and the loss of removing the others.

    The units ``first`` are removed before; after them the loop begins, or ends where no other goes.
    """
    alive = torch.ones(len(units), dtype=torch.bool, device=weight.device)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(full))
    current, lost = weight.double(), 0.0
    rounds: list[int | Tensor] = [*counts] if first is None else [first, *counts]
    for each in rounds:
        if isinstance(each, Tensor):
            gone = each
        else:
            cost = _costs(current, inverse, units, alive)
            gone = cost.topk(int(alive.sum()) - each, largest=False).indices
        alive = alive.index_fill(0, gone, False)
        columns = units[gone].flatten()
        removed, corner = current[:, columns], inverse[columns][:, columns]
        update = torch.linalg.solve(corner, inverse[columns])
        lost += float((removed * torch.linalg.solve(corner, removed.T).T).sum())
        current = current - removed @ update
        inverse = inverse - inverse[:, columns] @ update
        yield alive, lost


def _costs(weight: Tensor, inverse: Tensor, units: Tensor, alive: Tensor) -> Tensor:
    """The loss of removing each unit, fp64 ``[units]``; infinity for those that were removed."""
    cost = torch.full((len(units),), float("inf"), dtype=torch.float64, device=weight.device)
    if units.shape[1] == 1:
        columns = units[alive, 0]
        cost[alive] = weight[:, columns].square().sum(0) / inverse.diagonal()[columns]
        return cost
    for unit in alive.nonzero().squeeze(1).tolist():
        columns = units[unit]
        block = weight[:, columns]
        cost[unit] = (torch.linalg.solve(inverse[columns][:, columns], block.T) * block.T).sum()
    return cost
