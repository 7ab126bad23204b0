"""GPFQ: greedy path-following quantization (Lybrand and Saab, JMLR 2021, equations 3 and 4).

Columns are rounded in their order. What the outputs have lost so far, ``u = Σ_{i<j} (w_i − θ_i) x_i``, is projected on the
input of column j, and the column is rounded with it: ``θ_j = Q(w_j + ⟨x_j, u⟩ / ‖x_j‖²)``. With the Gram matrix ``C = E[x xᵀ]``
the projection is ``Σ_{i<j} (w_i − θ_i) C_ij / C_jj``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from compress.score.metric import Kron
from compress.solvers.base import Problem, Solution, nearest_point
from compress.structures.base import HasColumns


@dataclass(frozen=True)
class GPFQ:
    """Greedy path-following quantization.

    Attributes:
        strength: the share of the projected error that a column takes over, above 0 to 1; 1 is the published method.
    """

    strength: float = 1.0

    needs: ClassVar[frozenset[str]] = frozenset()  # statistics beyond those of the score
    requires: ClassVar[type] = HasColumns  # what it asks of a structure
    score: ClassVar[str] = "activation"  # the score that it takes when a recipe names none
    two_sided: ClassVar[bool] = True  # the metric has a Gram matrix on its right side

    def __post_init__(self) -> None:
        if not 0 < self.strength <= 1:
            raise ValueError(f"strength is a share above 0 and up to 1, not {self.strength}")

    def solve(self, problem: Problem[HasColumns], start: Solution | None = None) -> Solution:
        """Round the columns of the target ``[out, in]`` one after the other."""
        start = start or nearest_point(problem, problem.target)
        if not isinstance(problem.metric, Kron):
            return start
        target, theta = problem.target, start.theta.clone()
        gram = problem.metric.right.full(target.shape[1], target.device)
        rounder = problem.structure.column_rounder(start.parameters, problem.shape)
        error = torch.zeros_like(target)
        for column in range(target.shape[1]):
            curvature = gram[column, column]
            lost = error[:, :column] @ gram[:column, column]
            wanted = target[:, column] + (self.strength * lost / curvature if curvature > 0 else 0.0)
            theta[:, column] = rounder(wanted, column)
            error[:, column] = target[:, column] - theta[:, column]
        return Solution(theta, start.parameters, start.info)
