"""Weights with correlated inputs, easy and hard, and the structures that solvers are tried on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from compress_kernels.layouts import Dense
from torch import Tensor

from compress.linalg.factor_cache import FactorCache
from compress.linalg.true_input import true_input_target
from compress.pipeline.weight import solve_weight
from compress.planning.methods import methods_of, unmet
from compress.recipe.registry import SOLVERS, find
from compress.recipe.sections import Step
from compress.score.metric import Kron, Metric, Side, relative_loss
from compress.score.statistics import Statistics
from compress.solvers.base import Problem
from compress.structures.base import CompressedWeight, Structure
from compress.structures.grids.affine import AffineGrid
from compress.structures.grids.floats import FloatGrid
from compress.structures.grids.integer import IntegerGrid
from compress.structures.grids.k_quants import GGUFGrid
from compress.structures.grids.nf4 import NF4Grid
from compress.structures.grids.value_table import TableGrid
from compress.structures.low_rank.factors import Factors
from compress.structures.low_rank.sums import FactorsAnd, FactorsAndColumns
from compress.structures.sparse.masked import Masked
from compress.structures.sparse.masked_grid import MaskedGrid
from compress.structures.sparse.patterns import NM, Unstructured


@dataclass(frozen=True)
class Case:
    """A weight ``[out, in]`` and its inputs ``[tokens, in]``, as the compressed and as the dense model have them."""

    weight: Tensor
    inputs: Tensor
    dense: Tensor

    def problem(self, grid: Any, *, seed: int = 0, true_input: bool = False) -> Problem[Any]:
        gram = self.inputs.T @ self.inputs / len(self.inputs)
        cross = self.dense.T @ self.inputs / len(self.inputs)
        diagonal = gram.diagonal().clone()
        statistics = Statistics(tokens=len(self.inputs), gram=gram, diagonal=diagonal, cross=cross)
        metric = Kron(right=Side(gram))
        factors = FactorCache()
        target = true_input_target(self.weight, cross, metric.right, factors) if true_input else None
        return Problem(self.weight, grid, metric, statistics, seed, factors, target)


def make(kind: str = "plain", out: int = 24, columns: int = 64, tokens: int = 256) -> Case:
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    inputs = draw(tokens, columns) @ (torch.eye(columns) + 0.3 * draw(columns, columns) / columns**0.5)
    weight = 0.05 * draw(out, columns)
    if kind.startswith("outliers"):
        inputs[:, ::16] *= float(kind.removeprefix("outliers"))
    elif kind == "dead":
        inputs[:, :8] = 0
    elif kind == "all dead":
        inputs.zero_()
    elif kind == "singular":
        inputs = inputs[:8]
    elif kind == "bf16":
        inputs, weight = inputs.bfloat16().float(), weight.bfloat16().float()
    elif kind == "zero":
        weight.zero_()
    elif kind == "one row":
        weight = weight[:1]
    elif kind == "one column":
        weight, inputs = weight[:, :1], inputs[:, :1]
    return Case(weight, inputs, inputs + 0.1 * draw(*inputs.shape) * inputs.abs().mean())


@dataclass(frozen=True)
class UnevenParameters:
    """Scales fp32 ``[out, groups]``, and which codebook each row uses, int64 ``[out]``."""

    scale: Tensor
    book: Tensor


@dataclass(frozen=True)
class UnevenRounder:
    """Any allowed values at all: for each code a tensor of the elements' shape."""

    levels: tuple[Tensor, ...]

    def arranged(self, move: Callable[[Tensor], Tensor]) -> UnevenRounder:
        return UnevenRounder(tuple(move(level) for level in self.levels))

    def slices(self) -> Callable[[Tensor, int], Tensor]:
        return lambda values, i: nearest(values, torch.stack([level[i] for level in self.levels], -1))


def nearest(values: Tensor, levels: Tensor) -> Tensor:
    """The nearest of ``levels`` ``[…, count]`` by brute force."""
    index = (values.unsqueeze(-1) - levels).abs().argmin(-1, keepdim=True)
    return levels.gather(-1, index).squeeze(-1)


@dataclass(frozen=True)
class UnevenGrid:
    """A toy with all that evenly spaced codes rule out: rows alternate between two lopsided codebooks, scaled by group.

    Nothing in it is shared with the library's grids.
    """

    width: int = 16
    books: tuple[tuple[float, ...], ...] = (
        (-1.0, -0.45, -0.1, 0.0, 0.2, 1.0),
        (-1.0, -0.7, 0.0, 0.05, 0.4, 0.8),
    )
    rows_apart: ClassVar[bool] = True

    @property
    def top(self) -> int:
        return len(self.books[0]) - 1

    def layout(self, shape: tuple[int, int]) -> Dense:
        if shape[1] % self.width:
            raise ValueError(f"groups of {self.width} do not divide {shape[1]} columns")
        return Dense(torch.float32)

    def fit(self, weight: Tensor, metric: Metric) -> UnevenParameters:
        scale = weight.view(len(weight), -1, self.width).abs().amax(-1)
        return UnevenParameters(scale.clamp_min(1e-6), torch.arange(len(weight)) % len(self.books))

    def levels(self, parameters: UnevenParameters, columns: int) -> Tensor:
        """All allowed values ``[out, in, count]``."""
        scale = parameters.scale.repeat_interleave(columns // parameters.scale.shape[1], 1)
        return scale.unsqueeze(-1) * torch.tensor(self.books)[parameters.book].unsqueeze(1)

    def project(self, weight: Tensor, parameters: UnevenParameters) -> Tensor:
        return nearest(weight, self.levels(parameters, weight.shape[1]))

    def codes(self, weight: Tensor, parameters: UnevenParameters) -> Tensor:
        return (weight.unsqueeze(-1) - self.levels(parameters, weight.shape[1])).abs().argmin(-1)

    def position(self, weight: Tensor, parameters: UnevenParameters) -> Tensor:
        levels = self.levels(parameters, weight.shape[1])
        lower = ((weight.unsqueeze(-1) >= levels).sum(-1) - 1).clamp(0, self.top - 1)
        low, high = (levels.gather(-1, (lower + i).unsqueeze(-1)).squeeze(-1) for i in (0, 1))
        return lower + (weight - low) / (high - low)

    def values(self, codes: Tensor, parameters: UnevenParameters, factor: Tensor | None = None) -> Tensor:
        if factor is not None:
            parameters = replace(parameters, scale=parameters.scale * factor)
        levels = self.levels(parameters, codes.shape[1])
        lower = codes.detach().floor().clamp(0, self.top - 1).long()
        low, high = (levels.gather(-1, (lower + i).unsqueeze(-1)).squeeze(-1) for i in (0, 1))
        return torch.where(codes == lower + 1, high, low + (codes - lower) * (high - low))

    def encode(self, weight: Tensor, parameters: UnevenParameters) -> CompressedWeight:
        shape = (weight.shape[0], weight.shape[1])
        return CompressedWeight(self.layout(shape), shape, {"weight": self.project(weight, parameters)})

    def column_rounder(self, parameters: UnevenParameters, shape: tuple[int, int]) -> Any:
        levels = self.levels(parameters, shape[1])
        return lambda values, column: nearest(values, levels[:, column])

    def element_rounder(self, parameters: UnevenParameters, shape: tuple[int, int]) -> UnevenRounder:
        return UnevenRounder(self.levels(parameters, shape[1]).unbind(-1))

    def scales_of(self, parameters: UnevenParameters) -> Tensor:
        return parameters.scale

    def rescale(self, weight: Tensor, parameters: UnevenParameters, scale: Tensor) -> Any:
        changed = replace(parameters, scale=scale.clamp_min(1e-6))
        return self.values(self.codes(weight, parameters), changed), changed

    def where(self, condition: Tensor, new: UnevenParameters, old: UnevenParameters) -> UnevenParameters:
        return replace(old, scale=torch.where(condition, new.scale, old.scale))

    def clipped(self, parameters: UnevenParameters, ratios: Sequence[float]) -> list[UnevenParameters]:
        return [replace(parameters, scale=parameters.scale * ratio) for ratio in ratios]

    def rows_of(self, parameters: UnevenParameters, rows: slice) -> UnevenParameters:
        return UnevenParameters(parameters.scale[rows], parameters.book[rows])

    def stacked(self, several: Sequence[UnevenParameters], rows: int) -> UnevenParameters:
        scales, books = ([getattr(one, key) for one in several] for key in ("scale", "book"))
        return UnevenParameters(torch.cat(scales), torch.cat(books))

    def picked(self, several: Sequence[UnevenParameters], index: Tensor) -> UnevenParameters:
        scale = torch.stack([one.scale for one in several])[index, torch.arange(len(index))]
        return replace(several[0], scale=scale)

    def group(self, parameters: UnevenParameters, index: int) -> tuple[UnevenGrid, UnevenParameters]:
        return self, replace(parameters, scale=parameters.scale[:, index : index + 1])

    def with_group(
        self, parameters: UnevenParameters, index: int, group: UnevenParameters
    ) -> UnevenParameters:
        scale = parameters.scale.clone()
        scale[:, index] = group.scale[:, 0]
        return replace(parameters, scale=scale)


@pytest.fixture(scope="session")
def observed() -> Statistics:
    """Moments of 600 inputs of 96 columns, one of them loud, and of gradients of 64 outputs."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(600, 96, generator=generator) @ torch.randn(96, 96, generator=generator)
    x[:, 5] *= 20
    gram = x.T @ x / len(x)
    g = torch.randn(64, 64, generator=generator)
    left = g @ g.T / 64
    return Statistics(
        tokens=600,
        gram=gram,
        diagonal=gram.diagonal(),
        mean_abs=x.abs().mean(0),
        gradient_rows=left.diagonal(),
        output_gradient_gram=left,
        dense_gram=gram,
    )


@pytest.fixture(scope="session")
def observed_weight() -> Tensor:
    """A weight ``[64, 96]`` for the observed inputs."""
    return torch.randn(64, 96, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def solve_step() -> Callable[..., tuple[float, Tensor, dict[str, Any]]]:
    """``solve_step(weight, statistics, **step)`` → the error in the inputs' metric, Θ as stored in bf16, and the record."""

    def solve(weight: Tensor, statistics: Statistics, **step: Any) -> tuple[float, Tensor, dict[str, Any]]:
        methods = methods_of(Step.model_validate(step), torch.bfloat16)
        attempt = solve_weight(methods, weight, statistics, methods.score.metric(statistics), 0)
        theta = attempt.pack().packed.dense(torch.float32)
        torch.testing.assert_close(theta, attempt.solution.theta, rtol=0, atol=1e-5)
        metric = Kron(right=Side(statistics.gram))
        return relative_loss(metric, weight - theta, weight), theta, attempt.record

    return solve


FACTORS = Factors(rank=4, inside=True)
STRUCTURES: dict[str, Structure] = {
    "grid": IntegerGrid(4, "channel", False),
    "symmetric grid": IntegerGrid(3, "channel", True),
    "grid by tensor": IntegerGrid(4, "tensor", False),
    "affine": AffineGrid(3, 32),
    "nf4": NF4Grid(32),
    "shift": TableGrid(32, "shift", 4),
    "rf8": TableGrid(32, "rf8", 8),
    "q4_1": GGUFGrid("q4_1"),
    "mxfp4": GGUFGrid("mxfp4"),
    "fp8 by channel": FloatGrid("fp8", "channel"),
    "mxfp4 float": FloatGrid("mxfp4", 32),
    "nvfp4": FloatGrid("nvfp4", 16),
    "uneven": UnevenGrid(),
    "half": Masked(Unstructured(0.5)),
    "two of four": Masked(NM(2, 4)),
    "half on a grid": MaskedGrid(Unstructured(0.5), IntegerGrid(4, "channel", False)),
    "two of four on a grid": MaskedGrid(NM(2, 4), IntegerGrid(4, "channel", True)),
    "factors": Factors(rank=6),
    "factors and columns": FactorsAndColumns(Factors(ratio=0.7), 0.05),
    "factors and a grid": FactorsAnd(FACTORS, IntegerGrid(3, "channel", False)),
    "factors and half": FactorsAnd(FACTORS, Masked(Unstructured(0.6))),
}


@pytest.fixture(scope="session")
def uneven_grid() -> UnevenGrid:
    """A toy grid of unevenly spaced values that differ from row to row."""
    return UnevenGrid()


def pairs() -> Iterator[Any]:
    """Every weight solver of the registry with every structure that it can serve."""
    for name in SOLVERS:
        solver = find("solver", name)()
        if getattr(solver, "scope", "weight") == "block":
            continue
        for label, structure in STRUCTURES.items():
            if not unmet(solver, structure):
                yield pytest.param(solver, structure, id=f"{name}, {label}")


HARD = (
    "plain",
    "outliers20",
    "outliers100",
    "dead",
    "all dead",
    "singular",
    "bf16",
    "zero",
    "one row",
    "one column",
)


@pytest.fixture(scope="session")
def make_case() -> Callable[..., Case]:
    """``make_case("outliers20")`` → a :class:`Case`; the kinds are in ``HARD``."""
    return make


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "hard" in metafunc.fixturenames:
        metafunc.parametrize("hard", [make(kind) for kind in HARD], ids=HARD)
    if {"solver", "structure"} <= set(metafunc.fixturenames):
        metafunc.parametrize(("solver", "structure"), list(pairs()))
