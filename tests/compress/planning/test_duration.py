"""The estimate of a run's time: every pass, moment and solver is counted, and counted once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from compress_kernels import native

from compress.checkpoint.source import open_source
from compress.models.skeleton import Skeleton, open_skeleton
from compress.planning.duration import _ATTENTION, _BY_WEIGHT, _BYTES, _CHECKED, _ELEMENTWISE, work_of
from compress.planning.make import make_plan
from compress.planning.solver_costs import _SEARCHED, solver_cost
from compress.planning.work import START, Work
from compress.recipe.recipe import Recipe

QKV, OUT, GATE_UP, DOWN = 64 * 64 + 2 * 32 * 64, 64 * 64, 2 * 128 * 64, 64 * 128
BLOCKS, TOKENS = 2, 4 * 16
ATTENTION = _ATTENTION * 2 * 16 * 64
SHAPES = [(64, 64), (32, 64), (32, 64), (64, 64), (128, 64), (128, 64), (64, 128)]
WEIGHTS = BLOCKS * len(SHAPES)
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


def test_without_data_only_bytes_and_solvers_count(skeleton: Skeleton) -> None:
    found = work(skeleton, {"quantize": {"bits": 4, "group_size": 32}, "solver": "nearest"})
    nbytes = sum(file.stat().st_size for file in skeleton.source.files)
    assert (found.blocks, found.statistics, found.moved) == (0.0, 0.0, _BYTES * nbytes)
    assert found.read == _CHECKED * nbytes
    assert 0 < found.written < nbytes
    assert found.fixed == pytest.approx(START + WEIGHTS * _BY_WEIGHT)
    assert_costs(found, "Nearest")


def assert_costs(found: Work, *names: str) -> None:
    assert set(found.solving) == set(names)
    for name in names:
        costs = [solver_cost(name, shape) for shape in SHAPES * BLOCKS]
        for field in ("seconds", "products", "moved"):
            assert getattr(found.solving[name], field) == pytest.approx(sum(getattr(c, field) for c in costs))


def test_scales_of_ggufs_types_are_searched(skeleton: Skeleton) -> None:
    searched = work(skeleton, {"quantize": {"type": "q8_0"}, "solver": "nearest"}, format="gguf")
    assert searched.solving["search"].moved == _SEARCHED * BLOCKS * (QKV + OUT + GATE_UP + DOWN)


def test_gptq_on_one_set_of_statistics(skeleton: Skeleton) -> None:
    found = work(skeleton, {"quantize": {"bits": 4, "group_size": 32}, "solver": "gptq"})
    # Once up to the last input that is recorded, once through; half of each Gram matrix.
    passes = 2 * (QKV + OUT + GATE_UP + ATTENTION) + DOWN
    assert found.blocks == pytest.approx(BLOCKS * TOKENS * (passes + INPUTS / 2))
    assert found.statistics == 0
    nbytes = sum(file.stat().st_size for file in skeleton.source.files)
    inside = 2 * (6 * 64 + 3 * 128)
    assert found.moved == pytest.approx(_BYTES * nbytes + TOKENS * 2 * BLOCKS * _ELEMENTWISE * inside)
    assert_costs(found, "GPTQ")


def test_stages_and_the_dense_stream_are_further_passes(skeleton: Skeleton) -> None:
    step = {"quantize": {"bits": 4, "group_size": 32}, "solver": "gptq"}
    plain = work(skeleton, step)
    stages = work(skeleton, step, true_sequential=True)
    both = work(skeleton, {**step, "true_input_target": True}, true_sequential=True)
    assert stages.blocks - plain.blocks == pytest.approx(
        BLOCKS * TOKENS * (QKV + ATTENTION + QKV + ATTENTION + OUT)
    )
    grams, crosses = BLOCKS * TOKENS * INPUTS / 2, BLOCKS * TOKENS * INPUTS
    # The dense model's last input is recorded on the way to its outputs.
    again = BLOCKS * TOKENS * (QKV + OUT + GATE_UP + ATTENTION)
    assert both.blocks - grams - crosses == pytest.approx(2 * (stages.blocks - grams) - again)
    assert both.statistics == 0


def test_gradients_take_passes_and_moments_of_both_sides(
    skeleton: Skeleton, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = {"quantize": {"bits": 4, "group_size": 32}, "solver": "gptq"}
    monkeypatch.setattr(native, "may_multiply_bf16", lambda: False)
    plain, fisher = work(skeleton, step), work(skeleton, {**step, "score": "fisher", "solver": "yaqa"})
    products = 4 * BLOCKS * TOKENS * (QKV + OUT + GATE_UP + DOWN)
    assert fisher.statistics > plain.statistics + products
    monkeypatch.setattr(native, "may_multiply_bf16", lambda: True)
    quick = work(skeleton, {**step, "score": "fisher", "solver": "yaqa"})
    assert quick.statistics == 0
    assert quick.blocks == pytest.approx(fisher.blocks + fisher.statistics)
    one_sided = sum(solver_cost("YAQA", shape).products for shape in SHAPES * BLOCKS)
    assert fisher.solving["YAQA"].products > one_sided


def test_solvers_of_a_block_take_steps(skeleton: Skeleton) -> None:
    def steps(count: int, **options: Any) -> float:
        solver = {"name": "signround", "iterations": count, "checks": 1, **options}
        found = work(skeleton, {"quantize": {"bits": 4, "group_size": 32}, "solver": [solver]})
        return found.blocks

    # Batches are of one window of 16 tokens or of all four; a backward is two forwards.
    forward = BLOCKS * (QKV + OUT + GATE_UP + DOWN + ATTENTION)
    assert steps(15, tokens=16) - steps(10, tokens=16) == pytest.approx(5 * 3 * 16 * forward)
    assert steps(15) - steps(10) == pytest.approx(5 * 3 * TOKENS * forward)
    assert steps(10, tokens=16, checks=3) - steps(10, tokens=16) == pytest.approx(2 * 16 * forward)


def test_healing_takes_passes_of_both_models(skeleton: Skeleton) -> None:
    step = {"quantize": {"bits": 4, "group_size": 32}, "solver": "nearest"}
    heal = {"train": ["scales"], "rate": 0.01, "length": 16, "batch": 2, "holdout": 2, "evaluations": 1}
    plain = work(skeleton, step)
    healed = [work(skeleton, step, heal={**heal, "tokens": count * 32}) for count in (2, 3)]
    forward = BLOCKS * (QKV + OUT + GATE_UP + DOWN + ATTENTION) + 256 * 64
    # The student forwards and backwards, the teacher forwards; two measurements, on what the teacher is asked about once.
    assert healed[0].blocks == pytest.approx(forward * (2 * 32 * 4 + 3 * 32))
    assert healed[1].blocks - healed[0].blocks == pytest.approx(forward * 32 * 4)
    for found in healed:
        assert found.solving == plain.solving
        assert found.read > plain.read
        assert found.moved > plain.moved


def test_a_token_meets_the_experts_that_it_is_sent_to(tiny_model: Callable[..., Path]) -> None:
    step = {"quantize": {"bits": 4, "group_size": 32}, "solver": "gptq", "targets": ["linear", "experts"]}
    found = [
        work(open_skeleton(open_source(tiny_model("mixtral", num_experts_per_tok=count))), step)
        for count in (1, 2)
    ]
    # Of two passes the first ends before the last stage, the experts' down projections.
    expert = 3 * 64 * 128
    assert found[1].blocks - found[0].blocks == pytest.approx(BLOCKS * TOKENS * (2 * expert - 64 * 128))


def test_searching_is_not_estimated(skeleton: Skeleton) -> None:
    assert estimate(skeleton, {"lowrank": {"ratio": 0.5}}) is None
