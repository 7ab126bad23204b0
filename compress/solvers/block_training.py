"""Block training: the loop of the solvers that learn all weights of a block on the error of its output.

Variables follow gradients on training batches. Every so often they are turned into allowed weights, and these are judged on
held-out batches; the best iterate is returned, the start included.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from .base import BlockProblem, Solution, output_error, split_batches


@dataclass(frozen=True)
class Schedule:
    """How long a block is trained and how it is judged.

    Attributes:
        steps: training batches, one step each.
        judged: share of the batches that are held out.
        checks: how often the allowed weights are judged, evenly spread over the last half of the steps.
    """

    steps: int
    judged: float
    checks: int

    def __post_init__(self) -> None:
        if self.steps < 1 or self.checks < 1:
            raise ValueError("steps and checks are at least 1")
        if not 0 < self.judged < 1:
            raise ValueError("judged lies between 0 and 1")

    @property
    def checked(self) -> frozenset[int]:
        """Numbers of the steps after which the weights are judged; the last is among them."""
        return frozenset(max(1, round(self.steps * (1 - i / (2 * self.checks)))) for i in range(self.checks))


class Trainable(Protocol):
    """The variables of one weight."""

    def theta(self, done: float) -> Tensor:
        """Θ ``[out, in]`` at the share ``done`` of the steps, differentiable in the variables."""
        ...

    def update(self, done: float) -> bool:
        """One step along the gradients, which are then dropped; False, and no step, where they are not finite."""
        ...

    def solution(self) -> Solution:
        """The allowed weight that the variables stand for."""
        ...


def train_block(
    block: BlockProblem[Any],
    starts: Mapping[str, Solution],
    trained: Mapping[str, Trainable],
    schedule: Schedule,
) -> dict[str, Solution]:
    """The allowed weights of least output error on the held-out batches, by name.

    A loss that is not finite ends the training: the best weights so far are returned, and ``stopped`` of their figures names
    the step and the weight.

    Args:
        block: the weights' problems, and the block to run.
        starts: where the variables begin.
        trained: weight name → its variables.
        schedule: the number of steps and of checks.
    """
    train, judge = split_batches(block.batches, schedule.judged)
    first = least = output_error(block, {name: start.theta for name, start in starts.items()}, judge)
    best: dict[str, Solution] = dict(starts)
    generator = torch.Generator().manual_seed(block.problems[next(iter(trained))].seed)
    order: list[int] = []
    stopped: dict[str, str] = {}
    for step in range(schedule.steps):
        if not order:
            order = [train[i] for i in torch.randperm(len(train), generator=generator).tolist()]
        done = step / schedule.steps
        _backward(block, trained, order.pop(), done)
        if failed := [name for name, weight in trained.items() if not weight.update(done)]:
            stopped = {"stopped": f"the loss was not finite at step {step + 1} ({failed[0]})"}
            break
        if step + 1 in schedule.checked:
            trial = {name: weight.solution() for name, weight in trained.items()}
            loss = output_error(block, {name: solution.theta for name, solution in trial.items()}, judge)
            if loss < least:
                least, best = loss, trial
    figures: dict[str, float | str] = {"block_error_start": first, "block_error": least, **stopped}
    return {
        name: Solution(s.theta, s.parameters, {**starts[name].info, **figures}) for name, s in best.items()
    }


def _backward(block: BlockProblem[Any], trained: Mapping[str, Trainable], batch: int, done: float) -> None:
    with torch.enable_grad():
        block.backward(batch, {name: weight.theta(done) for name, weight in trained.items()})


@dataclass(eq=False)
class Lion:
    """Lion: steps of one size along the sign of a running mean of gradients (arXiv:2302.06675, algorithm 2).

    Attributes:
        velocity: the running mean, of the variable's shape.
        inner, outer: shares of the past in the step's direction and in the mean.
    """

    velocity: Tensor
    inner: float = 0.9
    outer: float = 0.99

    def step(self, variable: Tensor, gradient: Tensor, rate: float) -> None:
        """Move ``variable`` by ``rate`` against the gradient, in place."""
        direction = torch.lerp(gradient, self.velocity, self.inner).sign_()
        variable.sub_(direction, alpha=rate)
        self.velocity.lerp_(gradient, 1 - self.outer)
