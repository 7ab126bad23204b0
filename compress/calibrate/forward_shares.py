"""Forward shares: the windows of a block's forward passes dealt out to the ranks, which send back sums or hidden states.

The first rank keeps the activations. For a pass it sends the block, and the hidden states of the batches that are another's,
some at a time. Moments are added in the order of the ranks: they are those of one process but for the order of additions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from compress.calibrate.accumulate import Accumulator
from compress.calibrate.capture import call_block_with
from compress.calibrate.elsewhere import is_known_elsewhere, moved
from compress.calibrate.observe import Observer
from compress.models.views import WeightView
from compress.system.orders import Place, answer
from compress.system.precision import products_of
from compress.system.ranks import Ranks

_HELD = "forward"
"""Under which name a rank keeps the block that it was sent."""
_AT_ONCE = 64 << 20
"""Bytes of hidden states that are sent to a rank at once."""


@dataclass(frozen=True)
class Windows:
    """Some batches on their way through a block.

    Attributes:
        hidden: ``[samples, length, hidden]``.
        dense: the same of the uncompressed model, where it is followed too.
        kwargs: the block's further arguments, by batch.
        batches: the samples of each batch, from 0.
        start: the number of the first sample.
    """

    hidden: Tensor
    dense: Tensor | None
    kwargs: Sequence[Mapping[str, Any]]
    batches: Sequence[slice]
    start: int


@dataclass(frozen=True)
class SentBlock:
    """A block, and parameters in the place of its own where they are given."""

    module: nn.Module
    parameters: Mapping[str, Tensor] | None

    def opened(self, device: torch.device) -> SentBlock:
        """It on a device."""
        return SentBlock(self.module.to(device).eval(), moved(self.parameters, device))

    def __call__(self, hidden: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
        """Its outputs ``[b, length, hidden]``."""
        return call_block_with(self.module, self.parameters, hidden, kwargs)


@dataclass(frozen=True)
class Watched:
    """A block whose inputs are observed: what :class:`compress.calibrate.observe.Observer` is made of.

    ``block`` is called on the activations as they are, ``dense`` on those of the uncompressed model.
    """

    block: SentBlock
    dense: SentBlock
    prefix: str
    views: Sequence[WeightView]
    needs: Mapping[str, frozenset[str]]
    token_weights: Mapping[str, Tensor] | None

    def observer(self, device: torch.device) -> Observer:
        """With nothing seen."""
        return Observer(self.block.module, self.prefix, self.views, self.needs, device, self.token_weights)


@dataclass(frozen=True)
class ObserveShare:
    """The order to observe some batches; ``watched`` comes with a rank's first ones, and stays with it."""

    windows: Windows
    watched: Watched | None

    def carry_out(self, place: Place) -> list[list[str]]:
        """The names of the weights of each sum, which :class:`SendSum` then asks for by number."""
        if self.watched is not None:
            place.held.pop(_HELD, None)
            block, dense = (each.opened(place.device) for each in (self.watched.block, self.watched.dense))
            place.held[_HELD] = (block, dense, self.watched.observer(place.device))
        block, dense, observer = place.held[_HELD]
        windows = self.windows
        with torch.no_grad(), observer.recording():
            for rows, kwargs in zip(windows.batches, windows.kwargs, strict=True):
                given = moved(kwargs, place.device)
                forward = partial(block, windows.hidden[rows].to(place.device), given)
                dense_forward = None
                if windows.dense is not None:
                    dense_forward = partial(dense, windows.dense[rows].to(place.device), given)
                observer.run(
                    forward, dense_forward, slice(windows.start + rows.start, windows.start + rows.stop)
                )
        return [names for names, _ in observer.sums()]


@dataclass(frozen=True)
class SendSum:
    """The order to send one of the sums of the batches that were observed."""

    number: int

    def carry_out(self, place: Place) -> Accumulator:
        """The sums; with the last one the block goes."""
        sums = place.held[_HELD][2].sums()
        if self.number == len(sums) - 1:
            del place.held[_HELD]
        return sums[self.number][1]


@dataclass(frozen=True)
class AdvanceShare:
    """The order to run a block on some batches; ``block`` comes with a rank's first ones, ``precision`` is that of products."""

    windows: Windows
    block: SentBlock | None
    precision: str

    def carry_out(self, place: Place) -> Tensor:
        """Its outputs ``[samples, length, hidden]``."""
        if self.block is not None:
            place.held[_HELD] = self.block.opened(place.device)
        block, windows = place.held[_HELD], self.windows
        with torch.no_grad(), products_of(self.precision):
            outputs = [
                block(windows.hidden[rows].to(place.device), moved(kwargs, place.device))
                for rows, kwargs in zip(windows.batches, windows.kwargs, strict=True)
            ]
        return torch.cat(outputs)


@dataclass(frozen=True)
class Dealt:
    """All ranks go through the batches of a block.

    Attributes:
        ranks: this process, the first, among the others.
        windows: numbers of batches → what is sent of them.
        turns: for every turn the numbers of the batches of each rank.
    """

    ranks: Ranks
    windows: Callable[[range], Windows]
    turns: Sequence[Sequence[range]]

    @classmethod
    def of(
        cls,
        ranks: Ranks,
        batches: Sequence[slice],
        kwargs: Sequence[Mapping[str, Any]],
        read: Callable[[slice], Tensor],
        read_dense: Callable[[slice], Tensor] | None,
        *,
        nbytes: int,
    ) -> Dealt:
        """The batches of one block.

        Args:
            ranks: who takes them.
            batches: the samples of each.
            kwargs: the block's further arguments, by batch.
            read, read_dense: hidden states of some samples, of the model as it is and of the uncompressed one.
            nbytes: of the hidden states of a batch.
        """

        def windows(numbers: range) -> Windows:
            of_these = [batches[number] for number in numbers]
            start, rows = of_these[0].start, slice(of_these[0].start, of_these[-1].stop)
            return Windows(
                read(rows),
                None if read_dense is None else read_dense(rows),
                [kwargs[number] for number in numbers],
                [slice(each.start - start, each.stop - start) for each in of_these],
                start,
            )

        return cls(ranks, windows, turns_of(len(batches), ranks.size, nbytes))

    def observe(self, observer: Observer, watched: Watched, run: Callable[[int], None]) -> None:
        """Observe every batch; ``run`` does it for one of this rank's.

        Raises:
            RanksApart: a rank has ended.
            UserError: what went wrong there.
        """
        seen: dict[int, list[list[str]]] = {}
        for turn in self.turns:
            for rank, numbers in enumerate(turn[1:], start=1):
                self.ranks.send(rank, ObserveShare(self.windows(numbers), None if rank in seen else watched))
            # Not before: the hooks would go with the block.
            with observer.recording():
                for number in turn[0]:
                    run(number)
            for rank in range(1, len(turn)):
                seen[rank] = answer(self.ranks, rank)
        for rank, sums in seen.items():
            for number, names in enumerate(sums):
                self.ranks.send(rank, SendSum(number))
                observer.merge(names, answer(self.ranks, rank))

    def advance(
        self, block: SentBlock, run: Callable[[int], None], take: Callable[[range, Tensor], None]
    ) -> None:
        """Run a block on every batch: ``run`` for one of this rank's, ``take`` with the outputs of another's batches.

        Raises:
            RanksApart: a rank has ended.
            UserError: what went wrong there.
        """
        sent: set[int] = set()
        precision = torch.get_float32_matmul_precision()
        for turn in self.turns:
            for rank, numbers in enumerate(turn[1:], start=1):
                share = AdvanceShare(self.windows(numbers), None if rank in sent else block, precision)
                self.ranks.send(rank, share)
                sent.add(rank)
            for number in turn[0]:
                run(number)
            for rank, numbers in enumerate(turn[1:], start=1):
                take(numbers, answer(self.ranks, rank))


def can_deal(ranks: Ranks | None, module: nn.Module, batches: int) -> bool:
    """Whether other ranks can take batches of a block: not where its code came with the checkpoint."""
    return ranks is not None and batches > 1 and is_known_elsewhere(module)


def turns_of(batches: int, ranks: int, nbytes: int) -> list[list[range]]:
    """For every turn the numbers of the batches of each rank, one after the other; in the last turn some may have none.

    Args:
        batches: how many there are.
        ranks: how many share them.
        nbytes: of the hidden states of a batch, which bound what a rank takes in a turn.
    """
    size = max(1, min(-(-batches // ranks), _AT_ONCE // max(1, nbytes)))
    shares = [range(start, min(start + size, batches)) for start in range(0, batches, size)]
    return [shares[start : start + ranks] for start in range(0, len(shares), ranks)]
