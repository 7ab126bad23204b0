"""The loss of a batch and its gradient at the student's logits, some positions at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compress.healing.filters.base import Filter
from compress.healing.host import on_host
from compress.healing.losses.base import Loss, Positions
from compress.healing.losses.kl import kl_of_logits

CHUNK_ELEMENTS = 1 << 20
"""Logits handled at once: the fp32 temporaries, 4 MB each, stay in a CPU's caches (half the time of 32 MB)."""
VALUE_ELEMENTS = 1 << 18
"""The same where no gradient is taken: what is held beside two models in inference is to be small."""
GPU_ELEMENTS = 1 << 26
"""The same on a GPU, with or without a gradient: few launches of kernels, and 256 MB for each fp32 temporary."""


def at_once(elements: int, device: torch.device) -> int:
    """Logits handled at once on ``device``, where ``elements`` are right for a CPU."""
    return elements if device.type == "cpu" else GPU_ELEMENTS


def logits_of(model: nn.Module, tokens: Tensor) -> Tensor:
    """Logits ``[windows, length, vocabulary]`` of windows of tokens ``[windows, length]``."""
    return model(input_ids=tokens, use_cache=False).logits


def following_tokens(tokens: Tensor) -> Tensor:
    """The token behind each position, flattened; −1 at the end of a window."""
    end = torch.full_like(tokens[:, :1], -1)
    return torch.cat((tokens[:, 1:], end), dim=1).flatten()


@dataclass(frozen=True)
class Objective:
    """A weighted sum of losses on logits, of the positions that a filter lets through; of no losses it is 0.

    ``smoothing`` is the share of the teacher's probability that is spread over the whole vocabulary.
    """

    losses: Sequence[Loss]
    filter: Filter | None = None
    smoothing: float = 0.0

    @property
    def recordable(self) -> bool:
        """Whether it does the same at every batch and reads no number on the host, so that a GPU can record it."""
        return self.filter is None and all(getattr(loss, "recordable", False) for loss in self.losses)

    def gradient(self, student: Tensor, teacher: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The sum over all positions of a batch, and its gradient.

        Args:
            student, teacher: logits ``[windows, length, vocabulary]``.
            tokens: int64 ``[windows, length]``.

        Returns:
            The sum in nats, fp64 on their device, and the gradient at ``student``, of its shape and dtype.
        """
        flat, flat_teacher = student.detach().flatten(0, 1), teacher.flatten(0, 1)
        following = following_tokens(tokens)
        if not self.losses:
            return student.new_zeros((), dtype=torch.float64), torch.zeros_like(student)
        gradient = torch.empty_like(flat)
        values: list[Tensor] = []
        rows = self._together(flat, CHUNK_ELEMENTS)
        for start in range(0, flat.shape[0], rows):
            part = slice(start, start + rows)
            logits = flat[part].float().requires_grad_()
            positions = Positions(logits, self._target(flat_teacher[part]), following[part])
            with torch.enable_grad():
                value = self._sum(positions)
            (at_logits,) = torch.autograd.grad(value, logits)
            gradient[part] = at_logits.to(gradient.dtype)
            values.append(value.detach())
        return torch.stack(values).double().sum(), gradient.view_as(student)

    @torch.no_grad()
    def value(self, student: Tensor, teacher: Tensor, tokens: Tensor) -> float:
        """The sum alone; the arguments are those of :meth:`gradient`."""
        if not self.losses:
            return 0.0
        flat, flat_teacher = student.flatten(0, 1), teacher.flatten(0, 1)
        following = following_tokens(tokens)
        rows = self._together(flat, VALUE_ELEMENTS)
        parts = (slice(start, start + rows) for start in range(0, flat.shape[0], rows))
        return sum(
            on_host(
                self._sum(Positions(flat[part].float(), self._target(flat_teacher[part]), following[part]))
                for part in parts
            )
        )

    def _together(self, logits: Tensor, elements: int) -> int:
        """Positions handled at once, no fewer than those that compare positions want."""
        asked = (getattr(one, "together", 1) for one in (*self.losses, self.filter))
        return max(1, at_once(elements, logits.device) // logits.shape[1], *asked)

    def _target(self, teacher: Tensor) -> Tensor:
        """The teacher's logits fp32, or log-probabilities where they are smoothed."""
        if not self.smoothing:
            return teacher.float()
        spread = math.log(self.smoothing / teacher.shape[1])
        p = teacher.float().log_softmax(-1) + math.log1p(-self.smoothing)
        return torch.logaddexp(p, torch.full_like(p[:1, :1], spread))

    def _sum(self, positions: Positions) -> Tensor:
        by_position = torch.stack([loss.weight * loss(positions) for loss in self.losses]).sum(0)
        if self.filter is None:
            return by_position.sum()
        return (by_position * self.filter(positions, by_position.detach())).sum()


@torch.no_grad()
def held_out_kl(student: Tensor, teacher: Tensor) -> float:
    """The sum over positions of KL(teacher ‖ student), fp32, in nats."""
    flat, flat_teacher = student.flatten(0, 1), teacher.flatten(0, 1)
    rows = max(1, at_once(VALUE_ELEMENTS, flat.device) // flat.shape[1])
    parts = (slice(start, start + rows) for start in range(0, flat.shape[0], rows))
    return sum(
        on_host(kl_of_logits(flat[part].float(), flat_teacher[part].float()).double().sum() for part in parts)
    )
