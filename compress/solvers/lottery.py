"""Lottery Jackpots: search a mask of frozen weights by gradient descent on scores (arXiv:2104.08700, section 3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from compress.structures.base import Selects

from .base import BlockProblem, Problem, Solution, output_error, split_batches

_KEPT, _DROPPED = 1.0, 0.99
"""First scores of kept and dropped elements: the kept ones are only just ahead."""


@dataclass(frozen=True)
class Lottery:
    """Lottery Jackpots: all masks of a block at once, on the error of the block's output; kept weights stay the dense ones.

    The gradient goes straight through a mask to its scores, which follow it with momentum. Each step swaps the elements whose
    scores differ most, a falling share of all that the scores would swap (section 3.3, "short restriction"), so that the
    pattern holds and the number of kept elements stays. The search starts from the earlier solver's mask and returns the mask
    of least error on held-out batches.

    Attributes:
        steps: number of training batches.
        rate: step size of the scores.
        momentum: of the scores.
        share: share of the swaps that the first step makes; it falls linearly to none.
        tokens: in one step, about.
        judged: share of the batches that are held out.
        checks: how often the error on them is measured.
    """

    steps: int = 100
    rate: float = 0.03
    momentum: float = 0.9
    share: float = 0.1
    tokens: int = 2048
    judged: float = 0.125
    checks: int = 5

    scope: ClassVar[str] = "block"
    needs: ClassVar[frozenset[str]] = frozenset()
    requires: ClassVar[type] = Selects
    score: ClassVar[str] = "activation"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.tokens < 1 or self.checks < 1:
            raise ValueError("steps, tokens and checks are at least 1")
        if not 0 < self.judged < 1 or not 0 < self.share <= 1:
            raise ValueError("judged lies between 0 and 1, share above 0 and up to 1")

    def solve(self, block: BlockProblem[Selects], starts: Mapping[str, Solution]) -> dict[str, Solution]:
        """Train scores that choose the masks of the block's weights, whose values stay; ``starts`` where that is no better."""
        searched = {name: _Scores.begin(problem, starts[name]) for name, problem in block.problems.items()}
        train, judge = split_batches(block.batches, self.judged)
        first = least = output_error(block, {name: start.theta for name, start in starts.items()}, judge)
        best: dict[str, Solution] = dict(starts)
        checked = {round(self.steps * (i + 1) / self.checks) for i in range(self.checks)}
        for step in range(self.steps):
            with torch.enable_grad():
                thetas = {name: scores.theta() for name, scores in searched.items()}
                batch = train[step % len(train)]
                block.backward(batch, thetas)
            for name, scores in searched.items():
                gradient = thetas[name].grad
                if gradient is not None:
                    scores.follow(gradient, self.rate, self.momentum, self.share * (1 - step / self.steps))
            if step + 1 in checked:
                trial = {name: scores.solution() for name, scores in searched.items()}
                loss = output_error(block, {name: s.theta for name, s in trial.items()}, judge)
                if loss < least:
                    least, best = loss, trial
        figures = {"block_error_start": first, "block_error": least}
        return {
            name: Solution(s.theta, s.parameters, {**starts[name].info, **figures})
            for name, s in best.items()
        }


@dataclass(eq=False)
class _Scores:
    """The scores of one weight, fp32 ``[out, in]``, its mask, and the velocity of the scores."""

    problem: Problem[Selects]
    mask: Tensor
    scores: Tensor = field(repr=False)
    velocity: Tensor = field(repr=False)

    @classmethod
    def begin(cls, problem: Problem[Selects], start: Solution) -> _Scores:
        mask = problem.structure.mask_of(start.parameters)
        scores = torch.where(mask, _KEPT, _DROPPED)
        return cls(problem, mask, scores, torch.zeros_like(scores))

    def theta(self) -> Tensor:
        """The masked weight ``[out, in]``, a leaf that takes a gradient."""
        return (self.problem.weight * self.mask).requires_grad_()

    @torch.no_grad()
    def follow(self, gradient: Tensor, rate: float, momentum: float, share: float) -> None:
        """Move the scores along the gradient of the weight ``[out, in]``, then swap elements of the mask."""
        gradient = gradient.float() * self.problem.weight
        # The step does not depend on the size of the loss.
        self.velocity.mul_(momentum).add_(gradient / gradient.abs().amax().clamp_min(1e-30))
        self.scores.sub_(self.velocity, alpha=rate)
        structure = self.problem.structure
        scores = self.scores - self.scores.amin() + 1e-3
        wanted = structure.pattern.choose(scores)
        entering = wanted & ~self.mask
        count = int(entering.sum() * share)
        if count == 0:
            return
        index = torch.where(entering, scores, 0.0).flatten().topk(count).indices
        swapped_in = torch.zeros_like(scores).flatten().index_fill_(0, index, 1.0).view_as(scores) > 0
        # The elements swapped in come first, then the kept ones by score.
        top = scores.amax() + 1.0
        self.mask = structure.pattern.choose(
            torch.where(swapped_in, top + scores, torch.where(self.mask, scores, torch.zeros_like(scores)))
        )

    @torch.no_grad()
    def solution(self) -> Solution:
        """The structure's nearest point under the mask."""
        structure = self.problem.structure
        parameters = structure.under(self.problem.weight, self.mask, self.problem.metric)
        return Solution(structure.project(self.problem.weight, parameters), parameters)
