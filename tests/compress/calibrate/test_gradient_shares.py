"""Gradients by two processes: the sums of one but for the order of additions."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from compress.calibrate import gradients
from compress.calibrate.forward_shares import AdvanceShare
from compress.calibrate.gradient_shares import GatherShare, Shared, alone, shares_of
from compress.calibrate.gradients import BlockGradients, backward
from compress.calibrate.kfac import gradient_statistics
from compress.checkpoint.source import open_source
from compress.errors import UserError
from compress.models.skeleton import open_skeleton
from compress.system.precision import products_of
from compress.system.ranks import Ranks

Tiny = Callable[..., Path]
TwoRanks = Callable[..., AbstractContextManager[Ranks]]
NEEDS = frozenset({"squared_gradient", "gradient_rows", "fisher", "token_gradients"})
MOMENTS = (
    "squared_gradient", "gradient_rows", "fisher_left", "fisher_right", "output_gradient_gram", "dense_gram", "token_weights",
)  # fmt: skip


def tokens(count: int) -> Tensor:
    return torch.randint(2, 256, (count, 24), generator=torch.Generator().manual_seed(0))


def _moments(
    folder: Path, gather: Any, windows: int, rows: int, ranks: Ranks | None = None
) -> dict[str, Any]:
    skeleton = open_skeleton(open_source(folder))
    found: dict[str, Any] = {}
    with backward(skeleton, tokens(windows), labels="data", rows=rows, ranks=ranks) as blocks:
        for block in blocks:
            views = skeleton.block_views(block.index)
            found |= gradient_statistics(block, views, {view.name: NEEDS for view in views}, gather)
            found[f"outputs of {block.index}"] = block.at_outputs.clone()
    return found


@pytest.mark.parametrize(
    ("family", "windows", "rows", "products"),
    [
        ("llama", 5, 2, "highest"),
        ("mixtral", 3, 1, "highest"),
        ("gpt2", 2, 1, "highest"),
        ("llama", 4, 1, "medium"),
    ],
)
def test_two_processes_sum_what_one_does(
    family: str,
    windows: int,
    rows: int,
    products: str,
    tiny_model: Tiny,
    monkeypatch: pytest.MonkeyPatch,
    two_ranks: TwoRanks,
) -> None:
    folder = tiny_model(family)
    monkeypatch.setattr(gradients, "quick_products", partial(products_of, products))
    expected = _moments(folder, alone, windows, rows)
    advanced: list[str] = []
    send = Ranks.send

    def seen(self: Ranks, to: int, thing: Any) -> None:
        if isinstance(thing, AdvanceShare):
            advanced.append(thing.precision)
        send(self, to, thing)

    monkeypatch.setattr(Ranks, "send", seen)
    with two_ranks() as ranks:
        found = _moments(folder, Shared(ranks), windows, rows, ranks)
    assert advanced == [products] * 2
    assert found.keys() == expected.keys()
    for name, one in expected.items():
        other = found[name]
        if isinstance(one, Tensor):
            # No sum goes into the gradients that are carried from block to block.
            assert torch.equal(other, one), name
            continue
        for moment in MOMENTS:
            values = getattr(one, moment)
            assert (getattr(other, moment) is None) == (values is None), (name, moment)
            if values is not None:
                error = (getattr(other, moment) - values).norm() / values.norm().clamp_min(1e-30)
                assert float(error) < 1e-5, (name, moment)


def test_a_block_is_sent_once_and_every_batch_is_somebodys(
    tiny_model: Tiny, monkeypatch: pytest.MonkeyPatch, two_ranks: TwoRanks
) -> None:
    sent: list[GatherShare] = []
    send, backwards = Ranks.send, list[int]()

    def seen(self: Ranks, to: int, thing: Any) -> None:
        if isinstance(thing, GatherShare):
            sent.append(thing)
        send(self, to, thing)

    monkeypatch.setattr(Ranks, "send", seen)
    counted = BlockGradients.walked.fget

    def walked(self: BlockGradients) -> Any:
        block = counted(self)  # type: ignore[misc]
        backwards.append(len(block.carried))
        return block

    with two_ranks() as ranks:
        monkeypatch.setattr(BlockGradients, "walked", property(walked))
        _moments(tiny_model("llama"), Shared(ranks), 5, 1)
    # Two blocks of four passes by weight and one by output; the first brings the inputs' gradients of all batches.
    assert [order.block is not None for order in sent] == [True, False, False, False, False] * 2
    assert backwards == [0, 5, 5, 5, 5] * 2
    assert [len(order.block.batches) for order in sent if order.block is not None] == [3, 3]


def test_what_another_rank_finds_is_refused_here(
    tiny_model: Tiny, monkeypatch: pytest.MonkeyPatch, two_ranks: TwoRanks
) -> None:
    def refuse(self: GatherShare, place: object) -> None:
        raise UserError("the gradients of x are not finite")

    monkeypatch.setattr(GatherShare, "carry_out", refuse)
    with two_ranks() as ranks, pytest.raises(UserError, match="the gradients of x are not finite"):
        _moments(tiny_model("llama"), Shared(ranks), 4, 1)


def test_shares_are_everything_once() -> None:
    for ranks in (1, 2, 3, 7):
        shares = shares_of(5, ranks)
        assert [number for share in shares for number in share] == [0, 1, 2, 3, 4]
        assert len(shares) == min(ranks, 5)
        assert all(len(share) >= 1 for share in shares)


def test_code_of_a_checkpoint_stays_here(tiny_model: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LlamaDecoderLayer, "__module__", "transformers_modules.x")
    folder = tiny_model("llama")
    # No connection: nothing may be sent.
    found = _moments(folder, Shared(Ranks(0, 2)), 2, 1)
    assert found.keys() == _moments(folder, alone, 2, 1).keys()
