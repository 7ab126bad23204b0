"""The held-out KL of a student, and how many windows a model runs together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from compress.healing.objective import held_out_kl, logits_of
from compress.healing.shares import ALONE, Shares

KEPT_BYTES = 512 << 20
"""The teacher's logits of the held-out windows are kept up to so many bytes; above, they are computed for every measurement."""


@dataclass(frozen=True)
class Parts:
    """Windows that run together.

    Attributes:
        row_bytes: of the logits of one position.
        most: bytes of logits of a part, which has one window at least.
        device: where they run.
    """

    row_bytes: int
    most: int
    device: torch.device

    def of(self, windows: Tensor) -> Iterator[Tensor]:
        """Windows ``[windows, length]`` in parts."""
        together = max(1, self.most // (windows.shape[1] * self.row_bytes))
        for part in windows.split(together):
            yield part.to(self.device)


def row_bytes(model: nn.Module, dtype: torch.dtype) -> int:
    """Bytes of the logits of one position."""
    config: Any = model.config
    return int(config.get_text_config().vocab_size) * dtype.itemsize


@dataclass(frozen=True, eq=False)
class Judge:
    """What measures a student.

    Attributes:
        student, teacher: the models.
        held_out: int64 ``[windows, length]``.
        parts: how many of them run together.
        kept: bytes of the teacher's logits that are kept.
        shares: the processes that measure together.
    """

    student: nn.Module
    teacher: nn.Module
    held_out: Tensor
    parts: Parts
    kept: int
    shares: Shares = ALONE

    @torch.no_grad()
    def kl(self) -> float:
        """The held-out KL by token of the student as it is."""
        total = sum(
            held_out_kl(logits_of(self.student, tokens), teacher) for tokens, teacher in self._pairs()
        )
        return self.shares.total(total) / self.held_out.numel()

    @property
    def keeps(self) -> bool:
        """Whether the teacher's logits of the held-out windows are kept, so that it is not asked about them again."""
        return self._kept is not None

    def _pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self._kept is not None:
            yield from zip(self.parts.of(self._own), self._kept, strict=True)
            return
        for tokens in self.parts.of(self._own):
            yield tokens, logits_of(self.teacher, tokens)

    @cached_property
    @torch.no_grad()
    def _kept(self) -> list[Tensor] | None:
        """The teacher's logits of the held-out windows, where they are not too large."""
        if self._own.numel() * self.parts.row_bytes > self.kept:
            return None
        return [logits_of(self.teacher, tokens) for tokens in self.parts.of(self._own)]

    @property
    def _own(self) -> Tensor:
        """The held-out windows that this process has."""
        return self.held_out[self.shares.own(len(self.held_out))]
