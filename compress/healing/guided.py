"""Guidance of narrow grids: part of the target is what the student itself predicts on the next wider grid."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.healing.inner import Seen, forward
from compress.healing.student import Student
from compress.healing.teachers import Teaching


@dataclass(frozen=True)
class Guided:
    """EQ-Net's group progressive guidance (GPG, arXiv:2308.07650), of grids in the place of networks drawn at random.

    There the loss of a narrower network is ``½ KL(p_wider ‖ q) + ½ CE(text, q)``, and here the dense model stands for the text.
    The gradient of ``s · KL(p_wider ‖ q) + (1 − s) · KL(p_dense ‖ q)`` is that of KL from ``s · p_wider + (1 − s) · p_dense``,
    which any loss on logits can be told as its teacher.

    Attributes:
        teaching: what the student is trained towards.
        student: with weights that take turns in the bits that they are rounded to.
        share: s, of the wider grid.
    """

    teaching: Teaching
    student: Student
    share: float

    def seen(self, place: int, tokens: Tensor, *, states: bool = False) -> Seen:
        """See :class:`~compress.healing.teachers.Teaching`; in a step of the widest grid it is ``teaching``'s."""
        found = self.teaching.seen(place, tokens, states=states)
        weights = [weight for weight in self.student.weights.values() if weight.narrowed]
        if not weights:
            return found
        return Seen(self._mixed(found.logits, self._wider(tokens)), found.states)

    @torch.no_grad()
    def _wider(self, tokens: Tensor) -> Tensor:
        """The student's logits on the next wider grid."""
        for weight in self.student.weights.values():
            weight.wider = True
        try:
            return forward(self.student.model, tokens).logits
        finally:
            for weight in self.student.weights.values():
                weight.wider = False

    def _mixed(self, dense: Tensor, wider: Tensor) -> Tensor:
        """The logarithm of the mean of two distributions ``[windows, length, vocabulary]``, in the first one's dtype."""
        parts = (
            dense.float().log_softmax(-1) + math.log1p(-self.share),
            wider.float().log_softmax(-1) + math.log(self.share),
        )
        return torch.logaddexp(*parts).to(dense.dtype)
