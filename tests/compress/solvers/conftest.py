"""Weights with correlated inputs, easy and hard."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from compress.linalg.factor_cache import FactorCache
from compress.linalg.true_input import true_input_target
from compress.score.metric import Kron, Side
from compress.score.statistics import Statistics
from compress.solvers.base import Problem


@dataclass(frozen=True)
class Case:
    """A weight ``[out, in]`` and its inputs ``[tokens, in]``, as the compressed and as the dense model have them."""

    weight: Tensor
    inputs: Tensor
    dense: Tensor

    def problem(self, grid: Any, *, seed: int = 0, true_input: bool = False) -> Problem[Any]:
        gram = self.inputs.T @ self.inputs / len(self.inputs)
        cross = self.dense.T @ self.inputs / len(self.inputs)
        statistics = Statistics(tokens=len(self.inputs), gram=gram, cross=cross)
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
