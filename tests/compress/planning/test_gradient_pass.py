"""The pass with gradients: what it holds and computes, by the shapes and by the dtype of the gradients."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from compress.checkpoint.source import open_source
from compress.models.skeleton import Skeleton, open_skeleton
from compress.models.views import WeightView
from compress.planning import gradient_pass
from compress.planning.gradient_pass import _OF_LOGITS, _SMALL, gradients_memory, gradients_work
from compress.recipe.recipe import Recipe

HIDDEN, BLOCKS, LENGTH = 64, 2, 16
SIDES = sum(
    out**2 + columns**2
    for out, columns in [(64, 64), (32, 64), (32, 64), (64, 64), (128, 64), (128, 64), (64, 128)]
)


@pytest.fixture(scope="module")
def skeleton(tiny_model: Callable[..., Path]) -> Skeleton:
    return open_skeleton(open_source(tiny_model("llama")))


def of_blocks(skeleton: Skeleton) -> dict[int | None, list[WeightView]]:
    return {i: list(skeleton.block_views(i)) for i in range(len(skeleton.blocks))}


def needs_of(skeleton: Skeleton, *needs: str) -> dict[str, frozenset[str]]:
    return {view.name: frozenset(needs) for views in of_blocks(skeleton).values() for view in views}


def held(
    skeleton: Skeleton,
    *needs: str,
    samples: int = 4,
    length: int = LENGTH,
    dtype: torch.dtype = torch.float32,
) -> int:
    data: dict[str, Any] = {"name": "x", "steps": [{"quantize": {"bits": 4}}]}
    recipe = Recipe.parse({**data, "calibrate": {"samples": samples, "length": length}})
    return gradients_memory(skeleton, recipe, of_blocks(skeleton), needs_of(skeleton, *needs), {}, dtype)


def test_without_gradients_there_is_no_pass(skeleton: Skeleton) -> None:
    assert held(skeleton, "gram") == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hidden_states_of_all_blocks_have_the_dtype_of_the_gradients(
    skeleton: Skeleton, dtype: torch.dtype
) -> None:
    more, fewer = (held(skeleton, "output_gradients", samples=one, dtype=dtype) for one in (8, 4))
    assert more - fewer == 4 * LENGTH * HIDDEN * (BLOCKS + 2) * dtype.itemsize


def test_large_states_are_in_files_and_tokens_are_bounded(skeleton: Skeleton) -> None:
    few = held(skeleton, "output_gradients", samples=4, length=2048)
    state = 2048 * HIDDEN * (BLOCKS + 2) * 4
    assert held(skeleton, "output_gradients", samples=10**6, length=2048) - few == (32 - 4) * state
    assert 32 * state < 1 << 28


def test_logits_of_a_window_count_once_they_are_more_than_a_block(
    skeleton: Skeleton, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, length = 100_000, 64  # logits in larger pieces than those that are kept
    monkeypatch.setattr(gradient_pass, "vocabulary_size", lambda _: words)
    longer, shorter = (
        held(skeleton, "output_gradients", samples=1, length=one) for one in (2 * length, length)
    )
    states = length * HIDDEN * (BLOCKS + 2) * 4
    assert 4 * length * words > _SMALL
    assert longer - shorter == states + _OF_LOGITS * length * words


def test_small_pieces_are_kept_by_the_c_library(skeleton: Skeleton, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradient_pass, "vocabulary_size", lambda _: 20_000)
    pieces = 20_000 * LENGTH
    found = held(skeleton, "output_gradients", samples=1)
    monkeypatch.setattr(gradient_pass, "_SMALL", 1 << 20)
    assert found - held(skeleton, "output_gradients", samples=1) == _OF_LOGITS * pieces


def test_weight_gradients_are_held_beside_moments_of_outputs(skeleton: Skeleton) -> None:
    rows, outputs = (held(skeleton, need, samples=1) for need in ("gradient_rows", "output_gradients"))
    weights = sum(view.shape[0] * view.shape[1] for view in of_blocks(skeleton)[0])
    outs = sum(view.shape[0] for view in of_blocks(skeleton)[0])
    assert rows - outputs == 4 * weights + 2 * 4 * (outs - SIDES)


def test_directions_of_all_tokens_are_held_where_tokens_count_by_them(skeleton: Skeleton) -> None:
    alike, weighted = (held(skeleton, need) for need in ("output_gradients", "token_gradients"))
    assert weighted - alike == 12 * 4 * LENGTH * HIDDEN


def test_passes_of_the_power_iteration_are_counted(skeleton: Skeleton) -> None:
    forward, moments = 1000.0, BLOCKS * SIDES / 2
    head = 3 * HIDDEN * float(skeleton.model.get_input_embeddings().weight.shape[0])
    by_output = gradients_work(skeleton, needs_of(skeleton, "output_gradients", "gram"), forward)
    factors = gradients_work(skeleton, needs_of(skeleton, "fisher", "gram"), forward)
    rows = gradients_work(skeleton, needs_of(skeleton, "gradient_rows"), forward)
    assert by_output == rows == pytest.approx(4 * forward + head + moments)
    assert factors == pytest.approx(13 * forward + head + moments)
