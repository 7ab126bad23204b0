"""``adamw``: Adam with decoupled weight decay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class AdamW:
    """Algorithm 2 of Loshchilov and Hutter, arXiv:1711.05101; without ``decay`` it is Adam (arXiv:1412.6980)."""

    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-10
    decay: float = 0.0

    name: ClassVar[str] = "adamw"
    together: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (self.beta1 < 1 and self.beta2 < 1):
            raise ValueError("beta1 and beta2 are below 1")

    def begin(self, master: Tensor) -> dict[str, Tensor]:
        """First and second moment."""
        return {"mean": torch.zeros_like(master), "square": torch.zeros_like(master)}

    def step(
        self, master: Tensor, gradient: Tensor, state: dict[str, Tensor], *, rate: Tensor, count: int | Tensor
    ) -> None:
        """See :class:`~compress.healing.optimizers.base.Optimizer`. Epsilon counts beside the root of the second moment."""
        state["mean"].lerp_(gradient, 1 - self.beta1)
        state["square"].mul_(self.beta2).addcmul_(gradient, gradient, value=1 - self.beta2)
        mean = state["mean"] / (1 - self.beta1**count)
        root = (state["square"] / (1 - self.beta2**count)).sqrt_().add_(self.epsilon)
        if self.decay:
            master.sub_(rate * self.decay * master)
        master.sub_(rate * mean / root)

    def step_together(
        self,
        masters: list[Tensor],
        gradients: list[Tensor],
        states: list[dict[str, Tensor]],
        *,
        rates: list[Tensor],
        count: Tensor,
    ) -> None:
        """:meth:`step` of many tensors with few kernels; a rate has its master's shape."""
        means, squares = [state["mean"] for state in states], [state["square"] for state in states]
        torch._foreach_lerp_(means, gradients, 1 - self.beta1)
        torch._foreach_mul_(squares, self.beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, value=1 - self.beta2)
        roots = list(torch._foreach_mul(squares, (1 / (1 - self.beta2**count)).to(torch.float32)))
        torch._foreach_sqrt_(roots)
        torch._foreach_add_(roots, self.epsilon)
        moves = list(torch._foreach_mul(means, (1 / (1 - self.beta1**count)).to(torch.float32)))
        torch._foreach_div_(moves, roots)
        torch._foreach_mul_(moves, rates)
        if self.decay:
            torch._foreach_addcmul_(moves, rates, masters, value=self.decay)
        torch._foreach_sub_(masters, moves)
