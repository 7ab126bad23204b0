"""DeepShape: codes moved towards a generalized Gaussian, so that an entropy coder stores them in fewer bits.

The paper on generalized Gaussian priors that names DeepShape says in its abstract that trained weights are reshaped to such a
profile, and not how. Here it is rate-distortion coordinate descent, which is our choice: each code is the one of least
``C_jj (v − v*)² + λ b(v)``, with v* the best real value while all others stay, and b(v) the bits of the code under the
generalized Gaussian that fits the codes so far. ``compress pack`` makes the saving one of bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from compress.linalg.cholesky import damped
from compress.linalg.generalized_gaussian import code_bits
from compress.score.metric import Kron
from compress.structures.base import HasCodes

from .base import Problem, Solution, nearest_point

_BYTES = 1 << 26
"""Working memory of the values of all codes, in bytes."""


@dataclass(frozen=True)
class DeepShape:
    """Rate-distortion coordinate descent from an earlier solver's codes, or from plain rounding.

    Attributes:
        rate: λ in units of the start's mean loss by element: how much more loss a saved bit may cost. 0 is plain coordinate
            descent.
        passes: rounds over all columns; the profile is fitted anew before each.
        damping: added to C's diagonal, relative to its mean.
    """

    rate: float = 0.5
    passes: int = 3
    damping: float = 0.01

    needs: ClassVar[frozenset[str]] = frozenset()
    requires: ClassVar[type] = HasCodes
    score: ClassVar[str] = "activation"
    two_sided: ClassVar[bool] = True
    guarded: ClassVar[bool] = False
    """It gives up loss for bits: plain rounding may well lose less."""

    def solve(self, problem: Problem[HasCodes], start: Solution | None = None) -> Solution:
        """Move codes of ``start`` fp32 ``[out, in]`` to likelier ones where the loss allows it."""
        structure, target = problem.structure, problem.target
        start = start or nearest_point(problem, target)
        if not isinstance(problem.metric, Kron):
            return start
        gram = damped(problem.metric.right.full(target.shape[1], target.device), self.damping)
        theta, parameters = start.theta, start.parameters
        before = _bits(structure.codes(theta, parameters), structure.top)
        delta = target - theta
        price = self.rate * float(((delta @ gram) * delta).sum(dtype=torch.float64)) / delta.numel()
        for _ in range(self.passes):
            bits = code_bits(structure.codes(theta, parameters), structure.top)
            for rows in _strips(structure, parameters, theta.shape):
                theta = _descended(problem, theta, parameters, gram, price * bits, rows)
        after = _bits(structure.codes(theta, parameters), structure.top)
        return Solution(theta, parameters, {**start.info, "bits_before": before, "bits": after})


def _descended(
    problem: Problem[HasCodes], theta: Tensor, parameters: Any, gram: Tensor, prices: Tensor, rows: slice
) -> Tensor:
    """``theta`` ``[out, in]`` after a round over the columns of some rows."""
    structure: Any = problem.structure
    own = structure.rows_of(parameters, rows) if _apart(structure) else parameters
    part, wanted = theta[rows].clone(), problem.target[rows]
    table = torch.stack(
        [structure.values(torch.full_like(part, code), own) for code in range(structure.top + 1)], -1
    )
    gradient = (wanted - part) @ gram
    for column in range(part.shape[1]):
        curvature = float(gram[column, column])
        best = part[:, column] + gradient[:, column] / curvature
        costs = curvature * (table[:, column] - best.unsqueeze(1)).square() + prices
        chosen = table[:, column].gather(1, costs.argmin(1, keepdim=True)).squeeze(1)
        step = chosen - part[:, column]
        part[:, column] = chosen
        gradient.addr_(step, gram[column], alpha=-1)
    out = theta.clone()
    out[rows] = part
    return out


def _apart(structure: Any) -> bool:
    return getattr(structure, "rows_apart", False) and hasattr(structure, "rows_of")


def _strips(structure: Any, parameters: Any, shape: torch.Size) -> Iterator[slice]:
    """Rows whose values of all codes are held together; all rows where they share scales."""
    step = max(1, _BYTES // (4 * shape[1] * (structure.top + 1))) if _apart(structure) else shape[0]
    for first in range(0, shape[0], step):
        yield slice(first, min(first + step, shape[0]))


def _bits(codes: Tensor, top: int) -> float:
    """The entropy of codes in bits."""
    share = torch.bincount(codes.flatten().long(), minlength=top + 1).double() / codes.numel()
    return float(-(share * share.clamp_min(1e-300).log2()).sum())
