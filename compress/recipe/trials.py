"""The short trainings by which ``heal: {rate: auto}`` chooses a rate: which rates, and how long each is."""

from __future__ import annotations

LADDER = (1e-2, 3e-3, 1e-3, 3e-4)
"""The rates that are tried, largest first."""
SHARE, FEWEST, MOST = 0.05, 4, 20
"""Steps of a trial: a share of the training's, from the fewest to the most."""


def trial_steps(steps: int) -> int:
    """Steps of a trial for a training of ``steps`` steps; 0 where that is too short for trials."""
    found = min(MOST, max(FEWEST, round(SHARE * steps)))
    return found if 2 * found <= steps else 0
