"""How much each element of a weight matters by itself: what a mask is chosen by, whatever metric an error is measured in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compress.statistics import Statistics


@dataclass(frozen=True)
class MagnitudeSaliency:
    """``w²``. Needs no data."""

    needs: ClassVar[frozenset[str]] = frozenset()

    def importance(self, weight: Tensor, statistics: Statistics, seed: int) -> Tensor:
        return weight.square()


@dataclass(frozen=True)
class WandaSaliency:
    """``w² E[x_j²]``, the square of ``|w| ‖x_j‖`` (Wanda, arXiv:2306.11695, eq. 1)."""

    needs: ClassVar[frozenset[str]] = frozenset({"diagonal"})

    def importance(self, weight: Tensor, statistics: Statistics, seed: int) -> Tensor:
        if statistics.tokens == 0 or statistics.diagonal is None:
            return weight.square()
        return weight.square() * statistics.diagonal


@dataclass(frozen=True)
class RandomSaliency:
    """Drawn uniformly: the null that every method has to beat."""

    needs: ClassVar[frozenset[str]] = frozenset()

    def importance(self, weight: Tensor, statistics: Statistics, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(weight.shape, generator=generator).to(weight.device)
