"""What a solver is: it searches a structure for the weight that is nearest in a metric."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from compress.linalg.cholesky import InverseRoot, shared_inverse_root
from compress.linalg.factor_cache import FactorCache
from compress.score.metric import Kron, Metric, relative_loss
from compress.score.statistics import Statistics
from compress.structures.base import CompressedWeight, Structure


@dataclass(frozen=True)
class Problem:
    """One weight to compress.

    Attributes:
        weight: fp32 ``[out, in]``; solvers never write to it.
        structure: the set of allowed weights.
        metric: what an error costs.
        statistics: the moments of the inputs that the solver asked for.
        seed: for solvers that draw; the same seed gives the same result.
        factors: factorisations of the metric's right side, shared by the weights that read the same inputs.
    """

    weight: Tensor
    structure: Structure
    metric: Metric
    statistics: Statistics = field(default_factory=Statistics)
    seed: int = 0
    factors: FactorCache = field(default_factory=FactorCache)

    @property
    def shape(self) -> tuple[int, int]:
        """``(out, in)``."""
        return (self.weight.shape[0], self.weight.shape[1])

    def relative_error(self, theta: Tensor) -> float:
        """``loss(W − Θ) / loss(W)`` in the metric."""
        return relative_loss(self.metric, self.weight - theta, self.weight)

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


class WeightSolver(Protocol):
    """Solves one weight at a time.

    ``needs`` are the statistics it reads besides its score's, ``requires`` the capabilities it asks of a structure, and
    ``score`` the score it takes when the recipe names none.
    """

    @property
    def needs(self) -> frozenset[str]: ...

    requires: ClassVar[frozenset[str]]
    score: ClassVar[str]

    def solve(self, problem: Problem, start: Solution | None = None) -> Solution:
        """The best allowed weight found; ``start`` is what an earlier solver of the same step left."""
        ...


def asymmetric_target(problem: Problem, damping: float) -> Tensor:
    """The weight fp32 ``[out, in]`` that does most on compressed inputs for what the dense weight does on dense ones.

    ``E‖W x_dense − Θ x‖² = tr((W* − Θ) C (W* − Θ)ᵀ) + const`` with ``C = E[x xᵀ]``, ``X = E[x_dense xᵀ]`` and
    ``W* = W X C⁻¹ = W + W (X − C) C⁻¹``, so that every solver of the plain form solves this one too. ``damping`` is added
    to C's diagonal, relative to its mean. The weight itself where the cross moment was not gathered.
    """
    cross, weight = problem.statistics.cross, problem.weight
    if cross is None or problem.statistics.tokens == 0 or not isinstance(problem.metric, Kron):
        return weight
    factor = problem.input_root(damping, descending=True)
    gap = cross - problem.metric.right.full(weight.shape[1], weight.device)
    shift = torch.empty_like(weight)
    shift[:, factor.order] = (weight @ gap)[:, factor.order] @ factor.root.T @ factor.root
    return weight + shift


@dataclass(frozen=True)
class BlockProblem:
    """All weights of a decoder block that one solver takes together.

    Attributes:
        problems: weight name → its own problem.
        batches: how many batches of calibration inputs there are.
        run: ``(batch number, {name: Θ [out, in]}) → (output, target)``, both ``[windows, length, hidden]``: the block's output
            with these weights, differentiable in them, on inputs from the compressed blocks before it; and the output of
            the dense model's block on the dense model's inputs. Weights that are not named are as earlier solvers left them.
    """

    problems: Mapping[str, Problem]
    batches: int
    run: Callable[[int, Mapping[str, Tensor]], tuple[Tensor, Tensor]]


class BlockSolver(Protocol):
    """Solves the weights of a block together; its class says ``scope = "block"``.

    ``needs``, ``requires`` and ``score`` are a weight solver's. ``tokens`` is how many it wants in one batch.
    """

    scope: ClassVar[str]

    @property
    def needs(self) -> frozenset[str]: ...

    requires: ClassVar[frozenset[str]]
    score: ClassVar[str]

    @property
    def tokens(self) -> int: ...

    def solve(self, block: BlockProblem, starts: Mapping[str, Solution]) -> dict[str, Solution]:
        """Allowed weights by name, beginning at what the weight solvers of the same step left."""
        ...


def split_batches(batches: int, judged: float) -> tuple[list[int], list[int]]:
    """Numbers of the batches to train on and to judge by; a lone batch is both."""
    if batches == 1:
        return [0], [0]
    kept = min(batches - 1, max(1, round(batches * judged)))
    return list(range(batches - kept)), list(range(batches - kept, batches))


@torch.no_grad()
def output_error(block: BlockProblem, thetas: Mapping[str, Tensor], batches: Sequence[int]) -> float:
    """Error of a block's output with weights ``thetas`` ``[out, in]``, relative to the dense output's size."""
    error = whole = 0.0
    for batch in batches:
        output, target = block.run(batch, thetas)
        error += float((output.float() - target.float()).square().sum(dtype=torch.float64))
        whole += float(target.float().square().sum(dtype=torch.float64))
    return error / whole if whole > 0 else error
