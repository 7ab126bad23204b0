"""Refinement of an allocation against the true divergence: mutations and selection, as EvoPress has them (arXiv:2410.14649).

A mutation does not swap single units, whose effect is lost in noise: it tilts the losses of some units and solves the knapsack
again, so that every allocation that is tried uses the whole budget. What is worse is never accepted.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from compress.allocate.divergence import DivergenceMeter
from compress.allocate.problem import BudgetProblem, group_of

_STEP = 0.7
"""By how much, as a natural logarithm, the losses of a group are tilted at first."""
_SPREAD = 0.35
"""Standard deviation of the logarithm by which single units are tilted."""


@dataclass(frozen=True)
class Refined:
    """The result of a refinement.

    Attributes:
        allocation: the best that was measured.
        divergence: of it, nats a token on the held-out windows.
        begun_at: that of the allocation it began with.
        tried: how many others were measured.
        accepted: how many of them were better than the best before.
        problem: the problem with the tilts whose solution the allocation is.
    """

    allocation: Mapping[str, str]
    divergence: float
    begun_at: float
    tried: int
    accepted: int
    problem: BudgetProblem


def refine(
    meter: DivergenceMeter,
    problem: BudgetProblem,
    budget: int,
    *,
    trials: int,
    seed: int,
    tried: Callable[[int, float], None] = lambda count, best: None,
) -> Refined:
    """Search for an allocation of less true divergence, beginning with the problem's solution.

    First every group of alike units is tilted either way, then single units at random.

    Args:
        meter: of the true divergence, on windows that nothing else is judged by.
        problem: with predicted losses.
        budget: bytes of the weight files.
        trials: how many allocations are measured, the first one not counted.
        seed: for the random tilts.
        tried: called after each with their count and the least divergence so far.
    """
    draw = random.Random(seed)
    best = dict(problem.solve(budget))
    windows = meter.by_window(best)
    begun_at = least = _mean(windows)
    groups = list(
        dict.fromkeys(group_of(unit, problem.blocks) for unit in problem.units if len(unit.choices) > 1)
    )
    queue = [(group, sign) for group in draw.sample(groups, len(groups)) for sign in (1, -1)]
    count = accepted = misses = 0
    while count < trials and misses < 20:
        move = queue.pop(0) if queue else None
        tilted = _tilted(problem, draw, move)
        allocation = tilted.solve(budget)
        if allocation == best:
            misses += 1
            continue
        misses, count = 0, count + 1
        found = meter.by_window(allocation)
        if _is_better(found, windows):
            best, windows, problem, accepted = allocation, found, tilted, accepted + 1
            least = _mean(found)
            # What helped once may help again; its opposite will not.
            queue = [] if move is None else [move, *(other for other in queue if other[0] != move[0])]
        tried(count, least)
    return Refined(best, least, begun_at, count, accepted, problem)


def _tilted(problem: BudgetProblem, draw: random.Random, move: tuple[str, int] | None) -> BudgetProblem:
    tilts = dict(problem.tilts)
    for unit in problem.units:
        if move is None:
            change = draw.gauss(0, _SPREAD)
        elif group_of(unit, problem.blocks) == move[0]:
            change = move[1] * _STEP
        else:
            continue
        tilts[unit.name] = tilts.get(unit.name, 1.0) * math.exp(change)
    return replace(problem, tilts=tilts)


def _is_better(found: list[float], before: list[float]) -> bool:
    """Whether the mean is lower, by more than half of its standard error over the windows."""
    differences = [a - b for a, b in zip(found, before, strict=True)]
    mean = _mean(differences)
    if not mean < 0:
        return False
    spread = math.sqrt(sum((one - mean) ** 2 for one in differences) / max(1, len(differences) - 1))
    return mean < -0.5 * spread / math.sqrt(len(differences))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
