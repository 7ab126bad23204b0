"""A bound of memory: kept by the cheapest way that does, or refused with what would do."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from compress.checkpoint.source import open_source
from compress.errors import UserError
from compress.models.skeleton import Skeleton, open_skeleton
from compress.planning.economy import ALLOWANCE, DEVICE_ALLOWANCE, MemoryBound, Promised, promise
from compress.planning.make import make_plan
from compress.planning.memory import Economy
from compress.planning.parts import parts_of
from compress.planning.peak import Doing
from compress.recipe.recipe import Recipe

BASE = 100 << 20


@pytest.fixture(scope="module")
def experts(tiny_model: Callable[..., Path]) -> Skeleton:
    """A model whose statistics take the most memory: eight wide experts with inputs of their own."""
    return open_skeleton(open_source(tiny_model("mixtral", num_local_experts=8, intermediate_size=1024)))


def recipe(**changes: Any) -> Recipe:
    step = {"quantize": {"bits": 4, "group_size": 32}, "solver": "gptq", "targets": ["linear", "experts"]}
    calibrate = {"samples": 64, "length": 128}
    return Recipe.parse({"name": "x", "steps": [step], "calibrate": calibrate, **changes})


def doing(skeleton: Skeleton, device: str = "cpu") -> Doing:
    weights = make_plan(skeleton, recipe()).weights
    needs = {weight.name: weight.needs for weight in weights}
    solvers = {weight.name: ["GPTQ"] for weight in weights}
    return Doing(skeleton, recipe(), needs, torch.bfloat16, solvers, device=device)


def expected(skeleton: Skeleton, economy: Economy) -> int:
    return BASE + ALLOWANCE + doing(skeleton).held(economy).host


def promised(skeleton: Skeleton, total: int) -> Promised:
    found = make_plan(skeleton, recipe(), memory=MemoryBound(total, BASE)).promised
    assert found is not None
    return found


LADDER = [
    Economy(),
    Economy(in_memory=0),
    Economy(in_memory=0, windows=1),
    Economy(in_memory=0, windows=1, passes=2),
    Economy(in_memory=0, windows=1, passes=4),
]


def test_the_cheapest_way_that_does(experts: Skeleton) -> None:
    sizes = [expected(experts, economy) for economy in LADDER]
    assert all(more > less for more, less in pairwise(sizes))
    for economy, size in zip(LADDER, sizes, strict=True):
        assert promised(experts, size).economy == economy
        assert promised(experts, size).expected == size
    assert make_plan(experts, recipe()).promised is None


def test_a_sentence_says_what_is_given_up(experts: Skeleton) -> None:
    size = expected(experts, LADDER[3])
    note = promised(experts, size).note
    assert (
        "activations in a file, one calibration window at a time, statistics of a block in 2 passes" in note
    )
    assert "without giving anything up" in promised(experts, 1 << 40).note


def test_the_size_that_is_named_does(experts: Skeleton) -> None:
    with pytest.raises(UserError, match="--memory 105 MB is too little .* it takes [0-9.]+ MB") as refused:
        promised(experts, BASE)
    named = re.search(r"it takes ([0-9.]+) MB", str(refused.value))
    assert named is not None
    assert promised(experts, round(float(named[1]) * 1e6)).economy.passes >= 4


def test_no_passes_where_a_block_is_solved_as_a_whole(experts: Skeleton) -> None:
    bound = MemoryBound(expected(experts, LADDER[3]), BASE)
    assert promise(bound, doing(experts), passes=True).economy.passes == 2
    with pytest.raises(UserError, match="is too little"):
        promise(bound, doing(experts), passes=False)


def on_device(economy: Economy) -> Economy:
    return Economy(0, economy.windows, economy.passes, on_device=0)


def test_an_accelerator_is_bounded_apart_from_the_host(experts: Skeleton) -> None:
    run = doing(experts, "cuda")
    for economy in (Economy(), Economy(on_device=0), on_device(LADDER[2]), on_device(LADDER[3])):
        room = run.held(economy).device + DEVICE_ALLOWANCE
        found = promise(MemoryBound(None, BASE, room), run, passes=True)
        assert found.economy == economy
        assert found.on_device == room
    assert "activations off the accelerator" in found.note
    assert "of --device-memory" in found.note
    assert "of --memory" not in found.note


def test_the_size_of_the_accelerator_that_is_named_does(experts: Skeleton) -> None:
    run = doing(experts, "cuda")
    with pytest.raises(
        UserError, match="--device-memory 1.00 MB is too little .* it takes [0-9.]+ MB"
    ) as refused:
        promise(MemoryBound(None, BASE, 10**6), run, passes=True)
    named = re.search(r"it takes ([0-9.]+) MB", str(refused.value))
    assert named is not None
    assert promise(MemoryBound(None, BASE, round(float(named[1]) * 1e6)), run, passes=True).economy.passes > 1
    with pytest.raises(UserError, match="--memory 1.00 MB is too little"):
        promise(MemoryBound(10**6, BASE, 1 << 40), run, passes=True)


def test_what_leaves_the_accelerator_is_on_the_host(experts: Skeleton) -> None:
    run = replace(doing(experts, "cuda"), recipe=recipe(calibrate={"samples": 4096, "length": 128}))
    free, moved, filed = (run.held(one) for one in (Economy(), Economy(on_device=0), Economy(0, on_device=0)))
    kept = 4096 * 128 * 64 * 2
    assert free.device - moved.device == kept
    assert filed.host == free.host < moved.host


def test_what_is_outside_of_the_blocks_counts(tiny_model: Callable[..., Path]) -> None:
    skeleton = open_skeleton(open_source(tiny_model("llama", vocab_size=65536)))
    run = Doing(skeleton, recipe(), {}, torch.bfloat16, {})
    found = promise(MemoryBound(1 << 40, BASE), run, passes=True)
    assert found.expected - BASE - ALLOWANCE > 2 * 2 * 65536 * 64 * 2
    tied = open_skeleton(open_source(tiny_model("llama_tied", vocab_size=65536)))
    once = promise(MemoryBound(1 << 40, BASE), Doing(tied, recipe(), {}, torch.bfloat16, {}), passes=True)
    assert found.expected - once.expected == 2 * 65536 * 64 * 2


def test_weights_of_one_input_stay_together(experts: Skeleton) -> None:
    views = experts.block_views(0)
    needs = {view.name: frozenset({"gram"}) for view in views}
    parts = parts_of(experts, views, needs, 3)
    assert sorted(view.name for part in parts for view in part) == sorted(view.name for view in views)
    where = {view.name: place for place, part in enumerate(parts) for view in part}
    attention = [where[view.name] for view in views if view.name.endswith(("q_proj", "k_proj", "v_proj"))]
    assert len(attention) == 3
    assert len(set(attention)) == 1
    assert parts_of(experts, views, needs, 1) == [list(views)]
