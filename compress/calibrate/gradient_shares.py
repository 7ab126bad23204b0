"""Gradient shares: the batches of a pass with gradients dealt out to the ranks, which send back what they have added up.

The first rank sends a block once, with the hidden states of the batches that are another's, and then pass by pass what is
wanted of it. Sums are added in the order of the ranks: they are those of one process but for the order of additions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from compress.calibrate.block_backward import BlockBackward
from compress.calibrate.elsewhere import is_known_elsewhere, moved
from compress.calibrate.gradient_sums import Batches, Pass
from compress.calibrate.hidden_states import Activations
from compress.models.views import WeightView
from compress.system.orders import Place, answer
from compress.system.ranks import Ranks

_HELD = "block"
"""Under which name a rank keeps the block that it was sent."""


class Walked(Batches, Protocol):
    """Gradients of a block."""

    @property
    def walked(self) -> BlockBackward | None:
        """The block and its hidden states; None where the model is run as a whole."""
        ...


class Gather(Protocol):
    """How the sums of a pass over all batches of a block are found."""

    def __call__(self, block: Walked, wanted: Pass) -> Mapping[str, Any]:
        """View name → sums."""
        ...


def alone(block: Walked, wanted: Pass) -> Mapping[str, Any]:
    """Sums of one process over all batches."""
    return wanted.sums(block)


@dataclass(frozen=True)
class Share:
    """Some batches of a block."""

    block: BlockBackward
    numbers: Sequence[int]

    def by_weight(self, views: Sequence[WeightView]) -> Iterator[dict[str, Tensor]]:
        """As :meth:`compress.calibrate.gradients.BlockGradients.by_weight`."""
        return self.block.weight_gradients(views, self.numbers)

    def by_output(self, views: Sequence[WeightView]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
        """As :meth:`compress.calibrate.gradients.BlockGradients.by_output`."""
        return self.block.module_gradients(views, self.numbers)


@dataclass(frozen=True)
class SentBlock:
    """A block with some of its batches, on the way to another rank.

    Attributes:
        module: the block.
        prefix: its name, with a dot behind it.
        inputs, output_gradients: of these batches, ``[samples, length, hidden]``.
        kwargs: its further arguments, by batch.
        batches: the samples of each batch, from 0.
    """

    module: nn.Module
    prefix: str
    inputs: Tensor
    output_gradients: Tensor
    kwargs: Sequence[Mapping[str, Any]]
    batches: Sequence[slice]

    @classmethod
    def of(cls, block: BlockBackward, numbers: range) -> SentBlock:
        """What another rank needs for the batches ``numbers``."""
        rows = _rows(block, numbers)
        return cls(
            block.module,
            block.prefix,
            block.inputs.data[rows],
            block.output_gradients.data[rows],
            [block.kwargs[number] for number in numbers],
            [slice(each.start - rows.start, each.stop - rows.start) for each in _of(block.batches, numbers)],
        )

    def opened(self, device: torch.device) -> BlockBackward:
        """The block where its backwards are taken."""
        dtype = self.inputs.dtype
        inputs, outputs, empty = (
            Activations(self.inputs.shape, dtype, torch.device("cpu")) for _ in range(3)
        )
        inputs.write(slice(None), self.inputs)
        outputs.write(slice(None), self.output_gradients)
        kwargs = [moved(each, device) for each in self.kwargs]
        module = self.module.to(device)
        return BlockBackward(module, self.prefix, inputs, outputs, empty, kwargs, self.batches, device, dtype)


@dataclass(frozen=True)
class Found:
    """What a pass over a share has found; the gradients by the block's inputs come with the first pass."""

    sums: Mapping[str, Any]
    input_gradients: Tensor | None


@dataclass(frozen=True)
class GatherShare:
    """The order to go through a share of a block's batches; ``block`` is sent with the first one for it."""

    wanted: Pass
    block: SentBlock | None

    def carry_out(self, place: Place) -> Found:
        """The sums over the share.

        Raises:
            UserError: a gradient is not finite.
        """
        if self.block is not None:
            place.held.pop(_HELD, None)
            place.held[_HELD] = self.block.opened(place.device)
        block: BlockBackward = place.held[_HELD]
        sums = self.wanted.sums(Share(block, range(len(block.batches))))
        return Found(sums, None if self.block is None else block.input_gradients.data)


@dataclass
class Shared:
    """All ranks go through the batches of a block, each through its share.

    Attributes:
        ranks: this process, the first, among the others.
    """

    ranks: Ranks
    _sent: BlockBackward | None = None

    def __call__(self, block: Walked, wanted: Pass) -> Mapping[str, Any]:
        """The sums over all batches.

        Raises:
            RanksApart: a rank has ended.
            UserError: a gradient is not finite.
        """
        walked = block.walked
        if walked is None or not is_known_elsewhere(walked.module):
            return wanted.sums(block)
        own, *others = shares_of(len(walked.batches), self.ranks.size)
        first = walked is not self._sent
        for rank, share in enumerate(others, start=1):
            self.ranks.send(rank, GatherShare(wanted, SentBlock.of(walked, share) if first else None))
        self._sent = walked
        total = wanted.sums(Share(walked, own))
        for rank, share in enumerate(others, start=1):
            found: Found = answer(self.ranks, rank)
            if found.input_gradients is not None:
                walked.input_gradients.write(_rows(walked, share), found.input_gradients)
                walked.carried.update(share)
            for name, sums in found.sums.items():
                if name in total:
                    total[name].add(sums)
                else:
                    total[name] = sums
        return total


def shares_of(batches: int, ranks: int) -> list[range]:
    """Numbers of the batches of each rank, one after the other; of fewer batches than ranks the last ranks have none."""
    size = min(batches, ranks)
    return [range(*ends) for ends in pairwise(batches * rank // size for rank in range(size + 1))]


def _rows(block: BlockBackward, numbers: range) -> slice:
    parts = _of(block.batches, numbers)
    return slice(parts[0].start, parts[-1].stop)


def _of(batches: Sequence[slice], numbers: range) -> Sequence[slice]:
    return batches[numbers.start : numbers.stop]
