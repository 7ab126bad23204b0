"""What a search costs beside its run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from compress.allocate.cost import SearchSize, relative_cost
from compress.allocate.units import find_units
from compress.checkpoint.source import open_source
from compress.models.skeleton import open_skeleton
from compress.planning.make import facts_of
from compress.recipe.runtimes import RUNTIMES

SIZE = SearchSize(seen=8192, judged=2048, held_out=4096, trials=24, run=128 * 2048)


def test_a_search_costs_more_with_more_trials_and_tokens_and_less_beside_a_longer_run(
    tiny_model: Callable[..., Path],
) -> None:
    skeleton = open_skeleton(open_source(tiny_model("llama")))
    units = find_units(skeleton, RUNTIMES["native"], facts_of(skeleton))
    usual = relative_cost(units, 2, SIZE)
    assert 0 < usual < 4
    assert relative_cost(units, 2, replace(SIZE, trials=48)) > usual
    assert relative_cost(units, 2, replace(SIZE, seen=16384)) > usual
    assert relative_cost(units, 2, replace(SIZE, run=2 * SIZE.run)) < usual
    # Every allocation that is measured is a pass over the held-out tokens with all parameters.
    parameters = sum(unit.numel for unit in units)
    more = relative_cost(units, 2, replace(SIZE, trials=34)) - relative_cost(units, 2, SIZE)
    factors = sum(view.shape[1] ** 3 for unit in units if unit.block is not None for view in unit.views)
    solved = sum(3 * v.shape[0] * v.shape[1] ** 2 for u in units if u.block is not None for v in u.views)
    run = 2 * SIZE.run * parameters + factors + solved
    assert abs(more - 10 * SIZE.held_out * parameters / run) < 1e-9


def test_a_model_without_candidates_costs_nothing(tiny_model: Callable[..., Path]) -> None:
    skeleton = open_skeleton(open_source(tiny_model("llama")))
    units = find_units(skeleton, RUNTIMES["native"], facts_of(skeleton))
    dense = tuple(replace(unit, choices=unit.choices[-1:]) for unit in units)
    assert relative_cost(dense, 2, SIZE) == 0
