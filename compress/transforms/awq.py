"""AWQ: scale up the input channels of large activations before rounding (arXiv:2306.00978, eq. 4–5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compress.score.metric import Kron, Side
from compress.structures.base import Structure

from .base import Reader
from .scaling import positive, powers_of_two, spread_rows


@dataclass(frozen=True)
class AWQ:
    """AWQ: columns times ``s = mean|x|^α / mean|w|^(1−α)``, inputs divided by s, with the α of least error after rounding.

    The error is ``tr(Δ C Δᵀ)``, summed over the weights that read the input, for the scaled weight's nearest allowed weight
    scaled back. s is rounded to the nearest power of two. The paper's search for clipped ranges is the solver
    ``awq_clips``.

    Attributes:
        points: number of α from 0 to 1 that are tried, besides no scaling.
        rows: number of rows of each weight on which the error is measured.
    """

    points: int = 20
    rows: int = 512

    needs: ClassVar[frozenset[str]] = frozenset({"gram", "mean_abs"})

    def __post_init__(self) -> None:
        if self.points < 1 or self.rows < 1:
            raise ValueError("points and rows are at least 1")

    def scales(self, reader: Reader) -> Tensor | None:
        """The scales of least error, fp32 ``[in]``; ``None`` where no scaling is better."""
        statistics = reader.statistics
        if statistics.tokens == 0 or statistics.gram is None or statistics.mean_abs is None:
            return None
        weights = [spread_rows(weight, self.rows) for weight in reader.weights]
        sizes = torch.stack([weight.abs().mean(0) for weight in weights]).mean(0)
        activations, magnitudes = positive(statistics.mean_abs), positive(sizes)
        ones = torch.ones_like(activations)
        best, least = None, self._error(weights, reader.structures, statistics.gram, ones)
        for point in range(self.points):
            alpha = point / self.points
            scale = powers_of_two(activations.pow(alpha) / magnitudes.pow(1 - alpha))
            error = self._error(weights, reader.structures, statistics.gram, scale)
            if error < least:
                best, least = scale, error
        return best

    def _error(
        self, weights: list[Tensor], structures: tuple[Structure, ...], gram: Tensor, scale: Tensor
    ) -> float:
        total = 0.0
        metric = Kron(right=Side(gram))
        scaled_metric = Kron(right=Side(gram.diagonal() / scale.square()))
        for weight, structure in zip(weights, structures, strict=True):
            scaled = weight * scale
            rounded = structure.project(scaled, structure.fit(scaled, scaled_metric))
            total += metric.loss(weight - rounded / scale)
        return total
