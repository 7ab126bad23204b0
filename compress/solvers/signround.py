"""SignRound: train roundings and scales by the sign of the gradient of a block's output error (arXiv:2309.05516)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from compress.structures.base import HasCodes, HasScales

from .base import BlockProblem, Problem, Solution, output_error, split_batches

_MARGIN = 0.05
"""Distance from the end of a code's cell, in codes, at which V starts where that code is not the nearest one."""
_SCALE_SPAN = 0.5
"""Largest change of a scale, relative to itself."""


@runtime_checkable
class _Grid(HasCodes, HasScales, Protocol):
    """Codes under scales."""


@dataclass(frozen=True)
class SignRound:
    """SignRound: all weights of a block at once, ``Θ = values(clip(round(position(W) + V)))`` under scales ``s·f``.

    V in [−½, ½] codes and f around 1 follow the sign of their gradients (section 3, eq. 3–5), straight through the rounding.
    The loss is the mean squared difference between the block's outputs, on inputs from the compressed blocks before it, and
    the dense model's. Where an earlier solver's code is not the nearest one, V starts just inside that code's cell. Zero
    points stay.

    Attributes:
        iterations: number of steps; step sizes fall linearly to 0.
        rate: first step size of V, in codes; 1 / iterations if ``None``.
        scale_rate: first step size of f; as V's if ``None``.
        tokens: in one step, about; rounded to whole batches of the calibration windows.
        judged: share of the batches that are held out; the iterate of least error there is kept, the start included.
        checks: how often that error is measured.
    """

    iterations: int = 200
    rate: float | None = None
    scale_rate: float | None = None
    tokens: int = 2048
    judged: float = 0.125
    checks: int = 5

    scope: ClassVar[str] = "block"
    needs: ClassVar[frozenset[str]] = frozenset()
    requires: ClassVar[type] = _Grid
    score: ClassVar[str] = "activation"

    def __post_init__(self) -> None:
        if self.iterations < 1 or self.tokens < 1 or not 0 < self.judged < 1:
            raise ValueError("iterations and tokens are at least 1, judged lies between 0 and 1")

    def solve(self, block: BlockProblem[_Grid], starts: Mapping[str, Solution]) -> dict[str, Solution]:
        """Train offsets of the rounding and clips of the block's weights by signed gradients, from ``starts``."""
        trained = {name: _Trained.begin(problem, starts[name]) for name, problem in block.problems.items()}
        train, judge = split_batches(block.batches, self.judged)
        first = best_loss = output_error(block, {name: start.theta for name, start in starts.items()}, judge)
        best: dict[str, Solution] = dict(starts)
        generator = torch.Generator().manual_seed(block.problems[next(iter(trained))].seed)
        order: list[int] = []
        rate = 1 / self.iterations if self.rate is None else self.rate
        scale_rate = rate if self.scale_rate is None else self.scale_rate
        checked = {round(self.iterations * (1 - i / (2 * self.checks))) for i in range(self.checks)}
        for step in range(self.iterations):
            if not order:
                order = [train[i] for i in torch.randperm(len(train), generator=generator).tolist()]
            self._step(block, trained, order.pop())
            left = 1 - step / self.iterations
            for weight in trained.values():
                weight.update(rate * left, scale_rate * left)
            if step + 1 in checked:
                trial = {name: weight.solution() for name, weight in trained.items()}
                loss = output_error(block, {name: solution.theta for name, solution in trial.items()}, judge)
                if loss < best_loss:
                    best_loss, best = loss, trial
        figures = {"block_error_start": first, "block_error": best_loss}
        return {
            name: Solution(s.theta, s.parameters, {**starts[name].info, **figures})
            for name, s in best.items()
        }

    def _step(self, block: BlockProblem[_Grid], trained: Mapping[str, _Trained], batch: int) -> None:
        with torch.enable_grad():
            block.backward(batch, {name: weight.theta() for name, weight in trained.items()})


@dataclass(eq=False)
class _Trained:
    """The variables of one weight: V, ``offset`` fp32 ``[out, in]``, and f, ``factor`` ``[out or 1, groups]``."""

    structure: _Grid
    parameters: Any
    anchor: Tensor
    offset: Tensor
    factor: Tensor = field(repr=False)

    @classmethod
    def begin(cls, problem: Problem[_Grid], start: Solution) -> _Trained:
        structure = problem.structure
        codes = structure.codes(start.theta, start.parameters).float()
        position = structure.position(problem.weight, start.parameters)
        reach = 0.5 - _MARGIN
        low = torch.where(codes > 0, codes - reach, torch.minimum(position, codes + reach))
        high = torch.where(codes < structure.top, codes + reach, torch.maximum(position, codes - reach))
        # Far outside of the grid an offset of one half would have no effect.
        low = low.clamp_min(-reach)
        high = high.clamp_max(structure.top + reach)
        anchor = torch.minimum(torch.maximum(position, low), high)
        offset = torch.zeros_like(anchor, requires_grad=True)
        factor = torch.ones_like(structure.scales_of(start.parameters), requires_grad=True)
        return cls(structure, start.parameters, anchor, offset, factor)

    def theta(self) -> Tensor:
        """Θ ``[out, in]``, differentiable in both variables."""
        structure = self.structure
        position = self.anchor + self.offset
        codes = position + (position.detach().round() - position.detach())
        return structure.values(codes.clamp(0, structure.top), self.parameters, self.factor)

    def update(self, rate: float, scale_rate: float) -> None:
        """One signed step of both variables."""
        with torch.no_grad():
            for variable, step, low, high in (
                (self.offset, rate, -0.5, 0.5),
                (self.factor, scale_rate, 1 - _SCALE_SPAN, 1 + _SCALE_SPAN),
            ):
                if variable.grad is not None:
                    variable.sub_(variable.grad.sign_(), alpha=step).clamp_(low, high)
                    variable.grad = None

    @torch.no_grad()
    def solution(self) -> Solution:
        """The rounded weight, under scales rounded to their dtype on disk."""
        structure = self.structure
        codes = (self.anchor + self.offset).round_().clamp_(0, structure.top)
        theta = structure.values(codes, self.parameters)
        scale = structure.scales_of(self.parameters) * self.factor
        return Solution(*structure.rescale(theta, self.parameters, scale))
