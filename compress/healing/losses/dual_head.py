"""``dual-head``: a loss on the logits of a head of its own, which no checkpoint keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from compress.errors import UserError
from compress.healing.inner import Seen, head_of
from compress.healing.trained import Trained, trained_tensor

HEAD = "dual-head.weight"
ROWS = 256
"""Positions handled at once."""


@dataclass(frozen=True)
class DualHead:
    """``T² Σ_v KL(σ(z_v / T) ‖ σ(s_v / T))`` between Bernoulli variables for each word v, z the teacher's logits and s those of
    an auxiliary head on the student's last states, both with mean 0 and variance 1 by position (DHKD, arXiv:2411.08937).

    A loss on logits and one on probabilities fight in the head and nowhere else: put it beside ``kl``, which keeps the
    head that stays. The auxiliary head begins as the teacher's. The paper's alignment of gradients and its non-linear head are
    left out.
    """

    temperature: float = 2.0
    weight: float = 1e-3

    name: ClassVar[str] = "dual-head"

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError("temperature is above 0")

    def begin(self, teacher: nn.Module) -> dict[str, Trained]:
        """The auxiliary head, fp32 ``[vocabulary, width]``.

        Raises:
            UserError: the teacher has no linear head.
        """
        head = head_of(teacher)
        if head is None:
            raise UserError(
                "heal: loss 'dual-head' begins at the teacher's head, and it has none: leave it out"
            )
        weight = head.weight.detach().to(torch.float32)
        return {HEAD: trained_tensor(HEAD, self.name, weight)}

    def of_states(self, student: Seen, teacher: Seen, trained: Mapping[str, Trained]) -> Tensor:
        """See :class:`~compress.healing.inner.InnerLoss`."""
        states, logits = student.states[-1].flatten(0, 1), teacher.logits.flatten(0, 1)
        head = trained[HEAD].master
        parts = zip(states.split(ROWS), logits.split(ROWS), strict=True)
        return torch.stack(
            [checkpoint(self._of, one, z, head, use_reentrant=False) for one, z in parts]
        ).sum()

    def _of(self, states: Tensor, logits: Tensor, head: Tensor) -> Tensor:
        student = _normal(states.float() @ head.T) / self.temperature
        teacher = _normal(logits.float()) / self.temperature
        return self.temperature**2 * binary_divergence(teacher, student).sum()


def binary_divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """The divergence of Bernoulli variables of these log-odds, elementwise."""
    p = teacher.sigmoid()
    on = p * (F.logsigmoid(teacher) - F.logsigmoid(student))
    return on + (1 - p) * (F.logsigmoid(-teacher) - F.logsigmoid(-student))


def _normal(logits: Tensor) -> Tensor:
    spread = logits.std(-1, keepdim=True, unbiased=False)
    return (logits - logits.mean(-1, keepdim=True)) / spread.clamp(min=1e-6)
