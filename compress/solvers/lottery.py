"""Lottery Jackpots: frozen weights, a mask searched by gradient descent on scores (arXiv:2104.08700, section 3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from compress.structures.base import Selects

from .base import BlockProblem, Problem, Solution, output_error, split_batches

_KEPT, _DROPPED = 1.0, 0.99
"""Where the scores begin: whatever the first mask kept is only just ahead."""


@dataclass(frozen=True)
class Lottery:
    """All masks of a block at once, on the error of the block's output; kept weights are the dense model's own.

    The gradient of a mask goes straight through to its scores, which follow it by momentum. In each step those elements
    change places whose scores say so by most, a falling share of all that would (section 3.3, "short restriction"), so that
    the pattern holds and as many are kept as before. The search begins at the earlier solver's mask; the mask of least
    error on batches that were not trained on is what counts, the first being one of them.

    Attributes:
        steps: batches that are looked at.
        rate, momentum: of the descent on the scores.
        share: of the elements that would change places, how many do in the first step; it falls linearly to none.
        tokens: in one step, about.
        judged: share of the batches that are not trained on.
        checks: how often the error on them is looked at.
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
        searched = {name: _Scores.begin(problem, starts[name]) for name, problem in block.problems.items()}
        train, judge = split_batches(block.batches, self.judged)
        first = least = output_error(block, {name: start.theta for name, start in starts.items()}, judge)
        best: dict[str, Solution] = dict(starts)
        looked_at = {round(self.steps * (i + 1) / self.checks) for i in range(self.checks)}
        for step in range(self.steps):
            with torch.enable_grad():
                thetas = {name: scores.theta() for name, scores in searched.items()}
                output, target = block.run(train[step % len(train)], thetas)
                (output.float() - target.float()).square().sum(-1).mean().backward()
            for name, scores in searched.items():
                gradient = thetas[name].grad
                if gradient is not None:
                    scores.follow(gradient, self.rate, self.momentum, self.share * (1 - step / self.steps))
            if step + 1 in looked_at:
                found = {name: scores.solution() for name, scores in searched.items()}
                loss = output_error(block, {name: each.theta for name, each in found.items()}, judge)
                if loss < least:
                    least, best = loss, found
        figures = {"block_error_start": first, "block_error": least}
        return {
            name: Solution(each.theta, each.parameters, {**starts[name].info, **figures})
            for name, each in best.items()
        }


@dataclass(eq=False)
class _Scores:
    """One weight's scores fp32 ``[out, in]``, the mask that they stand for, and the descent's velocity."""

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
        """The masked weight ``[out, in]``, a leaf whose gradient is wanted."""
        return (self.problem.weight * self.mask).requires_grad_()

    @torch.no_grad()
    def follow(self, gradient: Tensor, rate: float, momentum: float, share: float) -> None:
        """One step of the scores by the gradient of the weight ``[out, in]``, then of the mask."""
        slope = gradient.float() * self.problem.weight
        # The size of a loss says nothing: a step is measured by the largest slope of the weight.
        self.velocity.mul_(momentum).add_(slope / slope.abs().amax().clamp_min(1e-30))
        self.scores.sub_(self.velocity, alpha=rate)
        structure = self.problem.structure
        scores = self.scores - self.scores.amin() + 1e-3
        wanted = structure.pattern.choose(scores)
        entering = wanted & ~self.mask
        count = int(entering.sum() * share)
        if count == 0:
            return
        ahead = torch.where(entering, scores, 0.0).flatten().topk(count).indices
        let_in = torch.zeros_like(scores).flatten().index_fill_(0, ahead, 1.0).view_as(scores) > 0
        # Those let in come first, then what was kept, by score; others stay out.
        top = scores.amax() + 1.0
        self.mask = structure.pattern.choose(
            torch.where(let_in, top + scores, torch.where(self.mask, scores, torch.zeros_like(scores)))
        )

    @torch.no_grad()
    def solution(self) -> Solution:
        structure = self.problem.structure
        parameters = structure.under(self.problem.weight, self.mask, self.problem.metric)
        return Solution(structure.project(self.problem.weight, parameters), parameters)
