"""Solvers: how the allowed weight nearest to a dense one is searched for in a metric."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from compress.linalg.cholesky import InverseRoot, shared_inverse_root
from compress.linalg.factor_cache import FactorCache
from compress.score.metric import Kron, Metric, relative_loss
from compress.score.statistics import Statistics
from compress.structures.base import CompressedWeight, Structure

StructureT = TypeVar("StructureT", bound=Structure, covariant=True)


@dataclass(frozen=True)
class Problem(Generic[StructureT]):
    """One weight to compress, in a structure that has the capabilities ``StructureT``.

    Attributes:
        weight: fp32 ``[out, in]``; solvers never write to it.
        structure: the set of allowed weights.
        metric: what an error costs.
        statistics: the moments of the inputs that the solver asked for.
        seed: for solvers that draw; the same seed gives the same result.
        factors: factorisations of the metric's right side, shared by the weights that read the same inputs.
        true_input: the true-input target, fp32 ``[out, in]`` (:func:`compress.linalg.true_input.true_input_target`); ``None``
            where the step does not ask for it or no cross moment was gathered.
    """

    weight: Tensor
    structure: StructureT
    metric: Metric
    statistics: Statistics = field(default_factory=Statistics)
    seed: int = 0
    factors: FactorCache = field(default_factory=FactorCache)
    true_input: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """``(out, in)``."""
        return (self.weight.shape[0], self.weight.shape[1])

    @property
    def target(self) -> Tensor:
        """What Θ approximates, fp32 ``[out, in]``: the true-input target if there is one, else the weight."""
        return self.weight if self.true_input is None else self.true_input

    def relative_error(self, theta: Tensor) -> float:
        """``loss(target − Θ) / loss(target)`` in the metric."""
        return relative_loss(self.metric, self.target - theta, self.target)

    def input_root(self, damping: float, *, descending: bool) -> InverseRoot:
        """Inverse Cholesky factor of the metric's right side, see :func:`~compress.linalg.cholesky.inverse_root`.

        Only for a two-sided metric.
        """
        assert isinstance(self.metric, Kron)
        return shared_inverse_root(
            self.metric.right, self.weight, damping, descending=descending, factors=self.factors
        )


@dataclass(frozen=True)
class Solution:
    """An allowed weight ``theta`` fp32 ``[out, in]``, the structure's parameters that it lies under, and figures to report."""

    theta: Tensor
    parameters: Any
    info: Mapping[str, float | str] = field(default_factory=dict)

    def encode(self, structure: Structure) -> CompressedWeight:
        """Pack it."""
        return structure.encode(self.theta, self.parameters)


def nearest_point(problem: Problem[Structure], target: Tensor) -> Solution:
    """The structure fitted to ``target`` ``[out, in]`` and its nearest point: where a solver without a predecessor starts."""
    parameters = problem.structure.fit(target, problem.metric)
    return Solution(problem.structure.project(target, parameters), parameters)


class WeightSolver(Protocol):
    """A solver of one weight at a time.

    Attributes:
        requires: the Protocol of the capabilities that it asks of a structure, or a class of structures.
        score: the score that it takes when the recipe names none.

    Optional class attributes: ``requires_residual`` (the Protocol that it asks of the residual's structure in a sum),
    ``two_sided = True`` (it needs a two-sided metric, not one over single elements), ``guarded = False`` (plain rounding does
    not overrule it), ``true_input = False`` (it does not follow the true-input target).
    """

    requires: ClassVar[type]
    score: ClassVar[str]

    @property
    def needs(self) -> frozenset[str]:
        """The statistics that it reads besides its score's."""
        ...

    def solve(self, problem: Problem[Any], start: Solution | None = None) -> Solution:
        """The best allowed weight found; ``start`` is what an earlier solver of the same step left."""
        ...


class DealtLoss(Protocol):
    """The loss of a block's output on batches that several processes share."""

    def backward(self, batch: int, thetas: Mapping[str, Tensor]) -> None:
        """As :meth:`BlockProblem.backward`."""
        ...

    def errors(self, batches: Sequence[int], thetas: Mapping[str, Tensor]) -> tuple[float, float]:
        """As :meth:`BlockProblem.errors`."""
        ...


@dataclass(frozen=True)
class BlockProblem(Generic[StructureT]):
    """All weights of a decoder block that one solver takes together.

    Attributes:
        problems: weight name → its own problem.
        batches: number of batches of calibration inputs.
        run: ``(batch number, {name: Θ [out, in]}) → (output, target)``, both ``[windows, length, hidden]``. The output is the
            block's with these weights, differentiable in them, on inputs from the compressed blocks before it; weights that
            are not named are as earlier solvers left them. The target is the output of the dense model's block on its inputs.
        metric: what an error of the block's output costs, fp32 ``[hidden, hidden]``: ``E[δ δᵀ]`` for gradients δ of the
            model's loss by that output. ``None`` counts every feature the same.
        weights: by batch, how much each token counts, fp32 ``[windows, length]``; ``None`` counts all the same.
        dealt: takes the loss in the place of ``run`` where other processes share the batches.
    """

    problems: Mapping[str, Problem[StructureT]]
    batches: int
    run: Callable[[int, Mapping[str, Tensor]], tuple[Tensor, Tensor]]
    metric: Tensor | None = None
    weights: Sequence[Tensor] | None = None
    dealt: DealtLoss | None = None

    def backward(self, batch: int, thetas: Mapping[str, Tensor]) -> None:
        """Add the gradients of a batch's mean cost to the variables that ``thetas`` ``[out, in]`` are computed from."""
        if self.dealt is not None:
            self.dealt.backward(batch, thetas)
            return
        # A sum over features keeps gradients far above the smallest numbers of half precision.
        self.costs(batch, *self.run(batch, thetas)).mean().backward()

    def errors(self, batches: Sequence[int], thetas: Mapping[str, Tensor]) -> tuple[float, float]:
        """What the errors of some batches cost, and what outputs of zero would cost."""
        if self.dealt is not None:
            return self.dealt.errors(batches, thetas)
        error = whole = 0.0
        for batch in batches:
            output, target = self.run(batch, thetas)
            error += float(self.costs(batch, output, target).sum(dtype=torch.float64))
            whole += float(self.costs(batch, target, torch.zeros_like(target)).sum(dtype=torch.float64))
        return error, whole

    def costs(self, batch: int, output: Tensor, target: Tensor) -> Tensor:
        """What the error of each token's output costs, fp32 ``[windows, length]``, differentiable in ``output``."""
        error = output.float() - target.float()
        costs = ((error if self.metric is None else error @ self.metric) * error).sum(-1)
        return costs if self.weights is None else costs * self.weights[batch]


class BlockSolver(Protocol):
    """A solver of a block's weights together; its class says ``scope = "block"``.

    ``requires``, ``score`` and ``needs`` are as in :class:`WeightSolver`.
    """

    scope: ClassVar[str]
    requires: ClassVar[type]
    score: ClassVar[str]

    @property
    def needs(self) -> frozenset[str]:
        """The statistics that it reads besides its score's."""
        ...

    @property
    def tokens(self) -> int:
        """Number of tokens that it wants in one batch."""
        ...

    def solve(self, block: BlockProblem[Any], starts: Mapping[str, Solution]) -> dict[str, Solution]:
        """Allowed weights by name, beginning at what the weight solvers of the same step left."""
        ...


def split_batches(batches: int, judged: float) -> tuple[list[int], list[int]]:
    """Numbers of the training batches and of the held-out ones; a single batch is both."""
    if batches == 1:
        return [0], [0]
    kept = min(batches - 1, max(1, round(batches * judged)))
    return list(range(batches - kept)), list(range(batches - kept, batches))


@torch.no_grad()
def output_error(block: BlockProblem[Any], thetas: Mapping[str, Tensor], batches: Sequence[int]) -> float:
    """Error of a block's output with weights ``thetas`` ``[out, in]``, relative to the dense output's size."""
    error, whole = block.errors(batches, thetas)
    return error / whole if whole > 0 else error
