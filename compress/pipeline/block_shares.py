"""Block shares: the training of a whole block by several ranks, each on its windows of every batch.

The first rank keeps the variables. For a step it sends the weights that they make, some megabytes, and the hidden states of the
windows that are another's; gradients by the weights come back, and are added in the order of the ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from compress.calibrate.capture import call_block_with
from compress.calibrate.elsewhere import moved
from compress.calibrate.forward_shares import turns_of
from compress.calibrate.gradient_shares import shares_of
from compress.calibrate.stream import BlockStream
from compress.calibrate.whole_model import WholeModelStream
from compress.models.views import WeightView
from compress.pipeline.block_forward import BlockRun, replaced
from compress.planning.plan import Plan
from compress.solvers.base import BlockProblem
from compress.system.orders import Place, answer
from compress.system.ranks import Ranks

_HELD = "training"
"""Under which name a rank keeps the block that it was sent."""


@dataclass(frozen=True)
class SentBlock:
    """A block that is trained.

    Attributes:
        module: the block.
        prefix: its name, with a dot behind it.
        views: the weights that are trained, by name.
        metric: what an error of its output costs, as in :class:`~compress.solvers.base.BlockProblem`.
    """

    module: nn.Module
    prefix: str
    views: Mapping[str, WeightView]
    metric: Tensor | None

    def opened(self, device: torch.device) -> SentBlock:
        """It on a device."""
        return SentBlock(self.module.to(device).eval(), self.prefix, self.views, moved(self.metric, device))

    def loss(self, parts: Sequence[Part], thetas: Mapping[str, Tensor], device: torch.device) -> Tensor:
        """What the errors of all tokens cost with weights ``thetas``, differentiable in them."""
        found = [self._costs(part, thetas, device)[0].sum() for part in parts]
        return torch.stack(found).sum()

    @torch.no_grad()
    def sums(
        self, parts: Sequence[Part], thetas: Mapping[str, Tensor], device: torch.device
    ) -> tuple[float, float]:
        """What the errors of all tokens cost with weights ``thetas``, and what outputs of zero would."""
        error = whole = 0.0
        for part in parts:
            costs, target, cost_of = self._costs(part, thetas, device)
            error += float(costs.sum(dtype=torch.float64))
            whole += float(cost_of(target, torch.zeros_like(target)).sum(dtype=torch.float64))
        return error, whole

    def _costs(
        self, part: Part, thetas: Mapping[str, Tensor], device: torch.device
    ) -> tuple[Tensor, Tensor, Callable[[Tensor, Tensor], Tensor]]:
        """The costs by token ``[windows, length]``, the dense outputs, and how costs are counted."""
        parameters = replaced(self.module, self.prefix, self.views, thetas)
        output = call_block_with(self.module, parameters, part.hidden.to(device), moved(part.kwargs, device))
        target = part.target.to(device)
        weights = None if part.weights is None else [part.weights.to(device)]
        cost_of = partial(BlockProblem({}, 1, lambda *_: (output, target), self.metric, weights).costs, 0)
        return cost_of(output, target), target, cost_of


@dataclass(frozen=True)
class Part:
    """Some windows: hidden states before the block and the dense model's behind it, ``[windows, length, hidden]``, the block's
    further arguments, and how much each token counts."""

    hidden: Tensor
    target: Tensor
    kwargs: Mapping[str, Any]
    weights: Tensor | None


@dataclass(frozen=True)
class TrainShare:
    """The order to take gradients on some parts of a batch of ``tokens``; ``block`` comes with a rank's first order."""

    block: SentBlock | None
    thetas: Mapping[str, Tensor]
    parts: Sequence[Part]
    tokens: int

    def carry_out(self, place: Place) -> dict[str, Tensor | None]:
        """The gradients by the weights, of the mean cost over the whole batch; None of a weight that had no part in it."""
        block = _opened(self.block, place)
        leaves = {name: theta.to(place.device).requires_grad_() for name, theta in self.thetas.items()}
        with torch.enable_grad():
            loss = block.loss(self.parts, leaves, place.device) / self.tokens
            found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        return dict(zip(leaves, found, strict=True))


@dataclass(frozen=True)
class JudgeShare:
    """The order to measure errors on some parts; ``block`` comes with a rank's first order, ``thetas`` with a trial's first."""

    block: SentBlock | None
    thetas: Mapping[str, Tensor] | None
    parts: Sequence[Part]

    def carry_out(self, place: Place) -> tuple[float, float]:
        """What the errors cost, and what outputs of zero would."""
        block = _opened(self.block, place)
        if self.thetas is not None:
            place.held[_HELD] = (block, moved(dict(self.thetas), place.device))
        return block.sums(self.parts, place.held[_HELD][1], place.device)


@dataclass(frozen=True)
class EndTraining:
    """The order to forget the block."""

    def carry_out(self, place: Place) -> None:
        """Forget it."""
        place.held.pop(_HELD, None)


def _opened(block: SentBlock | None, place: Place) -> SentBlock:
    """The block that was sent now or before."""
    if block is not None:
        place.held.pop(_HELD, None)
        place.held[_HELD] = (block.opened(place.device), None)
    found: SentBlock = place.held[_HELD][0]
    return found


@dataclass
class DealtTraining:
    """The loss of a block's output, taken by all ranks (:class:`compress.solvers.base.DealtLoss`).

    Attributes:
        ranks: this process, the first, among the others.
        run: the block, and how many of the stream's batches make one of training.
        metric: as in :class:`~compress.solvers.base.BlockProblem`.
        weights: by batch of the stream, how much each token counts.
    """

    ranks: Ranks
    run: BlockRun
    metric: Tensor | None
    weights: Sequence[Tensor] | None
    _sent: set[int] = field(default_factory=set)

    def backward(self, batch: int, thetas: Mapping[str, Tensor]) -> None:
        """Add the gradients of the batch's mean cost to the variables that ``thetas`` are computed from."""
        group = self.run.parts_of(batch)
        own, *others = ([group[n] for n in share] for share in shares_of(len(group), self.ranks.size))
        tokens = sum(self.run.stream.sizes[part] for part in group) * self.run.stream.windows[1]
        values = {name: theta.detach() for name, theta in thetas.items()}
        for rank, numbers in enumerate(others, start=1):
            parts = [self._part(number) for number in numbers]
            self.ranks.send(rank, TrainShare(self._block_for(rank), values, parts, tokens))
        leaves = {name: value.requires_grad_() for name, value in values.items()}
        with torch.enable_grad():
            parts = [self._part(number) for number in own]
            loss = self._block().loss(parts, leaves, self.run.stream.device) / tokens
            found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        total = dict(zip(leaves, found, strict=True))
        for rank in range(1, len(others) + 1):
            for name, gradient in answer(self.ranks, rank).items():
                before = total[name]
                here = moved(gradient, thetas[name].device)
                total[name] = here if before is None else before if here is None else before + here
        there = {name: gradient for name, gradient in total.items() if gradient is not None}
        torch.autograd.backward([thetas[name] for name in there], list(there.values()))

    @torch.no_grad()
    def errors(self, batches: Sequence[int], thetas: Mapping[str, Tensor]) -> tuple[float, float]:
        """What the errors of some batches cost, and what outputs of zero would."""
        stream, numbers = self.run.stream, [part for batch in batches for part in self.run.parts_of(batch)]
        values, told = {name: theta.detach() for name, theta in thetas.items()}, set[int]()
        error = whole = 0.0
        hidden, target, _ = stream.replayed(self.run.index, numbers[0])
        for turn in turns_of(len(numbers), self.ranks.size, hidden.nbytes + target.nbytes):
            own, *others = turn
            for rank, share in enumerate(others, start=1):
                parts = [self._part(numbers[n]) for n in share]
                given = None if rank in told else values
                self.ranks.send(rank, JudgeShare(self._block_for(rank), given, parts))
                told.add(rank)
            parts = [self._part(numbers[n]) for n in own]
            sums = [self._block().sums(parts, values, stream.device)]
            sums += [answer(self.ranks, rank) for rank in range(1, len(others) + 1)]
            error, whole = error + sum(pair[0] for pair in sums), whole + sum(pair[1] for pair in sums)
        return error, whole

    def close(self) -> None:
        """Let the other ranks forget the block."""
        for rank in self._sent:
            self.ranks.send(rank, EndTraining())
        for rank in self._sent:
            answer(self.ranks, rank)
        self._sent.clear()

    def _block(self) -> SentBlock:
        skeleton, index = self.run.skeleton, self.run.index
        return SentBlock(
            skeleton.block_module(index), skeleton.blocks[index] + ".", self.run.views, self.metric
        )

    def _block_for(self, rank: int) -> SentBlock | None:
        if rank in self._sent:
            return None
        self._sent.add(rank)
        return self._block()

    def _part(self, number: int) -> Part:
        weights = None if self.weights is None else self.weights[number]
        return Part(*self.run.stream.replayed(self.run.index, number), weights)


def can_train_together(stream: BlockStream, index: int) -> bool:
    """Whether other ranks can take a part in the training of a block."""
    whole = isinstance(stream, WholeModelStream)
    return not whole and stream.batches > 1 and stream.goes_elsewhere(index)


def training_batches(plan: Plan, windows: tuple[int, int], ranks: Ranks | None) -> tuple[int | None, int]:
    """The windows in a batch of the stream, None for its own choice; and how many such batches make one of training.

    Args:
        plan: whose block solvers say how many tokens they want in a batch.
        windows: number of windows, and tokens in each.
        ranks: who share a batch of training, where there are several.
    """
    tokens = [solver.tokens for weight in plan.weights for solver in weight.methods.block_solvers]
    wanted = [max(1, min(tokens) // windows[1])] if tokens else []
    if plan.economy.windows is not None:
        wanted.append(plan.economy.windows)
    whole = min(wanted, default=None)
    if not tokens or ranks is None or whole is None or whole >= windows[0]:
        return whole, 1
    part = max(1, whole // ranks.size)
    return part, whole // part
