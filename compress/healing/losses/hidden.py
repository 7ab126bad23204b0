"""``hidden``: the squared error of the outputs of blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from compress.errors import UserError
from compress.healing.inner import Seen
from compress.healing.trained import Trained


@dataclass(frozen=True)
class Hidden:
    """``Σ ‖h_student − h_teacher‖² / mean ‖h_teacher‖²`` over positions, mean over the student's blocks (TinyBERT,
    arXiv:1909.10351, of models of one width, so that nothing maps one onto the other).

    Of a student with fewer blocks, block i of m is held against block ``i · n / m`` of the teacher's n, as there.
    """

    weight: float = 1.0

    name: ClassVar[str] = "hidden"

    def begin(self, teacher: nn.Module) -> dict[str, Trained]:
        """Nothing."""
        return {}

    def of_states(self, student: Seen, teacher: Seen, trained: Mapping[str, Trained]) -> Tensor:
        """See :class:`~compress.healing.inner.InnerLoss`.

        Raises:
            UserError: the models are of different widths.
        """
        ours, count = student.states, len(student.states)
        theirs = [teacher.states[round((i + 1) * len(teacher.states) / count) - 1] for i in range(count)]
        return torch.stack([_error(own, other) for own, other in zip(ours, theirs, strict=True)]).mean()


def _error(student: Tensor, teacher: Tensor) -> Tensor:
    if student.shape != teacher.shape:
        widths = f"{student.shape[-1]} and {teacher.shape[-1]}"
        raise UserError(
            f"heal: loss 'hidden' compares blocks of one width, and these are of {widths}: leave it out"
        )
    size = teacher.float().square().sum(-1).mean()
    return (student.float() - teacher.float()).square().sum() / size.clamp(
        min=torch.finfo(torch.float32).tiny
    )
