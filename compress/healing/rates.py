"""``rate: auto``: the learning rate is chosen on held-out windows, by short trainings from the start."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from compress.recipe.trials import LADDER

WITHOUT_TRIAL = 1e-3
"""The rate of trainings that are hardly longer than a trial."""


@dataclass(frozen=True)
class Trial:
    """A rate, and the held-out KL by token after a short training with it, in nats; infinite where it failed."""

    rate: float
    kl: float


def choose_rate(trial: Callable[[float], float], start: float) -> list[Trial]:
    """Try the rates from the largest down, until one does worse than the one before, which helped.

    Args:
        trial: rate → held-out KL after a short training.
        start: the held-out KL before.

    Returns:
        What was tried, the best last (the smallest of all where none helped: it does the least harm).
    """
    tried: list[Trial] = []
    for rate in LADDER:
        kl = trial(rate)
        tried.append(Trial(rate, kl if math.isfinite(kl) else math.inf))
        if len(tried) > 1 and tried[-2].kl < min(start, tried[-1].kl):
            break
    best = min(tried, key=lambda one: (one.kl, one.rate))
    if best.kl >= start:
        best = tried[-1]
    return [*(one for one in tried if one is not best), best]
