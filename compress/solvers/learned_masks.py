"""Learned masks: choose the n of every m weights of a block by a Gumbel-softmax over the patterns (MaskLLM, arXiv:2409.17481).

The paper learns masks of the whole model on its loss with the weights frozen. Here the masks of one block are learned on the
error of its output, from an earlier solver's masks, and the values move with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from compress.structures.base import HasPatterns

from .base import BlockProblem, Problem, Solution
from .block_training import Lion, Schedule, train_block

_LEAD = 0.05
"""How far the earlier solver's pattern is ahead of all others at the start, relative to ``sharpness``."""


@dataclass(frozen=True)
class LearnedMasks:
    """Learned masks: ``Θ = V · Σ_k p_k pattern_k``, ``p = softmax((logits + noise · Gumbel) / τ)`` for every m columns (eq. 4).

    τ falls from the first to the last ``temperature`` geometrically; in the last steps the pattern of the largest logit is
    taken, and the gradient goes straight through. Logits and values V follow Lion's signed steps, which fall linearly to 0.
    The first logits are the shares of the weights' importance that the patterns keep, the earlier solver's pattern ahead; V
    starts at that solver's values and, where it has none, at the weight. The masks of least error on held-out batches are
    returned, the start included.

    Attributes:
        steps: training batches.
        temperature: τ at the first and at the last step.
        noise: factor of the Gumbel noise; 0 for a softmax without it.
        hard: share of the steps, the last ones, in which masks are hard.
        sharpness: the first logit of a pattern that keeps all importance.
        rate: first step size of the logits.
        value_rate: first step size of V, relative to the root mean square of the weight; 0 leaves the values alone.
        tokens: in one step, about; rounded to whole batches of the calibration windows.
        judged: share of the batches that are held out.
        checks: how often the error on them is measured.
    """

    steps: int = 200
    temperature: tuple[float, float] = (1.0, 0.05)
    noise: float = 0.3
    hard: float = 0.1
    sharpness: float = 10.0
    rate: float = 0.15
    value_rate: float = 0.01
    tokens: int = 2048
    judged: float = 0.125
    checks: int = 4

    scope: ClassVar[str] = "block"
    needs: ClassVar[frozenset[str]] = frozenset()
    requires: ClassVar[type] = HasPatterns
    score: ClassVar[str] = "activation"

    def __post_init__(self) -> None:
        Schedule(self.steps, self.judged, self.checks)
        if not (0 < self.temperature[1] <= self.temperature[0]):
            raise ValueError("temperature falls from the first number to the second, both above 0")
        if not 0 <= self.hard <= 1 or self.noise < 0 or self.value_rate < 0 or self.tokens < 1:
            raise ValueError("hard lies in [0, 1]; noise and value_rate are not negative, tokens at least 1")

    def solve(self, block: BlockProblem[HasPatterns], starts: Mapping[str, Solution]) -> dict[str, Solution]:
        """Train a choice among the patterns of every group of the block's weights against the dense block's outputs."""
        trained = {
            name: _Trained.begin(self, problem, starts[name]) for name, problem in block.problems.items()
        }
        return train_block(block, starts, trained, Schedule(self.steps, self.judged, self.checks))


@dataclass(eq=False)
class _Trained:
    """The variables of one weight: logits fp32 ``[patterns, out, in / m]`` and values fp32 ``[out, in]``.

    ``patterns`` fp32 ``[patterns, m]`` are the allowed ones.
    """

    settings: LearnedMasks
    problem: Problem[HasPatterns]
    patterns: Tensor
    logits: Tensor
    values: Tensor
    step: float
    generator: torch.Generator
    lions: tuple[Lion, Lion] = field(repr=False)
    soft: Tensor | None = field(default=None, repr=False)
    shares: Tensor | None = field(default=None, repr=False)

    @classmethod
    def begin(cls, settings: LearnedMasks, problem: Problem[HasPatterns], start: Solution) -> _Trained:
        structure = problem.structure
        mask = structure.mask_of(start.parameters)
        patterns = structure.patterns.to(mask.device).float()
        values = torch.where(mask, start.theta, problem.target)
        grouped = _grouped(values.square() * problem.metric.elements(values), patterns)
        whole = grouped.sum(-1).clamp_min(torch.finfo(grouped.dtype).tiny)
        logits = torch.einsum("oig,kg->koi", grouped, patterns) / whole * settings.sharpness
        agreed = torch.einsum("oig,kg->koi", _grouped(mask.float(), patterns), patterns)
        first = agreed.argmax(0, keepdim=True)
        ahead = logits.amax(0, keepdim=True) + _LEAD * settings.sharpness
        logits.scatter_(0, first, ahead)
        size = float(problem.weight.square().mean().sqrt())
        generator = torch.Generator(device=logits.device).manual_seed(problem.seed)
        lions = Lion(torch.zeros_like(logits)), Lion(torch.zeros_like(values))
        return cls(settings, problem, patterns, logits, values.requires_grad_(), size, generator, lions)

    def theta(self, done: float) -> Tensor:
        """Θ ``[out, in]``, differentiable in the soft mask and in the values."""
        with torch.no_grad():
            self.shares = self._shares(done)
            chosen = self.shares
            if done >= 1 - self.settings.hard:
                chosen = torch.zeros_like(chosen).scatter_(0, self.logits.argmax(0, keepdim=True), 1.0)
            soft = torch.einsum("koi,kg->oig", chosen, self.patterns).reshape(self.values.shape)
        self.soft = soft.requires_grad_()
        return self.values * self.soft

    @torch.no_grad()
    def update(self, done: float) -> bool:
        """One step of Lion for both variables."""
        assert self.soft is not None
        assert self.shares is not None
        gradient, value_gradient = self.soft.grad, self.values.grad
        if gradient is None or value_gradient is None:
            return True
        if not bool(torch.isfinite(gradient.sum()) & torch.isfinite(value_gradient.sum())):
            return False
        by_pattern = torch.einsum("oig,kg->koi", _grouped(gradient, self.patterns), self.patterns)
        # ∂ Σ_k p_k a_k / ∂ logit_k = p_k (a_k − Σ p a) / τ; Lion takes the sign alone.
        mean = (self.shares * by_pattern).sum(0)
        left = 1 - done
        self.lions[0].step(self.logits, by_pattern.sub_(mean).mul_(self.shares), self.settings.rate * left)
        self.lions[1].step(self.values, value_gradient, self.settings.value_rate * self.step * left)
        self.values.grad = self.soft = self.shares = None
        return True

    @torch.no_grad()
    def solution(self) -> Solution:
        """The values under the patterns of the largest logits, rounded to the structure's dtype."""
        structure = self.problem.structure
        chosen = self.patterns[self.logits.argmax(0)]
        mask = chosen.reshape(self.values.shape) > 0
        parameters = structure.under(self.values, mask, self.problem.metric)
        return Solution(structure.project(self.values.detach(), parameters), parameters)

    def _shares(self, done: float) -> Tensor:
        first, last = self.settings.temperature
        noisy = self.logits
        if self.settings.noise:
            drawn = torch.empty_like(noisy).exponential_(generator=self.generator)
            noisy = noisy - self.settings.noise * drawn.clamp_min_(torch.finfo(drawn.dtype).tiny).log_()
        return (noisy / (first * (last / first) ** done)).softmax(0)


def _grouped(matrix: Tensor, patterns: Tensor) -> Tensor:
    """``[out, in]`` → ``[out, in / m, m]``."""
    return matrix.view(matrix.shape[0], -1, patterns.shape[1])
