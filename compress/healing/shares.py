"""Shares: the windows of a step and of the hold-out, dealt out to the processes that train together.

Every rank holds the same models and changes them by the same sum of gradients. So nothing but gradients and losses is sent, and
a step is that of one process but for the order in which numbers are added.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from compress.recipe.heal import Heal
from compress.system.ranks import Ranks, RanksApart

T = TypeVar("T")


@dataclass(frozen=True)
class Shares:
    """What this process has of the work.

    Attributes:
        ranks: the processes; None for one alone, which has all.
    """

    ranks: Ranks | None = None

    @property
    def leads(self) -> bool:
        """Whether this process keeps the state and writes."""
        return self.ranks is None or self.ranks.rank == 0

    def own(self, count: int) -> slice:
        """The windows, of ``count``, that this process has."""
        if self.ranks is None:
            return slice(0, count)
        rank, size = self.ranks.rank, self.ranks.size
        return slice(count * rank // size, count * (rank + 1) // size)

    @property
    def folder(self) -> str:
        """A name for what this process alone keeps on disk; the same for one alone, whatever others there were before."""
        return "all" if self.ranks is None else f"{self.ranks.rank}-of-{self.ranks.size}"

    def own_places(self, sizes: Iterable[int]) -> list[int]:
        """The windows of all steps, of ``sizes`` windows each and numbered through, that this process has, rising."""
        places, begin = list[int](), 0
        for size in sizes:
            places += range(begin, begin + size)[self.own(size)]
            begin += size
        return places

    def total(self, value: float) -> float:
        """The sum of a number over all processes."""
        if self.ranks is None:
            return value
        held = torch.tensor([value], dtype=torch.float64)
        self.ranks.add(held)
        return float(held)

    def add_gradients(self, masters: Sequence[nn.Parameter]) -> None:
        """Sum the gradients of all processes; one that no process has stays away."""
        if self.ranks is None:
            return
        there = torch.tensor([float(one.grad is not None) for one in masters])
        self.ranks.add(there)
        for one, count in zip(masters, there.tolist(), strict=True):
            if count:
                one.grad = torch.zeros_like(one) if one.grad is None else one.grad
                self.ranks.add(one.grad)

    def of_first(self, thing: T) -> T:
        """What the first process has, on all; tensors are on the CPU."""
        if self.ranks is None:
            return thing
        if self.ranks.rank:
            found: T = self.ranks.receive(0)
            return found
        for rank in range(1, self.ranks.size):
            self.ranks.send(rank, thing)
        return thing


ALONE = Shares()


def check_same(key: str, ranks: Ranks) -> None:
    """Refuse processes that have read something else than the first; all of them call it, and every one of them notices.

    Args:
        key: a hash, in hexadecimal, of all that decides the result.
        ranks: the processes.

    Raises:
        RanksApart: a process has another key.
    """
    keys = torch.zeros(ranks.size, dtype=torch.int64)
    keys[ranks.rank] = int(key[:15], 16)
    ranks.add(keys)
    for rank, found in enumerate(keys.tolist()):
        if found != keys[0]:
            raise RanksApart(
                f"rank {rank} reads another checkpoint, source, teacher or text than rank 0: give all ranks the same files"
            )


def check_shares(heal: Heal, sizes: Sequence[int], held_out: Tensor, ranks: Ranks) -> None:
    """Refuse processes that a step or the hold-out has no windows for.

    Args:
        heal: how the training goes.
        sizes: windows of every step, where they are not ``batch`` in each.
        held_out: int64 ``[windows, length]``.
        ranks: the processes.

    Raises:
        RanksApart: there are more of them than windows; every one of them notices.
    """
    least = min(heal.batch, *sizes, len(held_out))
    if ranks.size > least:
        raise RanksApart(
            f"{ranks.size} ranks are more than the {least} windows of a step or the hold-out: start at most {least}, or raise "
            "both with --set batch=N and --set holdout=N"
        )
