"""GSQ: learn codes and scales of a block together by a Gumbel-softmax over the neighbouring codes of each weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from compress.structures.base import HasCodes, HasScales

from .base import BlockProblem, Problem, Solution
from .block_training import Lion, Schedule, train_block

_MARGIN = 0.05
"""Distance from the end of a code's cell, in codes, at which an element starts whose code is not the nearest one."""
_SCALE_SPAN = 0.5
"""Largest change of a scale, relative to itself."""


@runtime_checkable
class _Grid(HasCodes, HasScales, Protocol):
    """Codes under scales."""


@dataclass(frozen=True)
class GSQ:
    """GSQ: each element chooses among ``candidates`` neighbouring codes by logits, in a softmax that hardens.

    ``Θ = values(Σ_k p_k code_k)`` with ``p = softmax((logits + noise · Gumbel) / τ)`` under scales ``s·f``. τ falls from the
    first to the last ``temperature`` geometrically; in the last steps the code of the largest logit is taken, and the
    gradient goes straight through. Logits and f follow Lion's signed steps, which fall linearly to 0. The first logits are
    those of the earlier solver's codes: the further a code is from the element's position on the grid, the lower its logit.
    Long trainings begin at τ = 2 with noise 1; the defaults are for some hundred steps, in which so much noise does not settle.
    The loss is the error of the block's output, on inputs from the compressed blocks before it. Zero points stay.

    Attributes:
        steps: training batches.
        candidates: codes that an element chooses among, 2 to 4.
        temperature: τ at the first and at the last step.
        noise: factor of the Gumbel noise; 0 for a softmax without it.
        hard: share of the steps, the last ones, in which codes are hard.
        rate: first step size of the logits.
        scale_rate: first step size of f.
        sharpness: how fast the first logits fall with the squared distance from the position, in codes.
        rows: share of each weight's rows whose codes train at a time; memory for logits is that of these rows.
        tokens: in one step, about; rounded to whole batches of the calibration windows.
        judged: share of the batches that are held out; the iterate of least error there is kept, the start included.
        checks: how often that error is measured.
    """

    steps: int = 200
    candidates: int = 3
    temperature: tuple[float, float] = (0.3, 0.05)
    noise: float = 0.1
    hard: float = 0.1
    rate: float = 0.1
    scale_rate: float = 1e-3
    sharpness: float = 4.0
    rows: float = 1.0
    tokens: int = 2048
    judged: float = 0.125
    checks: int = 4

    scope: ClassVar[str] = "block"
    needs: ClassVar[frozenset[str]] = frozenset()
    requires: ClassVar[type] = _Grid
    score: ClassVar[str] = "activation"

    def __post_init__(self) -> None:
        Schedule(self.steps, self.judged, self.checks)
        if self.candidates not in (2, 3, 4):
            raise ValueError("candidates is 2, 3 or 4")
        if not (0 < self.temperature[1] <= self.temperature[0]):
            raise ValueError("temperature falls from the first number to the second, both above 0")
        if not 0 < self.rows <= 1 or not 0 <= self.hard <= 1 or self.noise < 0 or self.tokens < 1:
            raise ValueError("rows lies in (0, 1], hard in [0, 1]; noise is not negative, tokens at least 1")

    def solve(self, block: BlockProblem[_Grid], starts: Mapping[str, Solution]) -> dict[str, Solution]:
        """Train soft choices of the codes of the block's weights, a share of the rows at a time, from ``starts``."""
        turns = max(1, round(1 / self.rows))
        schedule = Schedule(max(1, self.steps // turns), self.judged, self.checks)
        solutions = dict(starts)
        for turn in range(turns):
            trained = {
                name: _Trained.begin(self, problem, solutions[name], turn, turns)
                for name, problem in block.problems.items()
            }
            solutions = train_block(block, solutions, trained, schedule)
        return solutions


@dataclass(eq=False)
class _Trained:
    """The variables of one weight: logits fp32 ``[candidates, rows, in]`` of some rows, and f ``[out or 1, groups]``.

    ``lowest`` ``[rows, in]`` are the lowest of the candidates, ``codes`` ``[out, in]`` those of all rows at the start.
    """

    settings: GSQ
    problem: Problem[_Grid]
    parameters: Any
    codes: Tensor
    rows: slice
    lowest: Tensor
    logits: Tensor
    factor: Tensor
    generator: torch.Generator
    lions: tuple[Lion, Lion] = field(repr=False)
    soft: Tensor | None = field(default=None, repr=False)
    shares: Tensor | None = field(default=None, repr=False)

    @classmethod
    def begin(
        cls, settings: GSQ, problem: Problem[_Grid], start: Solution, turn: int, turns: int
    ) -> _Trained:
        structure, out = problem.structure, problem.shape[0]
        rows = slice(turn * out // turns, (turn + 1) * out // turns)
        codes = structure.codes(start.theta, start.parameters).float()
        reach = 0.5 - _MARGIN
        position = structure.position(problem.target, start.parameters)
        position = torch.minimum(torch.maximum(position, codes - reach), codes + reach)[rows]
        count = min(settings.candidates, structure.top + 1)
        lowest = (position - (count - 1) / 2).round_().clamp_(0, structure.top + 1 - count)
        distance = lowest - position + _numbers(count, position)
        logits = distance.square_().mul_(-settings.sharpness)
        factor = torch.ones_like(structure.scales_of(start.parameters), requires_grad=True)
        generator = torch.Generator(device=logits.device).manual_seed(problem.seed)
        lions = Lion(torch.zeros_like(logits)), Lion(torch.zeros_like(factor))
        return cls(settings, problem, start.parameters, codes, rows, lowest, logits, factor, generator, lions)

    def theta(self, done: float) -> Tensor:
        """Θ ``[out, in]``; the logits' gradient is found from that of the soft codes, without a graph of all candidates."""
        with torch.no_grad():
            self.shares = self._shares(done)
            soft = (self.shares * _numbers(len(self.shares), self.lowest)).sum(0)
            if done >= 1 - self.settings.hard:
                soft = self.logits.argmax(0).to(soft)
            soft += self.lowest
        self.soft = soft.requires_grad_()
        above, below = self.codes[: self.rows.start], self.codes[self.rows.stop :]
        return self.problem.structure.values(
            torch.cat((above, self.soft, below)), self.parameters, self.factor
        )

    @torch.no_grad()
    def update(self, done: float) -> bool:
        """One step of Lion for both variables."""
        assert self.soft is not None
        assert self.shares is not None
        gradient, scale_gradient = self.soft.grad, self.factor.grad
        if gradient is None or scale_gradient is None:
            return True
        if not bool(torch.isfinite(gradient.sum()) & torch.isfinite(scale_gradient.sum())):
            return False
        numbers = _numbers(len(self.shares), self.lowest)
        mean = (self.shares * numbers).sum(0)
        # ∂ Σ_k p_k k / ∂ logit_k = p_k (k − mean) / τ; Lion takes the sign alone.
        moved = self.shares.mul_(numbers - mean).mul_(gradient)
        left = 1 - done
        self.lions[0].step(self.logits, moved, self.settings.rate * left)
        self.lions[1].step(self.factor, scale_gradient, self.settings.scale_rate * left)
        self.factor.clamp_(1 - _SCALE_SPAN, 1 + _SCALE_SPAN)
        self.factor.grad = self.soft = self.shares = None
        return True

    @torch.no_grad()
    def solution(self) -> Solution:
        """The codes of the largest logits, under scales rounded to their dtype on disk."""
        structure = self.problem.structure
        codes = self.codes.clone()
        codes[self.rows] = self.lowest + self.logits.argmax(0)
        theta = structure.values(codes, self.parameters)
        scale = structure.scales_of(self.parameters) * self.factor
        return Solution(*structure.rescale(theta, self.parameters, scale))

    def _shares(self, done: float) -> Tensor:
        first, last = self.settings.temperature
        temperature = first * (last / first) ** done
        noisy = self.logits
        if self.settings.noise:
            drawn = torch.empty_like(noisy).exponential_(generator=self.generator)
            noisy = noisy - self.settings.noise * drawn.clamp_min_(torch.finfo(drawn.dtype).tiny).log_()
        return (noisy / temperature).softmax(0)


def _numbers(count: int, like: Tensor) -> Tensor:
    """0 … count − 1 along the first of three dimensions."""
    return torch.arange(count, dtype=like.dtype, device=like.device).view(-1, 1, 1)
