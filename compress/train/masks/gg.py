"""``gg``: every weight becomes cheaper to code under the generalized Gaussian that fits it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compress.linalg.generalized_gaussian import exponent, scale_of
from compress.train.masks.base import Drawn

FLAT = 1e-2
"""What is added to a magnitude, as a share of the scale: at 0 the pull of an exponent below 1 has no bound."""


@dataclass(frozen=True)
class GG(Drawn):
    """BackSlash (arXiv:2504.16968): weights are coded at a rate of ``Σ |w/α|^ν`` nats and a constant under the generalized
    Gaussian of scale α and exponent ν, and every update is followed by a step down the rate.

    ν and α are fitted by moments to each weight, anew in every step (the authors' ν is that of all weights together). The step
    is ``rate · λ · α · ν (|w|/α + .01)^(ν − 1)``, with λ rising from ``weight`` by ``growth``.
    """

    weight: float = 1e-2
    growth: float = 1e2

    name: ClassVar[str] = "gg"

    def pull(self, size: Tensor, sparsity: float) -> Tensor:
        """See :class:`~compress.train.masks.base.Drawn`."""
        return slope(size)


def slope(size: Tensor) -> Tensor:
    """``α² d/dw`` of the rate at magnitudes ``[out, in]``, in the weights' own unit; 0 where all are 0."""
    if not bool(size.any()):
        return torch.zeros_like(size)
    nu = exponent(size)
    alpha = scale_of(size, nu)
    return alpha * nu * (size / alpha + FLAT).pow(nu - 1)
