"""How the time of solvers grows with the width of a square weight.

``python -m benchmarks.speed.growth [--widths N …] [--solvers NAME …] [--limit SECONDS] [--write]`` solves random weights with
random, correlated inputs and gradients on one thread, and prints processor seconds as they come and the exponent of growth from
one width to the next. A point that would take longer than the limit, by the growth so far, is left out. ``--write`` records the
table and puts it into docs/speed.md.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import REPOSITORY, table, write_between, write_results
from compress.recipe.registry import find
from compress.score.metric import Kron, Side
from compress.score.statistics import Statistics
from compress.solvers.base import Problem, nearest_point
from compress.structures.base import Structure
from compress.structures.grids.integer import IntegerGrid
from compress.structures.sparse.masked import Masked
from compress.structures.sparse.patterns import Unstructured

PAGE = REPOSITORY / "docs" / "speed.md"
WIDTHS = (512, 1024, 2048, 4096, 8192)
_FIRST = 128
"""Width of a first weight that is not counted: it builds and loads what all take."""
_CUBE = 3.0
"""Exponent that is expected of a width whose growth is not known yet."""
_DECAY = 0.6
"""Spectrum of inputs and gradients: standard deviations fall as a power of their number."""
_DAMPING = 0.1
"""Of the left side, as :class:`compress.score.fisher.Fisher` has it."""


@dataclass(frozen=True)
class Case:
    """Solvers in turn on one structure, judged by one side of a metric or by both."""

    solvers: tuple[str, ...]
    prunes: bool = False
    both_sides: bool = False


CASES: Mapping[str, Case] = {
    "GPTQ": Case(("gptq",)),
    "GPTQ and group scales": Case(("gptq", "group_scales")),
    "YAQA": Case(("gptq", "yaqa"), both_sides=True),
    "AWP, two-sided": Case(("awp",), prunes=True, both_sides=True),
    "ALPS": Case(("alps",), prunes=True),
    "AdaRound": Case(("gptq", "adaround")),
}
"""What is measured; of several solvers the time of all."""


def moment(width: int, seed: int) -> Tensor:
    """``E[x xᵀ]`` fp32 ``[width, width]`` of twice as many vectors as numbers, correlated by a random mixture."""
    generator = torch.Generator().manual_seed(seed)
    tokens = 2 * width
    spectrum = torch.arange(1, width + 1).float() ** -_DECAY
    vectors = torch.randn(tokens, width, generator=generator) * spectrum
    mixed = vectors @ torch.randn(width, width, generator=generator).div_(width**0.5)
    return mixed.T @ mixed / tokens


def problem_of(case: Case, width: int) -> Problem[Any]:
    """A random weight ``[width, width]`` with its metric."""
    right = moment(width, seed=1)
    left = None
    if case.both_sides:
        left = moment(width, seed=2)
        left.diagonal().add_(_DAMPING * left.diagonal().mean())
    structure: Structure
    if case.prunes:
        structure = Masked(Unstructured(0.5, "layer"), torch.bfloat16)
    else:
        structure = IntegerGrid(4, 128, symmetric=True, scales="minmax", scale_dtype=torch.bfloat16)
    weight = 0.05 * torch.randn(width, width, generator=torch.Generator().manual_seed(0))
    statistics = Statistics(tokens=2 * width, gram=right, diagonal=right.diagonal().clone())
    return Problem(weight, structure, Kron(left=Side(left), right=Side(right)), statistics)


def seconds_of(case: Case, width: int) -> float:
    """Processor seconds of the solvers, factors of the metric among them."""
    problem = problem_of(case, width)
    start = time.process_time()
    found = None if case.prunes else nearest_point(problem, problem.target)
    for name in case.solvers:
        found = find("solver", name)().solve(problem, found if name != "gptq" else None)
    return time.process_time() - start


def expected(times: Sequence[tuple[int, float]], width: int) -> float:
    """Seconds at ``width`` by the last growth of ``times`` (width, seconds), or as the cube of one of them; 0 of none."""
    if not times:
        return 0.0
    power = exponent(*times[-2:]) if len(times) > 1 else _CUBE
    last, seconds = times[-1]
    return seconds * (width / last) ** max(_CUBE, power)


def exponent(first: tuple[int, float], second: tuple[int, float]) -> float:
    """The power of the width by which seconds grow between two widths."""
    return math.log(second[1] / first[1]) / math.log(second[0] / first[0])


def measured(name: str, widths: Sequence[int], limit: float) -> list[tuple[int, float]]:
    """Width and seconds, as far as the limit lets them."""
    times: list[tuple[int, float]] = []
    seconds_of(CASES[name], _FIRST)
    for width in widths:
        if expected(times, width) > limit:
            print(f"{name} at {width}: left out, {expected(times, width):.0f} s are expected", flush=True)
            break
        times.append((width, seconds_of(CASES[name], width)))
        print(f"{name} at {width}: {times[-1][1]:.2f} s", flush=True)
    return times


def row(name: str, times: Sequence[tuple[int, float]], widths: Sequence[int]) -> list[str]:
    """One line: seconds by width, with the exponent from the width before."""
    cells = [name]
    for place in range(len(widths)):
        if place >= len(times):
            cells.append("over the limit")
        elif place:
            cells.append(f"{times[place][1]:.3g} ({exponent(times[place - 1], times[place]):.1f})")
        else:
            cells.append(f"{times[place][1]:.3g}")
    return cells


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--widths", type=int, nargs="+", default=list(WIDTHS))
    parser.add_argument("--solvers", nargs="+", default=list(CASES), choices=list(CASES), metavar="NAME")
    parser.add_argument(
        "--limit", type=float, default=1200.0, help="seconds of a point, at most, as expected"
    )
    parser.add_argument("--write", action="store_true", help="record, and write the page's table")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, and record it if asked to."""
    asked = parse(arguments)
    torch.set_num_threads(1)
    widths = sorted(asked.widths)
    times = {name: measured(name, widths, asked.limit) for name in asked.solvers}
    columns = ["processor s (exponent)", *map(str, widths)]
    found = table(columns, [row(name, points, widths) for name, points in times.items()])
    print(f"\n{found}")
    if asked.write:
        write_results("growth", {"widths": widths, "limit": asked.limit, "seconds": times})
        write_between(PAGE, "growth", found)


if __name__ == "__main__":
    main()
