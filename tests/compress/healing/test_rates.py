"""The learning rate that a training chooses for itself."""

from __future__ import annotations

import math

import pytest

from compress.healing.rates import choose_rate
from compress.recipe.trials import FEWEST, LADDER, MOST, trial_steps


def tried(kl_by_rate: dict[float, float], start: float = 1.0) -> list[float]:
    return [one.rate for one in choose_rate(lambda rate: kl_by_rate[rate], start)]


def test_the_best_rate_comes_last_and_none_is_tried_beyond_the_first_that_is_worse() -> None:
    assert tried({1e-2: 0.5, 3e-3: 0.6}) == [3e-3, 1e-2]
    assert tried({1e-2: 4.0, 3e-3: 0.9, 1e-3: 0.7, 3e-4: 0.8}) == [1e-2, 3e-3, 3e-4, 1e-3]


def test_a_rate_that_fails_is_passed_over() -> None:
    assert tried({1e-2: math.nan, 3e-3: math.inf, 1e-3: 0.9, 3e-4: 0.95})[-1] == 1e-3


def test_where_no_rate_helps_the_smallest_is_taken() -> None:
    assert tried({1e-2: 1.2, 3e-3: 1.1, 1e-3: 1.3, 3e-4: 1.4})[-1] == LADDER[-1]


@pytest.mark.parametrize(
    ("steps", "wanted"), [(2 * FEWEST - 1, 0), (2 * FEWEST, FEWEST), (200, 10), (9000, MOST)]
)
def test_trials_are_a_small_share_of_the_training(steps: int, wanted: int) -> None:
    assert trial_steps(steps) == wanted
