"""The estimate of a run's memory: what is held at once is counted, and counted once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from compress.checkpoint.source import open_source
from compress.models.skeleton import Skeleton, open_skeleton
from compress.planning.memory import peak_memory
from compress.recipe.recipe import Recipe

GRAM = frozenset({"gram"})
SHAPES = {
    "q": (64, 64),
    "k": (32, 64),
    "v": (32, 64),
    "o": (64, 64),
    "gate": (128, 64),
    "up": (128, 64),
    "down": (64, 128),
}
BLOCK = sum(out * columns for out, columns in SHAPES.values()) + 2 * 64  # and two norms


@pytest.fixture(scope="module")
def skeleton(tiny_model: Callable[..., Path]) -> Skeleton:
    return open_skeleton(open_source(tiny_model("llama")))


def recipe(**calibrate: Any) -> Recipe:
    return Recipe.parse({"name": "x", "steps": [{"quantize": {"bits": 4}}], "calibrate": calibrate})


def needs_of(skeleton: Skeleton, needs: frozenset[str], *ends: str) -> Mapping[str, frozenset[str]]:
    """The same needs for the weights of both blocks whose names end so."""
    views = [view for view in skeleton.views if view.block is not None]
    return {view.name: needs for view in views if view.name.endswith(ends or "_proj")}


def peak(
    skeleton: Skeleton,
    needs: Mapping[str, frozenset[str]],
    dtype: torch.dtype = torch.float32,
    **calibrate: Any,
) -> int:
    return peak_memory(skeleton, recipe(**calibrate), needs, dtype)


def test_without_data_a_block_and_the_solver_of_its_largest_weight(skeleton: Skeleton) -> None:
    assert peak(skeleton, needs_of(skeleton, frozenset())) == 4 * BLOCK + 4 * 4 * 128 * 64
    assert peak(skeleton, needs_of(skeleton, frozenset()), torch.bfloat16) == 2 * BLOCK + 4 * 4 * 128 * 64


def test_statistics_of_shared_inputs_are_counted_once(skeleton: Skeleton) -> None:
    many = {"samples": 1, "length": 8}
    base = peak(skeleton, needs_of(skeleton, GRAM, "down_proj"), **many)
    # A batch takes more than a solver does here, so that the difference is that of the statistics alone.
    for ends, squares in (
        (("gate_proj",), 64**2),
        (("gate_proj", "up_proj"), 64**2),
        (("q_proj", "k_proj", "v_proj"), 64**2),
        (("q_proj", "o_proj"), 2 * 64**2),
    ):
        assert peak(skeleton, needs_of(skeleton, GRAM, "down_proj", *ends), **many) - base == 4 * squares


def test_experts_have_statistics_of_their_own(tiny_model: Callable[..., Path]) -> None:
    mixtral = open_skeleton(open_source(tiny_model("mixtral")))
    views = [view for view in mixtral.views if view.kind == "expert" and view.block == 0]
    by_expert = [
        {view.name: GRAM for view in views if (view.expert or 0) < count and view.shape[1] == 64}
        for count in (1, 2, 4)
    ]
    one, two, four = (peak(mixtral, needs) for needs in by_expert)
    assert four - two == 2 * (two - one) == 2 * 4 * 64**2


def test_activations_are_those_of_all_samples(skeleton: Skeleton) -> None:
    needs = needs_of(skeleton, GRAM)
    more = peak(skeleton, needs, samples=60, length=100) - peak(skeleton, needs, samples=50, length=100)
    assert more == 10 * 100 * 64 * 4
    assert peak(skeleton, needs, samples=10**6, length=2048) < peak(
        skeleton, needs, samples=1000, length=2048
    )


def test_a_batch_has_as_many_tokens_as_the_stream_gives_it(skeleton: Skeleton) -> None:
    needs = needs_of(skeleton, GRAM)
    few, many = (peak(skeleton, needs, samples=samples, length=128) for samples in (8, 16))
    inside, seen = (6 * 64 + 3 * 128) * 4, 4 * 128
    assert many - few == 8 * 128 * (64 * 4 + inside + seen)
    # Beyond 2048 tokens there are more batches.
    assert peak(skeleton, needs, samples=32, length=128) - many == 16 * 128 * 64 * 4


def test_stage_by_stage_a_block_holds_the_statistics_of_one(skeleton: Skeleton) -> None:
    needs = needs_of(skeleton, GRAM)
    data = {"name": "x", "steps": [{"quantize": {"bits": 4}}], "calibrate": {"samples": 16, "length": 128}}
    whole, stages = (
        peak_memory(skeleton, Recipe.parse({**data, "true_sequential": one}), needs, torch.float32)
        for one in (False, True)
    )
    assert whole - stages == 3 * 4 * 64**2


def test_the_dense_model_beside_the_compressed_one(skeleton: Skeleton) -> None:
    many = {"samples": 16, "length": 128}
    tokens = 16 * 128
    plain = peak(skeleton, needs_of(skeleton, GRAM, "down_proj"), **many)
    both = peak(skeleton, needs_of(skeleton, GRAM | {"cross"}, "down_proj"), **many)
    assert both - plain == tokens * 64 * 4 + 4 * 128**2 + tokens * 128 * (4 + 4)


def test_solvers_hold_copies_of_a_weight(skeleton: Skeleton) -> None:
    needs = needs_of(skeleton, GRAM, "down_proj")

    def of(*solvers: str) -> int:
        held = dict.fromkeys(needs, solvers)
        data = recipe(samples=1, length=2)
        return peak_memory(skeleton, data, needs, torch.float32, solvers=held)

    assert of("AdaRound") - of("GPTQ") == 10 * 4 * 64 * 128
    assert of("GPTQ", "AdaRound") == of("AdaRound")


def test_weights_that_are_trained_together_are_all_held(skeleton: Skeleton) -> None:
    needs = needs_of(skeleton, frozenset())
    data = recipe(samples=1, length=2)
    plain = peak_memory(skeleton, data, needs, torch.float32)
    together = peak_memory(skeleton, data, needs, torch.float32, trained=True)
    assert together - plain > 4 * (BLOCK - 2 * 64)


@pytest.mark.parametrize("need", ["output_gradients", "fisher", "squared_gradient", "gradient_rows"])
def test_a_pass_with_gradients_holds_more_than_two_blocks(skeleton: Skeleton, need: str) -> None:
    found = peak(skeleton, needs_of(skeleton, frozenset({need})), samples=1, length=8)
    assert found >= 2 * 4 * BLOCK


def test_a_decomposition_is_counted_where_weights_are_taken_apart(skeleton: Skeleton) -> None:
    low = Recipe.parse(
        {
            "name": "x",
            "steps": [{"lowrank": {"ratio": 0.5}, "solver": "weighted_svd"}],
            "calibrate": {"samples": 1, "length": 8},
        }
    )
    needs = needs_of(skeleton, frozenset())
    plain = peak_memory(skeleton, recipe(samples=1, length=8), needs, torch.float32)
    assert peak_memory(skeleton, low, needs, torch.float32) - plain >= 8 * 4 * 128 * 64 - 4 * 4 * 128 * 64


def test_merging_holds_outputs_of_all_experts_or_two_that_are_matched(
    tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    mixtral = open_skeleton(open_source(tiny_model("mixtral")))

    def held(by: str) -> int:
        width = {"experts": 0.5, "experts_by": by}
        return peak_memory(mixtral, Recipe.parse({"name": "x", "width_pruning": width}), {}, torch.float32)

    assert held("merge") - held("reap") == 2 * 4 * 4 * 64 * 4096
    monkeypatch.setattr("compress.planning.memory._OUTPUTS", 1)
    assert held("merge") - held("reap") == 12 * 128**2 + 6 * 4 * 3 * 128 * 64
