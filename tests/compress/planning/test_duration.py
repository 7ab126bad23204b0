"""The estimate of a run's time: every pass, moment and solver is counted, and counted once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compress.checkpoint.source import open_source
from compress.models.skeleton import Skeleton, open_skeleton
from compress.planning.duration import _BYTES, _INTO_FACTORS, _SEARCHED, _SOLVERS, _START, Work, work_of
from compress.planning.make import make_plan
from compress.recipe.recipe import Recipe
from compress.system.rate import Rate

QKV, OUT, GATE_UP, DOWN = 64 * 64 + 2 * 32 * 64, 64 * 64, 2 * 128 * 64, 64 * 128
BLOCKS, TOKENS = 2, 4 * 16
INPUTS = 64**2 + 64**2 + 64**2 + 128**2
"""Squares of the four inputs of a block."""


@pytest.fixture(scope="module")
def skeleton(tiny_model: Callable[..., Path]) -> Skeleton:
    return open_skeleton(open_source(tiny_model("llama")))


def work(skeleton: Skeleton, steps: dict[str, Any], **recipe: Any) -> Work:
    found = estimate(skeleton, steps, **recipe)
    assert found is not None
    return found


def estimate(skeleton: Skeleton, steps: dict[str, Any], **recipe: Any) -> Work | None:
    data = {"calibrate": {"samples": 4, "length": 16}, "steps": [steps], **recipe}
    return work_of(skeleton, make_plan(skeleton, Recipe.parse({"name": "x", **data})))


def test_without_data_only_bytes_count(skeleton: Skeleton) -> None:
    found = work(skeleton, {"quantize": {"bits": 4, "group_size": 32}, "solver": "nearest"})
    nbytes = sum(file.stat().st_size for file in skeleton.source.files)
    assert found == Work(0.0, _BYTES * nbytes, _START)


def test_scales_of_ggufs_types_are_searched(skeleton: Skeleton) -> None:
    plain = work(skeleton, {"quantize": {"bits": 4, "group_size": 32}, "solver": "nearest"})
    searched = work(skeleton, {"quantize": {"type": "q8_0"}, "solver": "nearest"}, format="gguf")
    elements = BLOCKS * (QKV + OUT + GATE_UP + DOWN)
    assert searched.statistics - plain.statistics == _SEARCHED * elements


def test_gptq_on_one_set_of_statistics(skeleton: Skeleton) -> None:
    found = work(skeleton, {"quantize": {"bits": 4, "group_size": 32}, "solver": "gptq"})
    # Once up to the last input that is recorded, once through.
    assert found.blocks == BLOCKS * TOKENS * (2 * (QKV + OUT + GATE_UP) + DOWN)
    by_column, products = _SOLVERS["GPTQ"]
    shapes = [(64, 64), (32, 64), (32, 64), (64, 64), (128, 64), (128, 64), (64, 128)]
    solving = sum(_INTO_FACTORS * i**3 + products * o * i**2 for o, i in shapes)
    nbytes = sum(file.stat().st_size for file in skeleton.source.files)
    assert found.statistics == BLOCKS * (TOKENS * INPUTS + solving) + _BYTES * nbytes
    assert found.fixed == pytest.approx(_START + BLOCKS * by_column * sum(i for _, i in shapes))
    assert found.seconds(Rate(found.blocks, found.statistics)) == pytest.approx(found.fixed + 2)


def test_stages_and_the_dense_stream_are_further_passes(skeleton: Skeleton) -> None:
    step = {"quantize": {"bits": 4, "group_size": 32}, "solver": "gptq"}
    plain = work(skeleton, step)
    stages = work(skeleton, step, true_sequential=True)
    both = work(skeleton, {**step, "true_input_target": True}, true_sequential=True)
    assert stages.blocks - plain.blocks == BLOCKS * TOKENS * (QKV + QKV + OUT)
    assert both.blocks == 2 * stages.blocks
    assert both.statistics - stages.statistics == BLOCKS * TOKENS * INPUTS


def test_gradients_take_passes_and_moments_of_both_sides(skeleton: Skeleton) -> None:
    step = {"quantize": {"bits": 4, "group_size": 32}, "solver": "gptq"}
    plain, fisher = work(skeleton, step), work(skeleton, {**step, "score": "fisher", "solver": "yaqa"})
    assert fisher.statistics > plain.statistics + 3 * BLOCKS * TOKENS * (QKV + OUT + GATE_UP + DOWN)


def test_training_and_searching_are_not_estimated(skeleton: Skeleton) -> None:
    step = {"quantize": {"bits": 4, "group_size": 32}}
    assert estimate(skeleton, {**step, "solver": "signround"}) is None
    assert estimate(skeleton, {**step, "solver": "gptq"}, heal={"train": ["scales"]}) is None
    assert estimate(skeleton, {"lowrank": {"ratio": 0.5}}) is None
