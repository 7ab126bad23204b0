"""Which blocks go: by the angle they turn the hidden states, and by the loss without them, both against whole models."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from compress.checkpoint.source import open_source
from compress.errors import UserError
from compress.models.skeleton import Skeleton, open_skeleton
from compress.prune.depth import choose_blocks

FP32: dict[str, Any] = {"device": "cpu", "dtype": torch.float32}


@pytest.fixture
def folder(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("llama", num_hidden_layers=4, initializer_range=0.3)


@pytest.fixture
def skeleton(folder: Path) -> Skeleton:
    return open_skeleton(open_source(folder))


def token_ids() -> Tensor:
    return torch.randint(2, 256, (5, 24), generator=torch.Generator().manual_seed(0))


def whole(folder: Path, kept: tuple[int, ...] = (0, 1, 2, 3)) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.model.layers = nn.ModuleList([model.model.layers[index] for index in kept])
    return model


def angles_of(folder: Path) -> list[float]:
    """The mean angle between input and output of each block, from the whole model in float64."""
    model = whole(folder)
    angles: list[float] = []

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        after = (output if isinstance(output, Tensor) else output[0]).double()
        before = args[0].double()
        cosine = (before * after).sum(-1) / before.norm(dim=-1) / after.norm(dim=-1)
        angles.append(float(torch.arccos(cosine).mean() / math.pi))

    for block in model.model.layers:
        block.register_forward_hook(hook)
    with torch.no_grad():
        model(token_ids(), use_cache=False)
    return angles


def loss_without(folder: Path, dropped: tuple[int, ...]) -> float:
    model = whole(folder, tuple(index for index in range(4) if index not in dropped))
    with torch.no_grad():
        logits = model(token_ids(), use_cache=False).logits[:, :-1]
    return float(nn.functional.cross_entropy(logits.flatten(0, 1), token_ids()[:, 1:].flatten()))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_by_angle(folder: Path, skeleton: Skeleton, count: int) -> None:
    angles = angles_of(folder)
    expected = sorted(sorted(range(4), key=lambda index: angles[index])[:count])
    assert choose_blocks(skeleton, token_ids(), count, "angle", **FP32) == tuple(expected)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_by_loss_one_after_the_other(folder: Path, skeleton: Skeleton, count: int) -> None:
    expected: tuple[int, ...] = ()
    for size in range(1, count + 1):
        candidates = [c for c in combinations(range(4), size) if set(expected) <= set(c)]
        expected = min(candidates, key=lambda dropped: loss_without(folder, dropped))
    assert choose_blocks(skeleton, token_ids(), count, "loss", **FP32) == expected
    assert all(parameter.is_meta for parameter in skeleton.model.parameters())


def test_the_two_rules_differ_here(skeleton: Skeleton) -> None:
    """Otherwise one could stand in for the other in these tests."""
    chosen = {
        by: [choose_blocks(skeleton, token_ids(), count, by, **FP32) for count in (1, 2, 3)]
        for by in ("angle", "loss")
    }
    assert chosen["angle"] != chosen["loss"]


@pytest.mark.parametrize("count", [4, 5])
def test_not_all_blocks_can_go(skeleton: Skeleton, count: int) -> None:
    with pytest.raises(UserError, match=f"{count} of 4 blocks"):
        choose_blocks(skeleton, token_ids(), count, "angle", **FP32)
