"""``sensitivity``: windows that little else of the text is like are drawn more often."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compress.healing.samplers.base import Model, mean_embeddings
from compress.healing.samplers.fresh import Fresh


@dataclass(frozen=True)
class Sensitivity(Fresh):
    """Windows are drawn, each once, with probabilities in proportion to ``τ^(p/2)``: τ are the ridge leverage scores
    ``x (XᵀX + λ)⁻¹ xᵀ`` of the means of their tokens' embeddings, and ``p = 1`` is root leverage score sampling (Woodruff and
    Yasuda, arXiv:2306.00732, of rows of a regression; windows as rows are ours).

    ``oversample`` times the windows are looked at. λ is the mean of the eigenvalues of ``XᵀX`` times ``ridge``.
    """

    p: float = 1.0
    ridge: float = 1e-2
    oversample: int = 4

    name: ClassVar[str] = "sensitivity"

    def __post_init__(self) -> None:
        if not 0 < self.p <= 2 or self.ridge <= 0 or self.oversample < 1:
            raise ValueError("p is above 0 and up to 2, ridge above 0, and oversample at least 1")

    def candidates(self, count: int) -> int:
        """See :class:`~compress.healing.samplers.base.Selecting`."""
        return self.oversample * count

    @torch.no_grad()
    def select(self, windows: Tensor, count: int, model: Model, generator: torch.Generator) -> Tensor:
        """See :class:`~compress.healing.samplers.base.Selecting`."""
        features = mean_embeddings(windows, model, torch.float64)
        chances = leverage(features, self.ridge).pow(0.5 * self.p)
        return windows[torch.multinomial(chances, count, replacement=False, generator=generator)]


def leverage(points: Tensor, ridge: float) -> Tensor:
    """Ridge leverage scores ``[n]`` of points fp64 ``[n, width]``, above 0."""
    gram = points.T @ points
    gram.diagonal().add_(ridge * gram.diagonal().mean().clamp(min=1e-30))
    solved = torch.linalg.solve(gram, points.T)
    return (points * solved.T).sum(1).clamp(min=1e-12)
