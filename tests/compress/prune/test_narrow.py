"""Narrow FFNs and blocks that are left out as candidates of a budget, from their trials to the finished folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import compress
from compress.allocate.amounts import Amount
from compress.allocate.kernel_times import parse_time
from compress.allocate.problem import BudgetProblem
from compress.allocate.slopes import measured_removals
from compress.allocate.units import GONE, Choice, Unit
from compress.checkpoint.source import open_source
from compress.errors import UserError
from compress.pipeline.budget import Measured, SearchSettings, measure
from compress.pipeline.budget_space import Space, check_time, is_copy, open_space, overhead_of, plan_of

CALIBRATE = {"samples": 4, "length": 32}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def space(tiny_model: Callable[..., Path]) -> Space:
    source = open_source(tiny_model("llama", initializer_range=0.1, num_hidden_layers=4))
    return open_space(source, "native", Amount("bits", 16, "16 bits"))[0]


@pytest.fixture(scope="module")
def measured(space: Space, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    settings = SearchSettings("native", CALIBRATE, CPU, torch.float32, 0)
    return measure(space, settings, 3.0, tmp_path_factory.mktemp("pass"))


def mixed(space: Space) -> dict[str, str]:
    """Block 1 without some of its neurons, block 2 left out, all else in four bits."""
    labels = {unit.name: "int4-g32" for unit in space.units}
    for unit in space.units:
        if unit.block == 1 and unit.narrow:
            labels[unit.name] = next(c.label for c in unit.narrow[96] if "int3" in c.label)
        if unit.block == 2:
            labels[unit.name] = GONE
    return labels


def test_all_weights_of_an_ffn_have_the_same_narrow_choices(space: Space) -> None:
    narrow = [unit for unit in space.units if unit.narrow]
    assert len(narrow) == 3 * 4
    for unit in narrow:
        assert set(unit.narrow) == {112, 96}
        sizes = [choice.nbytes for choice in unit.narrow[96]]
        assert sizes == sorted(sizes)
        assert sizes[0] < least_grid(unit).nbytes


def least_grid(unit: Unit) -> Choice:
    """The smallest of the grids for all neurons."""
    return next(choice for choice in unit.choices if choice.label.startswith("int"))


def test_other_runtimes_have_blocks_of_one_width(tiny_model: Callable[..., Path]) -> None:
    found, _ = open_space(open_source(tiny_model("llama")), "vllm", Amount("bits", 16, "16 bits"))
    assert not any(unit.narrow for unit in found.units)


def test_trials_put_zeros_for_the_neurons_that_go(space: Space, measured: Measured) -> None:
    decode = measured.trials.decoder(mixed(space))
    gate, down = (decode(f"model.layers.1.mlp.{name}_proj") for name in ("gate", "down"))
    assert gate is not None
    assert down is not None
    gone = (gate == 0).all(1)
    assert int(gone.sum()) == 128 - 96
    assert torch.equal((down == 0).all(0), gone)


def test_losing_neurons_costs_the_weight_that_reads_them(space: Space, measured: Measured) -> None:
    for name, rises in (("down", True), ("gate", False)):
        own = measured.losses[f"model.layers.0.mlp.{name}_proj"]
        wide, narrow = own_of(own, "int8"), own_of(own, "96 neurons, int8")
        assert (narrow > 10 * wide) is rises


def own_of(losses: dict[str, float], start: str) -> float:
    return next(loss for label, loss in losses.items() if label.startswith(start))


def test_a_quarter_of_the_blocks_may_go_at_their_measured_loss(space: Space, measured: Measured) -> None:
    predicted = {block: measured.trials.removal(block) or 0 for block in range(4)}
    ((block, loss),) = measured.removals.items()
    assert predicted[block] == min(predicted.values()) > 0
    gone = {unit.name: GONE for unit in space.units if unit.block == block}
    assert measured.meter.mean(gone) == loss > 0


def test_the_recipe_s_bytes_are_those_of_the_allocation(
    space: Space, tmp_path: Path, tiny_model: Callable[..., Path]
) -> None:
    labels = mixed(space)
    recipe = space.recipe(labels, "mixed", "", CALIBRATE)
    assert recipe.depth_pruning is not None
    assert recipe.depth_pruning.blocks == (2,)
    assert recipe.width_pruning is not None
    assert recipe.width_pruning.counts == {1: 96}
    problem = BudgetProblem(space.units, {}, overhead_of(space, labels), 4)
    assert plan_of(space, recipe).total_bytes == problem.nbytes(labels)
    source = tiny_model("llama", initializer_range=0.1, num_hidden_layers=4)
    planned = compress.plan(source, recipe)
    result = compress.compress(source, recipe, tmp_path / "out", device="cpu")
    assert planned.total_bytes == result.plan.total_bytes == problem.nbytes(labels)
    compress.verify(tmp_path / "out", source)
    assert len(result.plan.weights) == len(space.units) - 7


def test_below_two_bits_the_knapsack_takes_narrow_ffns(space: Space, measured: Measured) -> None:
    # Factors would be smaller still.
    grids = tuple(
        replace(unit, choices=tuple(c for c in unit.choices if not c.label.startswith("rank")))
        for unit in space.units
    )
    problem = measured.problem(replace(space, units=grids))
    chosen = problem.solve(problem.smallest)
    wide = sum(unit.choices[0].nbytes for unit in grids) + space.overhead
    assert problem.nbytes(chosen) <= problem.smallest < wide
    kept = {
        unit.block: unit.choice(label).neurons for unit, label in zip(grids, chosen.values(), strict=True)
    }
    assert 96 in kept.values() or GONE in chosen.values()


def test_a_limit_of_seconds_moves_the_allocation(space: Space, measured: Measured) -> None:
    def within(seconds: str) -> BudgetProblem:
        return measured.problem(space, parse_time(seconds))

    budget = 2 * space.smallest
    loose, wide = within("1s-cpu"), within("1s-cpu").solve(budget)
    taken = loose.predicted_seconds(wide)
    assert taken > 0
    tight = within(f"{0.9e6 * taken}us-cpu")
    chosen = tight.solve(budget)
    assert tight.predicted_seconds(chosen) <= 0.9 * taken
    assert tight.predicted(chosen) >= loose.predicted(wide)


def test_a_time_that_cannot_be_kept_names_one_that_can(space: Space) -> None:
    budget = 2 * space.smallest
    with pytest.raises(UserError, match=r"at least .* ms on one core") as error:
        check_time(space, budget, parse_time("0.000001us-cpu"))
    least = float(str(error.value).partition("at least ")[2].partition(" ms")[0])
    check_time(space, budget, parse_time(f"{1.02 * least:.9f}ms-cpu"))
    vllm = replace(space, runtime=replace(space.runtime, name="vllm"))
    with pytest.raises(UserError, match="--runtime native"):
        check_time(vllm, budget, parse_time("1s-cpu"))


def test_a_model_that_fits_the_bytes_is_copied_only_if_it_is_fast_enough(space: Space) -> None:
    assert is_copy(space, space.size.nbytes, parse_time("1s-cpu"))
    assert not is_copy(space, space.size.nbytes - 1, parse_time("1s-cpu"))
    assert not is_copy(space, space.size.nbytes, parse_time("1us-cpu"))


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ({"width_pruning": {"counts": {7: 8}}}, "no block 7"),
        ({"width_pruning": {"counts": {0: 4096}}}, "4096 of 128 neurons"),
        ({"depth_pruning": {"blocks": [4]}}, "of 4 blocks"),
        ({"depth_pruning": {"blocks": [0, 1, 2, 3]}}, "cannot be left out"),
    ],
)
def test_blocks_that_are_not_there_are_named(
    tiny_model: Callable[..., Path], section: dict[str, Any], sentence: str
) -> None:
    source = tiny_model("llama", initializer_range=0.1, num_hidden_layers=4)
    recipe = compress.Recipe.parse({"name": "x", "calibrate": CALIBRATE, **section})
    with pytest.raises(UserError, match=sentence):
        compress.plan(source, recipe)


def test_blocks_that_share_a_unit_stay(space: Space, measured: Measured) -> None:
    joined = replace(space.units[1], views=(*space.units[1].views, *space.units[-2].views))
    assert joined.block is None
    units = (joined, *space.units[2:])
    found = measured_removals(measured.meter, units, measured.trials)
    assert not {view.block for view in joined.views} & found.keys()
