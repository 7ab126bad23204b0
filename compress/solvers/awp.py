"""AWP: activation-aware pruning and rounding by projected gradient descent, alone or both at once (arXiv:2506.10205).

``Z = Y + (W − Y) C / L`` and ``Θ = Proj(Z)``. Beyond the plain method: coordinates in which every element costs the same, a
step from the largest eigenvalue there, momentum that restarts when the loss rises, a mask that ADMM has
found to begin with, and a least-squares refit on the mask that it ends with. The best iterate is what counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from compress.linalg.admm import split
from compress.linalg.conjugate_gradient import refit
from compress.score.metric import Elementwise, Kron, Metric
from compress.structures.base import Selects, Structure

from .base import Problem, Solution, nearest_point

_CAREFUL = 1.02
"""Power iteration comes to the eigenvalue from below."""


@dataclass(frozen=True)
class AWP:
    """Projected gradient descent on any structure that can project.

    Attributes:
        steps: of the descent with the structure's own projection.
        begin: where the mask comes from before the first step: ``"admm"``, or ``"nearest"`` as in the paper.
        normalise: descend in coordinates where every element costs the same.
        momentum: Nesterov's, with restarts.
        refit: steps of least squares on the mask found; 0 leaves it out.
    """

    steps: int = 50
    begin: Literal["admm", "nearest"] = "admm"
    normalise: bool = True
    momentum: bool = True
    refit: int = 100

    needs: ClassVar[frozenset[str]] = frozenset()
    requires: ClassVar[type] = Structure
    score: ClassVar[str] = "activation"

    def solve(self, problem: Problem[Structure], start: Solution | None = None) -> Solution:
        structure, weight, metric = problem.structure, problem.target, problem.metric
        if start is not None:
            free, best = start.theta, start
        elif isinstance(structure, Selects):
            free, mask = self._first(problem, structure)
            best = _land(structure, free, mask, metric)
        else:
            free, best = weight, nearest_point(problem, weight)
        first = lowest = metric.loss(weight - best.theta)
        for iterate, loss in self._descend(weight, free, structure, metric):
            if loss < lowest:
                best, lowest = iterate, loss
        if isinstance(structure, Selects) and self.refit:
            mask = structure.mask_of(best.parameters)
            settled = _land(
                structure, refit(weight, mask, metric, best.theta, steps=self.refit), mask, metric
            )
            if metric.loss(weight - settled.theta) <= lowest:
                best = settled
        return Solution(best.theta, best.parameters, {"awp_first": first, "awp_last": lowest})

    def _first(self, problem: Problem[Structure], structure: Selects) -> tuple[Tensor, Tensor]:
        """The values to start from, and the first mask, off which they are zero."""
        weight, metric = problem.target, problem.metric
        if self.begin == "admm" and isinstance(metric, Kron):
            mask = split(weight, metric, structure.pattern.choose, 300, problem.factors)
        else:
            mask = structure.pattern.choose(weight.square() * metric.elements(weight))
        values = refit(weight, mask, metric, weight, steps=self.refit) if self.refit else weight * mask
        return values, mask

    def _descend(
        self, weight: Tensor, free: Tensor, structure: Structure, metric: Metric
    ) -> Iterator[tuple[Solution, float]]:
        """The iterates Θ₁, Θ₂, … and their losses; one product with the metric for each."""
        if isinstance(metric, Elementwise):
            return  # each element by itself: the projection is already the best there is
        inverse = _inverse(metric.elements(weight), self.normalise)
        step = inverse / (_CAREFUL * _largest(metric, inverse, weight))
        theta, last, inertia = free, float("inf"), 1.0
        slope = metric.apply(weight - free)
        ahead, ahead_slope = theta, slope
        for _ in range(self.steps):
            landed = _project(
                structure, torch.addcmul(ahead, ahead_slope, step.expand_as(weight)), inverse, metric
            )
            delta = weight - landed.theta
            landed_slope = metric.apply(delta)
            loss = float((landed_slope * delta).sum(dtype=torch.float64))
            yield landed, loss
            restart = not self.momentum or loss > last
            following = 1.0 if restart else (1 + (1 + 4 * inertia**2) ** 0.5) / 2
            push = 0.0 if restart else (inertia - 1) / following
            # The slope is linear in the weight: where the momentum leads needs no product of its own.
            ahead = torch.lerp(theta, landed.theta, 1 + push)
            ahead_slope = torch.lerp(slope, landed_slope, 1 + push)
            theta, slope, last, inertia = landed.theta, landed_slope, loss, following


def _project(structure: Structure, moved: Tensor, inverse: Tensor, metric: Metric) -> Solution:
    """The allowed weight nearest to ``moved`` in the coordinates of the descent."""
    if not isinstance(structure, Selects):
        parameters = structure.fit(moved, metric)
        return Solution(structure.project(moved, parameters), parameters)
    weights = torch.where(inverse > 0, 1 / inverse, 0.0)
    return _land(structure, moved, structure.pattern.choose(moved.square() * weights), metric)


def _land(structure: Selects, values: Tensor, mask: Tensor, metric: Metric) -> Solution:
    parameters = structure.under(values, mask, metric)
    return Solution(structure.project(values, parameters), parameters)


def _inverse(elements: Tensor, normalise: bool) -> Tensor:
    """The squared length of a unit of each new coordinate, ``1 / m_ij`` or 1; 0 where nothing costs anything."""
    alive = elements > 0
    if not normalise:
        return alive.to(elements.dtype)
    return torch.where(alive, 1 / torch.where(alive, elements, 1.0), 0.0)


def _largest(metric: Metric, inverse: Tensor, weight: Tensor) -> float:
    """The largest eigenvalue of the metric in the new coordinates, by power iteration from a fixed vector."""
    root = inverse.sqrt()
    vector = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)).to(weight) * (root > 0)
    if isinstance(metric, Kron) and metric.left.matrix is None:
        vector, root = vector[:1], root[:1]
    value = 0.0
    for _ in range(40):
        length = float(vector.norm())
        if length == 0:
            return 1.0
        vector = vector / length
        moved = metric.apply(vector * root) * root
        value, vector = float((moved * vector).sum()), moved
    return max(value, torch.finfo(torch.float32).tiny)
