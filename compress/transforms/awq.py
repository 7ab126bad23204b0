"""AWQ: input channels that carry much are rounded on a finer grid (arXiv:2306.00978, eq. 4–5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from compress.score.metric import Kron, Side

from .base import Reader


@dataclass(frozen=True)
class AWQ:
    """Columns times ``s = mean|x|^α / mean|w|^(1−α)``, the inputs by its inverse; α is the one of least error after rounding.

    The search holds ``tr(Δ C Δᵀ)``, summed over the weights that read the input, Δ being the error of the scaled weight's
    nearest allowed weight, scaled back. s is taken to the nearest power of two. The paper's search for
    clipped ranges is the structure's own (``scales: mse``).

    Attributes:
        points: how many α from 0 to 1 are tried, besides none at all.
        rows: of each weight that are looked at.
    """

    points: int = 20
    rows: int = 512

    needs: ClassVar[frozenset[str]] = frozenset({"gram", "mean_abs"})

    def __post_init__(self) -> None:
        if self.points < 1 or self.rows < 1:
            raise ValueError("points and rows are at least 1")

    def scales(self, reader: Reader) -> Tensor | None:
        statistics = reader.statistics
        if statistics.tokens == 0 or statistics.gram is None or statistics.mean_abs is None:
            return None
        weights = [self._some(weight) for weight in reader.weights]
        sizes = torch.stack([weight.abs().mean(0) for weight in weights]).mean(0)
        loud, thick = _positive(statistics.mean_abs), _positive(sizes)
        ones = torch.ones_like(loud)
        best, least = None, self._error(weights, reader.structures, statistics.gram, ones)
        for point in range(self.points):
            alpha = point / self.points
            scale = powers_of_two(loud.pow(alpha) / thick.pow(1 - alpha))
            error = self._error(weights, reader.structures, statistics.gram, scale)
            if error < least:
                best, least = scale, error
        return best

    def _some(self, weight: Tensor) -> Tensor:
        step = max(1, weight.shape[0] // self.rows)
        return weight.detach()[::step].float()

    def _error(
        self, weights: list[Tensor], structures: tuple[Any, ...], gram: Tensor, scale: Tensor
    ) -> float:
        total = 0.0
        there, back = Kron(right=Side(gram)), Kron(right=Side(gram.diagonal() / scale.square()))
        for weight, structure in zip(weights, structures, strict=True):
            scaled = weight * scale
            rounded = structure.project(scaled, structure.fit(scaled, back))
            total += there.loss(weight - rounded / scale)
        return total


def powers_of_two(scale: Tensor) -> Tensor:
    """``scale`` fp32 over the middle of its range, to the nearest power of two within 2^±8."""
    logs = scale.log2()
    logs = logs - (logs.max() + logs.min()) / 2
    return torch.exp2(logs.round().clamp(-8, 8))


def _positive(values: Tensor) -> Tensor:
    """Dead channels count like the quietest living one."""
    living = values[values > 0]
    floor = float(living.min()) if len(living) else 1.0
    return values.clamp_min(max(floor, 1e-4 * float(values.max()) if len(living) else 1.0))
