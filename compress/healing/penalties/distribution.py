"""``distribution``: draws the numbers of every weight to an even spread, which grids of any width bear."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compress.healing.trained import Trained

UNIFORM = 1.8
"""The kurtosis of a uniform distribution."""


@dataclass(frozen=True)
class Distribution:
    """``weight · mean (K(W) − 1.8)² + S(W)²`` over the trained matrices, K their kurtosis and S their skewness: EQ-Net's weight
    distribution regularization (WDR, arXiv:2308.07650), whose authors weigh both terms alike in their code.

    It is for ``codes`` with ``elastic``: a weight that is spread evenly loses less on a narrower grid.
    """

    weight: float = 1e-3

    name: ClassVar[str] = "distribution"

    def __call__(self, trained: Mapping[str, Trained]) -> Tensor:
        """See :class:`~compress.healing.penalties.base.Penalty`."""
        values = [unevenness(one.master).cpu() for one in trained.values() if one.master.ndim == 2]
        return self.weight * torch.stack(values).mean() if values else torch.zeros(())


def unevenness(values: Tensor) -> Tensor:
    """``(kurtosis − 1.8)² + skewness²`` of all numbers; 0 of equal ones."""
    centred = values - values.mean()
    variance = centred.square().mean()
    standard = centred / torch.where(variance > 0, variance, 1.0).sqrt()
    cube = standard * standard * standard
    gap = ((cube * standard).mean() - UNIFORM).square() + cube.mean().square()
    return torch.where(variance > 0, gap, 0.0)
