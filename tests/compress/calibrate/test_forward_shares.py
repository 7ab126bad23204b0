"""Forward passes by two processes: the hidden states of one, bit for bit, and its sums but for the order of additions."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch

import compress
from compress.calibrate import forward_shares
from compress.calibrate import stream as stream_module
from compress.calibrate.accumulate import Accumulator
from compress.calibrate.forward_shares import (
    AdvanceShare,
    ObserveShare,
    SendSum,
    SentBlock,
    Windows,
    can_deal,
    turns_of,
)
from compress.calibrate.observe import Observer
from compress.calibrate.walk import walk_blocks
from compress.checkpoint.source import open_source
from compress.errors import UserError
from compress.models.skeleton import Skeleton, open_skeleton
from compress.score.statistics import Statistics
from compress.system.orders import Place
from compress.system.ranks import Ranks

Tiny = Callable[..., Path]
TwoRanks = Callable[..., AbstractContextManager[Ranks]]


Walked = list[tuple[dict[str, Statistics], torch.Tensor]]


def _walked(model: Path, ranks: Ranks | None, *, dense: bool = False, weighed: bool = False) -> Walked:
    """By block, the statistics of its inputs and its own inputs."""
    skeleton: Skeleton = open_skeleton(open_source(model))
    tokens = torch.randint(3, 60, (5, 24), generator=torch.Generator().manual_seed(0))
    found: Walked = []
    with walk_blocks(
        skeleton, tokens, device="cpu", dtype=torch.float32, batch_size=1, dense=dense, ranks=ranks
    ) as walk:
        for index in walk:
            views = [view for view in skeleton.views if view.block == index]
            needs = {
                view.name: frozenset(
                    {"gram", "mean_abs"} | ({"cross"} if dense and view.expert is None else set())
                )
                for view in views
            }
            weights = torch.rand(5, 24, generator=torch.Generator().manual_seed(1))
            of_tokens = {view.name: weights for view in views} if weighed else None
            seen = walk.stream.observe(index, needs, token_weights=of_tokens)
            inputs = torch.cat([hidden for hidden, _ in walk.stream.inputs(index)])
            found.append((seen, inputs))
            if dense:
                walk.stream.advance_dense(index)
            for view in views:  # as if it had been compressed
                skeleton.parameter_of(view).data.mul_(0.9)
    return found


@pytest.mark.parametrize("family", ["llama", "mixtral", "gpt2"])
@pytest.mark.parametrize("options", [{}, {"dense": True}, {"weighed": True}], ids=str)
def test_two_ranks_see_what_one_sees(
    family: str, options: dict[str, bool], tiny_model: Tiny, two_ranks: TwoRanks
) -> None:
    model = tiny_model(family)
    alone = _walked(model, None, **options)
    with two_ranks() as ranks:
        together = _walked(model, ranks, **options)
    assert len(alone) == len(together) > 1
    for (one, inputs), (other, others) in zip(alone, together, strict=True):
        assert torch.equal(inputs, others)
        assert one.keys() == other.keys()
        for name, seen in one.items():
            assert seen.tokens == other[name].tokens, name
            for moment in ("gram", "mean_abs", "cross"):
                wanted, had = getattr(seen, moment), getattr(other[name], moment)
                assert (wanted is None) == (had is None)
                if wanted is not None:
                    torch.testing.assert_close(had, wanted, rtol=1e-4, atol=1e-6, msg=f"{name} {moment}")


def test_weights_of_one_input_still_share_their_statistics(tiny_model: Tiny, two_ranks: TwoRanks) -> None:
    with two_ranks() as ranks:
        seen, _ = _walked(tiny_model("llama"), ranks)[0]
    of = {name.split(".")[-1]: statistics for name, statistics in seen.items()}
    assert of["q_proj"] is of["k_proj"] is of["v_proj"]
    assert of["gate_proj"] is of["up_proj"]
    assert len({id(statistics) for statistics in of.values()}) == 4


def test_few_hidden_states_are_sent_at_once(
    tiny_model: Tiny, monkeypatch: pytest.MonkeyPatch, two_ranks: TwoRanks
) -> None:
    monkeypatch.setattr(forward_shares, "_AT_ONCE", 1)
    orders: list[Any] = []
    send = Ranks.send
    monkeypatch.setattr(
        Ranks, "send", lambda self, to, thing: (orders.append(thing), send(self, to, thing))[1]
    )
    model = tiny_model("llama")
    alone = _walked(model, None)
    with two_ranks() as ranks:
        together = _walked(model, ranks)
    for (_, inputs), (_, others) in zip(alone, together, strict=True):
        assert torch.equal(inputs, others)
    observed = [order for order in orders if isinstance(order, ObserveShare)]
    assert len(observed) == 2 * len(alone)  # batches 1 and 3 of five
    assert [order.watched is None for order in observed] == [False, True] * len(alone)
    assert sum(isinstance(order, SendSum) for order in orders) == 4 * len(alone)
    advanced = [order for order in orders if isinstance(order, AdvanceShare)]
    assert [order.block is None for order in advanced] == [False, True] * (len(alone) - 1)


def test_a_run_of_two_ranks_errs_as_one(
    tiny_model: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, two_ranks: TwoRanks
) -> None:
    monkeypatch.setitem(stream_module.BATCH_TOKENS, "cpu", 32)
    model, settings = tiny_model("llama"), {"quantize.group_size": 32}

    def run(name: str) -> list[dict[str, Any]]:
        compress.compress(
            model, "w3-gptq", tmp_path / name, samples=6, length=32, settings=settings, device="cpu"
        )
        report = json.loads((tmp_path / name / "compress.json").read_text())
        return list(report["weights"])

    alone = run("alone")
    orders: list[type] = []
    send = Ranks.send
    monkeypatch.setattr(
        Ranks, "send", lambda self, to, thing: (orders.append(type(thing)), send(self, to, thing))[1]
    )
    with two_ranks():
        together = run("together")
    with two_ranks():
        run("again")
    assert {ObserveShare, AdvanceShare, SendSum} <= set(orders)
    written = [
        {path.name: path.read_bytes() for path in (tmp_path / name).glob("*.safetensors")}
        for name in ("together", "again")
    ]
    assert written[0] == written[1]
    assert sum(w["error"] for w in together) == pytest.approx(sum(w["error"] for w in alone), rel=0.02)


def test_a_sentence_of_another_rank_is_told(
    tiny_model: Tiny, monkeypatch: pytest.MonkeyPatch, two_ranks: TwoRanks
) -> None:
    def refuse(order: ObserveShare, place: object) -> None:
        raise UserError("this block is odd")

    monkeypatch.setattr(ObserveShare, "carry_out", refuse)
    with two_ranks() as ranks, pytest.raises(UserError, match="this block is odd"):
        _walked(tiny_model("llama"), ranks)


@pytest.mark.parametrize(
    ("batches", "ranks", "nbytes"), [(5, 2, 1), (16, 2, 1 << 20), (3, 8, 1), (64, 3, 32 << 20)]
)
def test_turns_take_every_batch_once_in_order(batches: int, ranks: int, nbytes: int) -> None:
    turns = turns_of(batches, ranks, nbytes)
    assert [number for turn in turns for share in turn for number in share] == list(range(batches))
    assert all(len(turn) <= ranks and all(len(share) for share in turn) for turn in turns)
    assert all(len(share) * nbytes <= 64 << 20 for turn in turns for share in turn)


class _Says(torch.nn.Module):
    """Adds one where products are quick."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + float(torch.get_float32_matmul_precision() == "medium")


@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_products_are_as_exact_as_those_of_the_first_rank(precision: str) -> None:
    windows = Windows(torch.zeros(1, 2, 3), None, [{}], [slice(0, 1)], 0)
    order = AdvanceShare(windows, SentBlock(_Says(), None), precision)
    found = order.carry_out(Place(torch.device("cpu")))
    assert float(found.mean()) == (precision == "medium")
    assert torch.get_float32_matmul_precision() == "highest"


def test_one_process_or_one_batch_deals_nothing() -> None:
    module = torch.nn.Linear(2, 2)
    assert not can_deal(None, module, 5)
    assert not can_deal(Ranks(0, 2), module, 1)
    assert can_deal(Ranks(0, 2), module, 2)


def test_sums_of_other_inputs_are_refused(tiny_model: Tiny) -> None:
    skeleton = open_skeleton(open_source(tiny_model("llama")))
    skeleton.load_block(0, device="cpu", dtype=torch.float32)
    views = [view for view in skeleton.views if view.block == 0]
    needs = {view.name: frozenset({"gram"}) for view in views}
    observer = Observer(skeleton.block_module(0), skeleton.blocks[0], views, needs, torch.device("cpu"))
    names = [view.name for view in views]
    with pytest.raises(ValueError, match="do not see one input"):
        observer.merge(["elsewhere"], Accumulator(frozenset({"gram"}), 3))
    observer.merge(names[:1], Accumulator(frozenset({"gram"}), views[0].shape[1]))
    assert [found for found, _ in observer.sums()] == [names[:1]]
