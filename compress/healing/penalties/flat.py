"""``flat``: gradients are taken a little uphill, so that training ends where the loss is flat."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compress.healing.host import on_host
from compress.healing.trained import Trained


@dataclass(frozen=True)
class Flat:
    """``g ← (1 − share) ∇L(θ) + share ∇L(θ + ρ ∇L / ‖∇L‖)``, in the trained tensors' units: SAM (arXiv:2010.01412) at
    ``share: 1``, and below it the gradient of ``L + share · ρ ‖∇L‖`` (arXiv:2202.03599).

    ``radius`` is ρ by number: the root mean square of the step uphill as a share of the tensors' size. A step costs twice the
    time.
    """

    radius: float = 1e-3
    share: float = 1.0

    name: ClassVar[str] = "flat"

    def __post_init__(self) -> None:
        if self.radius <= 0 or not 0 < self.share <= 1:
            raise ValueError("radius is above 0, and share above 0 and up to 1")

    def __call__(self, trained: Mapping[str, Trained]) -> Tensor:
        """Nothing: it changes where the gradient is taken."""
        return torch.zeros(())

    @torch.no_grad()
    def around(self, trained: Mapping[str, Trained], gradients: Callable[[], float]) -> float:
        """Fill the masters' gradients; ``gradients`` fills them where the masters are. The loss there."""
        loss = gradients()
        known = {
            name: one.master.grad.clone() for name, one in trained.items() if one.master.grad is not None
        }
        square = sum(on_host((g * trained[name].unit).double().square().sum() for name, g in known.items()))
        if not (0 < square < math.inf):
            return loss
        count = sum(gradient.numel() for gradient in known.values())
        step = self.radius * math.sqrt(count / square)
        starts = {name: trained[name].master.detach().clone() for name in known}
        for name, gradient in known.items():
            unit = trained[name].unit
            trained[name].master.add_(step * unit * unit * gradient)
        gradients()
        for name, start in starts.items():
            master = trained[name].master
            master.copy_(start)
            if master.grad is not None:
                master.grad.lerp_(known[name], 1 - self.share)
        return loss
