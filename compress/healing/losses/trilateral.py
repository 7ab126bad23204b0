"""``trilateral``: KL from the teacher and cross entropy of the text, mixed by position by how student, teacher and text lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compress.healing.losses.base import Positions, of_following
from compress.healing.losses.kl import divergence


@dataclass(frozen=True)
class Trilateral:
    """``a KL(p ‖ q) − (1 − a) log q(y)`` with a from the triangle of student q, teacher p and truth y (TGeo-KD,
    arXiv:2312.15112).

    The paper learns ``a = f(edges)`` with a small network in a bilevel problem. Here the edges decide by themselves:
    ``a = ‖q − y‖ / (‖q − y‖ + truth · ‖p − y‖)`` in Euclidean length, so that the text counts where the teacher is no
    nearer to it than the student. The mean of the teacher's class, a fourth point of the paper, has no meaning for tokens. At
    the end of a window a is 1.
    """

    truth: float = 1.0
    weight: float = 1.0

    name: ClassVar[str] = "trilateral"

    def __post_init__(self) -> None:
        if self.truth < 0:
            raise ValueError("truth is 0 or more")

    def __call__(self, positions: Positions) -> Tensor:
        """See :class:`~compress.healing.losses.base.Loss`."""
        student = to_truth(positions.log_q.detach(), positions.following)
        teacher = to_truth(positions.log_p, positions.following)
        both = student + self.truth * teacher
        share = torch.where((positions.following >= 0) & (both > 0), student / both, 1.0)
        kl = divergence(positions.log_p, positions.log_q)
        return share * kl - (1 - share) * of_following(positions.log_q, positions.following)


def to_truth(log_p: Tensor, following: Tensor) -> Tensor:
    """The Euclidean distance ``[positions]`` of probabilities from all mass on the following token."""
    p = log_p.exp()
    chosen = of_following(p, following)
    return (p.square().sum(-1) - chosen.square() + (1 - chosen).square()).clamp(min=0).sqrt()
