"""``spsa``: two forward passes in place of gradients, and one byte a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compress.healing.trained import Trained

PIECE = 1 << 18
"""Numbers that are moved at once: what is drawn for them takes 4 bytes each."""


@dataclass(frozen=True)
class SPSA:
    """``θ ← θ − rate · unit · ĝ z`` with ``ĝ = (L(θ + ε u z) − L(θ − ε u z)) / 2ε``, z of ±1 drawn by the step's seed (Spall,
    1992; MeZO, arXiv:2305.17333).

    ĝ is one byte (float8 E5M2), as in arXiv:2306.10015, where machines exchange nothing but seeds and bytes. It is divided
    by its running root mean square, so that ``rate`` means what it means elsewhere: the share of its size that a step moves a
    number by. Memory is that of inference: no activations, gradients or moments, and z is drawn three times in the place of a
    copy of what is trained, as in MeZO. It takes many more steps than AdamW, at rates a hundred times smaller.
    """

    epsilon: float = 1e-2

    name: ClassVar[str] = "spsa"
    memory: ClassVar[float] = 0.95
    """How much of the running mean square stays in a step."""

    def __post_init__(self) -> None:
        if self.epsilon <= 0:
            raise ValueError("epsilon is above 0")

    def begin(self, master: Tensor) -> dict[str, Tensor]:
        """Nothing by tensor."""
        return {}

    def begin_all(self) -> dict[str, Tensor]:
        """The running mean square of ĝ."""
        return {"square": torch.zeros((), dtype=torch.float64)}

    @torch.no_grad()
    def step_forward(
        self,
        trained: Mapping[str, Trained],
        loss: Callable[[], float],
        state: dict[str, Tensor],
        *,
        rate: float,
        count: int,
        seed: int,
    ) -> tuple[float, float]:
        """Change all masters.

        Args:
            trained: the tensors.
            loss: the loss with the masters as they are.
            state: as :meth:`begin_all` made it.
            rate: the learning rate.
            count: the step, from 1.
            seed: of this step's direction.

        Returns:
            The mean of both losses, and ĝ.
        """
        losses, here = [], 0.0
        for there in (self.epsilon, -self.epsilon):
            self._move(trained, seed, there - here)
            losses.append(loss())
            here = there
        slope = one_byte((losses[0] - losses[1]) / (2 * self.epsilon))
        state["square"].mul_(self.memory).add_((1 - self.memory) * slope * slope)
        size = (float(state["square"]) / (1 - self.memory**count)) ** 0.5
        self._move(trained, seed, (-rate * slope / size if size > 0 else 0.0) - here)
        return 0.5 * (losses[0] + losses[1]), slope

    def _move(self, trained: Mapping[str, Trained], seed: int, by: float) -> None:
        """Add ``by · unit · z``, in place, with z drawn anew and a piece at a time."""
        generator = torch.Generator().manual_seed(seed)
        for one in trained.values():
            master = one.master.detach()
            for part, unit in zip(*(_pieces(tensor, master) for tensor in (master, one.unit)), strict=True):
                signs = torch.empty(part.shape).bernoulli_(0.5, generator=generator).mul_(2).sub_(1)
                part.addcmul_(signs.to(part.device), unit, value=by)


def _pieces(tensor: Tensor, like: Tensor) -> list[Tensor]:
    """Views of a tensor's rows, few enough at a time; a single number once for every piece of ``like``."""
    rows = max(1, PIECE // max(1, like[0].numel())) if like.ndim else 1
    if tensor.shape == like.shape:
        return list(tensor.split(rows)) if like.ndim else [tensor]
    return [tensor] * (-(-len(like) // rows))


def one_byte(value: float) -> float:
    """A number as float8 E5M2 holds it; the largest finite one in the place of greater ones."""
    limit = torch.finfo(torch.float8_e5m2).max
    held = max(-limit, min(limit, value)) if value == value else value
    return float(torch.tensor(held).to(torch.float8_e5m2).to(torch.float64))
