"""``hyper``: all weights are drawn to 0, the small ones more and more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compress.train.masks.base import Drawn

INFLECTION = 0.6585
"""Where the third derivative of tanh is 0, as the paper's code has it."""


@dataclass(frozen=True)
class Hyper(Drawn):
    """HyperSparse (ART, arXiv:2308.07163).

    Its gradient ``λ (Σ|w| / Σ tanh s|w|) s (1 − tanh² s|w|) sign w`` falls from the small weights to the large ones, with
    ``s = 0.6585 / |w|_κ`` at the magnitude of the cut; λ grows from ``weight`` by ``growth``.
    """

    name: ClassVar[str] = "hyper"

    def pull(self, size: Tensor, sparsity: float) -> Tensor:
        """See :class:`~compress.train.masks.base.Drawn`."""
        return pull(size, sparsity)


def pull(size: Tensor, sparsity: float) -> Tensor:
    """The gradient at magnitudes ``[out, in]``, without λ."""
    place = min(size.numel(), max(1, round(sparsity * size.numel())))
    cut = size.flatten().kthvalue(place).values.clamp(min=torch.finfo(torch.float32).tiny)
    scale = INFLECTION / cut
    bent = torch.tanh(scale * size)
    return size.sum() / bent.sum().clamp(min=1e-30) * scale * (1 - bent.square())
