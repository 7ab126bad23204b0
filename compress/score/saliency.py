"""How much each element of a weight matters by itself: what a mask is chosen by, whatever metric an error is measured in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compress.score.statistics import Statistics


@dataclass(frozen=True)
class MagnitudeSaliency:
    """``w²``. Needs no data."""

    needs: ClassVar[frozenset[str]] = frozenset()

    def importance(self, weight: Tensor, statistics: Statistics, seed: int) -> Tensor:
        """``w²`` of each element, fp32 ``[out, in]``."""
        return weight.square()


@dataclass(frozen=True)
class WandaSaliency:
    """``w² E[x_j²]``, the square of ``|w| ‖x_j‖`` (Wanda, arXiv:2306.11695, eq. 1)."""

    needs: ClassVar[frozenset[str]] = frozenset({"diagonal"})

    def importance(self, weight: Tensor, statistics: Statistics, seed: int) -> Tensor:
        """``w² · E[x²]`` of each element, fp32 ``[out, in]``; ``w²`` where no token reached the weight."""
        if statistics.tokens == 0 or statistics.diagonal is None:
            return weight.square()
        return weight.square() * statistics.diagonal


@dataclass(frozen=True)
class RelativeSaliency:
    """``μ + κσ`` over tokens of an element's share in its output, ``|w_ij x_j| / Σ_k |w_ik x_k|``.

    An element counts by what it contributes beside the others of its row, at the usual token (μ) and at the unusual one
    (σ): relative importance. Taken over a sample of the inputs.

    Attributes:
        spread: κ.
    """

    spread: float = 1.0

    needs: ClassVar[frozenset[str]] = frozenset({"sample"})

    def importance(self, weight: Tensor, statistics: Statistics, seed: int) -> Tensor:
        """``(μ + κσ)²`` of each element over the kept inputs, fp32 ``[out, in]``; ``w²`` without inputs."""
        inputs = statistics.sample
        if inputs is None or not len(inputs):
            return weight.square()
        sizes, rows = weight.abs().float(), inputs.abs()
        whole = rows @ sizes.T
        inverse = torch.where(whole > 0, 1 / whole.clamp_min(torch.finfo(whole.dtype).tiny), 0.0)
        mean = sizes * (inverse.T @ rows) / len(rows)
        square = sizes.square() * (inverse.square().T @ rows.square()) / len(rows)
        return (mean + self.spread * (square - mean.square()).clamp_min(0).sqrt()).square()


@dataclass(frozen=True)
class RandomSaliency:
    """Drawn uniformly: the null that every method has to beat."""

    needs: ClassVar[frozenset[str]] = frozenset()

    def importance(self, weight: Tensor, statistics: Statistics, seed: int) -> Tensor:
        """Uniform numbers under the seed, fp32 ``[out, in]``."""
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(weight.shape, generator=generator).to(weight.device)
