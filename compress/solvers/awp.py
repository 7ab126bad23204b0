"""AWP: activation-aware pruning and rounding by projected gradient descent, alone or both at once (arXiv:2506.10205).

``Z = Y + (W − Y) C / L`` and ``Θ = Proj(Z)``. Beyond the paper: coordinates in which every element costs the same, a step
size from the largest eigenvalue there, momentum that restarts when the loss rises, a first mask and first values from ADMM, and
a least-squares refit on the last mask. The iterate of least loss is returned.

On a grid the paper's step hardly ever reaches another code: it is shorter than half the distance to it, and the projection
takes it back. There the steps add up in a continuous iterate, whose projection is what the gradient is taken at:
``Z ← Z + η_t (W − Θ) C, Θ = Proj(Z)`` with ``η_t`` falling to 0 as ``(1 − t/T)²``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from compress.linalg.admm import QUICK, Split, split
from compress.linalg.conjugate_gradient import refit
from compress.score.metric import Elementwise, Kron, Metric
from compress.structures.base import HasColumns, Selects, Structure

from .base import Problem, Solution, nearest_point

_SAFETY = 1.02
"""Power iteration approaches the largest eigenvalue from below."""

_PATIENCE = 3
_GAIN = 1e-4
"""The descent with a mask ends once so many iterates in a row come no lower than the least loss less this share of it."""


@dataclass(frozen=True)
class AWP:
    """AWP: projected gradient descent on any structure.

    Attributes:
        steps: steps of the descent, at most: with a mask it ends once it gains nothing more.
        begin: source of the first mask: ``"admm"``, or ``"nearest"`` as in the paper.
        normalise: descend in coordinates where every element costs the same.
        momentum: use Nesterov's momentum, with restarts.
        refit: steps of least squares on the last mask, at most; 0 for none.
        accumulate: on a grid, let the steps add up in a continuous iterate, under the scales of the start; without it, project
            every step and fit the scales anew, as in the paper.
    """

    steps: int = 50
    begin: Literal["admm", "nearest"] = "admm"
    normalise: bool = True
    momentum: bool = True
    refit: int = 100
    accumulate: bool = True

    needs: ClassVar[frozenset[str]] = frozenset()
    requires: ClassVar[type] = Structure
    score: ClassVar[str] = "activation"

    def solve(self, problem: Problem[Structure], start: Solution | None = None) -> Solution:
        """Projected gradient steps from ``start`` or from the weight fp32 ``[out, in]``; the best iterate is returned."""
        structure, weight, metric = problem.structure, problem.target, problem.metric
        largest = None
        if start is not None:
            free, best = start.theta, start
        elif isinstance(structure, Selects):
            begun = self._first(problem, structure)
            free, largest = begun.values, begun.largest
            best = _under_mask(structure, free, begun.mask, metric)
        else:
            free, best = weight, nearest_point(problem, weight)
        first = lowest = metric.loss(weight - best.theta)
        adds_up = self.accumulate and isinstance(structure, HasColumns) and not isinstance(structure, Selects)
        iterates = (
            self._accumulate(weight, best, structure, metric)
            if adds_up
            else self._descend(weight, free, structure, metric, largest)
        )
        idle = 0
        for iterate, loss in iterates:
            idle = 0 if loss < (1 - _GAIN) * lowest else idle + 1
            if loss < lowest:
                best, lowest = iterate, loss
            if idle == _PATIENCE and not adds_up:
                break
        if isinstance(structure, Selects) and self.refit:
            mask = structure.mask_of(best.parameters)
            values = refit(weight, mask, metric, best.theta, steps=self.refit, gain=_GAIN)
            fitted = _under_mask(structure, values, mask, metric)
            if metric.loss(weight - fitted.theta) <= lowest:
                best = fitted
        return Solution(best.theta, best.parameters, {"awp_first": first, "awp_last": lowest})

    def _first(self, problem: Problem[Structure], structure: Selects) -> Split:
        """The first mask and values, and the largest eigenvalue in the coordinates of the descent if it came with them."""
        weight, metric = problem.target, problem.metric
        if self.begin == "admm" and isinstance(metric, Kron):
            found = split(weight, metric, structure.pattern.choose, 300, problem.factors, QUICK)
            return found if self.normalise else replace(found, largest=None)
        mask = structure.pattern.choose(weight.square() * metric.elements(weight))
        values = refit(weight, mask, metric, weight, steps=self.refit) if self.refit else weight * mask
        return Split(mask, values)

    def _descend(
        self,
        weight: Tensor,
        free: Tensor,
        structure: Structure,
        metric: Metric,
        largest: float | None = None,
    ) -> Iterator[tuple[Solution, float]]:
        """The iterates Θ₁, Θ₂, … and their losses, at one product with the metric each."""
        if isinstance(metric, Elementwise):
            return  # elements do not interact: the projection is optimal
        inverse = _inverse(metric.elements(weight), self.normalise)
        step = inverse / (_SAFETY * (largest or _largest_eigenvalue(metric, inverse, weight)))
        theta, last, inertia = free, float("inf"), 1.0
        gradient = metric.apply(weight - free)
        ahead, ahead_gradient = theta, gradient
        for _ in range(self.steps):
            moved = torch.addcmul(ahead, ahead_gradient, step.expand_as(weight))
            iterate = _project(structure, moved, inverse, metric)
            delta = weight - iterate.theta
            iterate_gradient = metric.apply(delta)
            loss = float((iterate_gradient * delta).sum(dtype=torch.float64))
            yield iterate, loss
            restart = not self.momentum or loss > last
            following = 1.0 if restart else (1 + (1 + 4 * inertia**2) ** 0.5) / 2
            push = 0.0 if restart else (inertia - 1) / following
            # The gradient is linear in the weight: the extrapolated point needs no product with the metric.
            ahead = torch.lerp(theta, iterate.theta, 1 + push)
            ahead_gradient = torch.lerp(gradient, iterate_gradient, 1 + push)
            theta, gradient, last, inertia = iterate.theta, iterate_gradient, loss, following

    def _accumulate(
        self, weight: Tensor, start: Solution, structure: Structure, metric: Metric
    ) -> Iterator[tuple[Solution, float]]:
        """The projections Θ₁, Θ₂, … of a continuous iterate that starts at the weight, and their losses."""
        if isinstance(metric, Elementwise):
            return  # elements do not interact: the projection is optimal
        inverse = _inverse(metric.elements(weight), self.normalise)
        step = (inverse / (_SAFETY * _largest_eigenvalue(metric, inverse, weight))).expand_as(weight)
        theta, free = start.theta, weight.clone()
        gradient = metric.apply(weight - theta)
        for count in range(self.steps):
            free.addcmul_(gradient, step, value=(1 - count / self.steps) ** 2)
            theta = structure.project(free, start.parameters)
            delta = weight - theta
            gradient = metric.apply(delta)
            loss = float((gradient * delta).sum(dtype=torch.float64))
            yield Solution(theta, start.parameters), loss


def _project(structure: Structure, moved: Tensor, inverse: Tensor, metric: Metric) -> Solution:
    """The allowed weight nearest to ``moved`` in the coordinates of the descent."""
    if not isinstance(structure, Selects):
        parameters = structure.fit(moved, metric)
        return Solution(structure.project(moved, parameters), parameters)
    weights = torch.where(inverse > 0, 1 / inverse, 0.0)
    return _under_mask(structure, moved, structure.pattern.choose(moved.square() * weights), metric)


def _under_mask(structure: Selects, values: Tensor, mask: Tensor, metric: Metric) -> Solution:
    """The allowed weight nearest to ``values`` ``[out, in]`` under a mask."""
    parameters = structure.under(values, mask, metric)
    return Solution(structure.project(values, parameters), parameters)


def _inverse(elements: Tensor, normalise: bool) -> Tensor:
    """Squared length of a unit of each new coordinate, ``1 / m_ij`` or 1; 0 where an element costs nothing."""
    positive = elements > 0
    if not normalise:
        return positive.to(elements.dtype)
    return torch.where(positive, 1 / torch.where(positive, elements, 1.0), 0.0)


def _largest_eigenvalue(metric: Metric, inverse: Tensor, weight: Tensor) -> float:
    """Largest eigenvalue of the metric in the new coordinates, by power iteration from a fixed vector; 1 of no metric."""
    root = inverse.sqrt()
    vector = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)).to(weight) * (root > 0)
    if isinstance(metric, Kron) and metric.left.matrix is None:
        vector, root = vector[:1], root[:1]
    value = vector.new_zeros(())
    for _ in range(40):
        vector = vector / vector.norm().clamp_min(torch.finfo(torch.float32).tiny)
        moved = metric.apply(vector * root) * root
        value, vector = (moved * vector).sum(), moved
    largest = float(value)
    return largest if largest > 0 else 1.0
