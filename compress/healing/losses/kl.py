"""``kl``: the Kullback-Leibler divergence from the teacher (forward KL), the loss of knowledge distillation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from compress.healing.losses.base import Positions, at_positive_temperature


@dataclass(frozen=True)
class KL:
    """``T² · Σ p (log p − log q)`` at temperature T (Hinton et al., arXiv:1503.02531, section 2)."""

    temperature: float = 1.0
    weight: float = 1.0

    name: ClassVar[str] = "kl"
    recordable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        at_positive_temperature(self.temperature)

    def __call__(self, positions: Positions) -> Tensor:
        """See :class:`~compress.healing.losses.base.Loss`."""
        at = positions.at_temperature(self.temperature)
        return self.temperature**2 * kl_of_logits(at.student, at.teacher)


def kl_of_logits(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher ‖ student) ``[positions]`` of logits fp32 ``[positions, vocabulary]``, with gradients to the student's."""
    return cast(Tensor, _FromLogits.apply(student, teacher))


class _FromLogits(torch.autograd.Function):
    """The gradient at the student's logits is ``q − p``: a third of the passes over the vocabulary that differentiating
    :func:`divergence` takes."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        log_q, log_p = student.log_softmax(-1), teacher.log_softmax(-1)
        p = log_p.exp()
        if student.device.type != "cpu":  # to ask whether anything is infinite would wait for the device
            value = torch.linalg.vecdot(p, torch.where(p > 0, log_p.sub_(log_q), 0))
        elif torch.isinf(torch.minimum(log_q.amin(), log_p.amin())):
            value = divergence(log_p, log_q)
        else:
            value = torch.linalg.vecdot(p, log_p.sub_(log_q))
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(log_q.exp_().sub_(p))
        return value

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return gradients[0].unsqueeze(-1) * slope, None


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """``KL(p ‖ q)`` ``[positions]``; where p is 0 nothing is added."""
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), 0).sum(-1)
