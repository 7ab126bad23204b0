"""The training of whole blocks by two processes: gradients and errors of one but for the order of additions."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

import compress
from compress.calibrate.walk import walk_blocks
from compress.checkpoint.source import open_source
from compress.checkpoint.writer import Writer
from compress.errors import UserError
from compress.models.skeleton import open_skeleton
from compress.pipeline import block_shares
from compress.pipeline.block_forward import BlockRun
from compress.pipeline.block_shares import (
    DealtTraining,
    EndTraining,
    JudgeShare,
    TrainShare,
    can_train_together,
    training_batches,
)
from compress.solvers.base import BlockProblem
from compress.system.ranks import Ranks

Tiny = Callable[..., Path]
TwoRanks = Callable[..., AbstractContextManager[Ranks]]


@pytest.fixture
def orders(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the first rank orders."""
    found: list[Any] = []
    send = Ranks.send
    monkeypatch.setattr(
        Ranks, "send", lambda self, to, thing: (found.append(thing), send(self, to, thing))[1]
    )
    return found


def _trained(
    model: Path, ranks: Ranks | None, parts: int, *, costs: bool
) -> tuple[list[Tensor], list[float]]:
    """Of a block whose weights are a little off: the gradients by its weights on two batches, and its errors."""
    skeleton = open_skeleton(open_source(model))
    tokens = torch.randint(3, 60, (5, 24), generator=torch.Generator().manual_seed(0))
    options: dict[str, Any] = {"device": "cpu", "dtype": torch.float32, "batch_size": 1, "dense": True}
    with walk_blocks(skeleton, tokens, **options) as walk:
        index = next(iter(walk))
        walk.stream.advance_dense(index)
        views = {view.name: view for view in skeleton.views if view.block == index}
        run = BlockRun(skeleton, walk.stream, index, views, parts)
        metric, weights = None, None
        if costs:
            metric = torch.diag(
                torch.rand(skeleton.model.config.hidden_size, generator=torch.Generator().manual_seed(1))
            )
            weights = list(torch.rand(5, 1, 24, generator=torch.Generator().manual_seed(2)))
        dealt = None if ranks is None else DealtTraining(ranks, run, metric, weights)
        by_batch = (
            None
            if weights is None
            else [torch.cat([weights[part] for part in run.parts_of(batch)]) for batch in range(run.batches)]
        )
        problem = BlockProblem({}, run.batches, run, metric, by_batch, dealt)
        variables = {
            name: (0.9 * view.get(skeleton.parameter_of(view)).float()).requires_grad_()
            for name, view in views.items()
        }
        errors = []
        for batch in (0, run.batches - 1):
            problem.backward(batch, {name: 1.0 * variable for name, variable in variables.items()})
            errors += problem.errors([0, batch], {name: v.detach() for name, v in variables.items()})
        if dealt is not None:
            dealt.close()
        return [v.grad for v in variables.values() if v.grad is not None], errors


@pytest.mark.parametrize("costs", [False, True])
@pytest.mark.parametrize(("family", "parts"), [("llama", 2), ("llama", 1), ("mixtral", 3)])
def test_two_ranks_take_the_gradients_of_one(
    family: str, parts: int, costs: bool, tiny_model: Tiny, orders: list[Any], two_ranks: TwoRanks
) -> None:
    model = tiny_model(family)
    gradients, errors = _trained(model, None, parts, costs=costs)
    with two_ranks() as ranks:
        others, again = _trained(model, ranks, parts, costs=costs)
    assert len(gradients) == len(others) > 6
    for one, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-6 * float(one.abs().max()))
    assert again == pytest.approx(errors, rel=1e-6)
    sent = [order for order in orders if isinstance(order, TrainShare | JudgeShare | EndTraining)]
    trained = [order for order in sent if isinstance(order, TrainShare)]
    # Of five windows the last batch of 2 is one window, that of 3 is two; a batch of one is the first rank's.
    assert [len(order.parts) for order in trained] == {1: [], 2: [1], 3: [2, 1]}[parts]
    assert sum(getattr(order, "block", None) is not None for order in sent) == 1
    assert isinstance(sent[-1], EndTraining)


def test_few_hidden_states_are_sent_at_once(
    tiny_model: Tiny, orders: list[Any], monkeypatch: pytest.MonkeyPatch, two_ranks: TwoRanks
) -> None:
    monkeypatch.setattr(block_shares, "turns_of", lambda batches, ranks, nbytes: [
        [range(n, n + 1) for n in range(start, min(start + 2, batches))] for start in range(0, batches, 2)
    ])  # fmt: skip
    _, errors = _trained(tiny_model("llama"), None, 2, costs=False)
    with two_ranks() as ranks:
        _, again = _trained(tiny_model("llama"), ranks, 2, costs=False)
    assert again == pytest.approx(errors, rel=1e-6)
    judged = [order.thetas is not None for order in orders if isinstance(order, JudgeShare)]
    assert judged == [True, False, True]


@pytest.mark.parametrize("recipe", ["signround", "reconstruct"])
def test_a_run_of_two_ranks_trains_as_one_and_continued_writes_the_same_bytes(
    recipe: str,
    tiny_model: Tiny,
    tmp_path: Path,
    orders: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    two_ranks: TwoRanks,
) -> None:
    solver = ["gptq", {"name": "signround", "iterations": 20, "tokens": 64}]
    step = {"targets": ["linear"], "quantize": {"bits": 2, "group_size": 32}, "solver": solver}
    if recipe == "reconstruct":
        solver = ["awp", {"name": "reconstruct", "steps": 20, "tokens": 64}]
        step = {"targets": ["linear"], "prune": {"sparsity": 0.5}, "solver": solver}
    recipes = {"name": "test", "steps": [step]}

    def run(name: str) -> list[dict[str, Any]]:
        compress.compress(tiny_model("llama"), recipes, tmp_path / name, samples=8, length=32, device="cpu")
        return list(json.loads((tmp_path / name / "compress.json").read_text())["weights"])

    alone = run("alone")
    with two_ranks():
        together = run("together")
    finish_block, finished = Writer.finish_block, list[Any]()

    def stops(self: Writer, block: Any, *rest: Any) -> None:
        if finished:
            raise KeyboardInterrupt
        finished.append(block)
        finish_block(self, block, *rest)

    with monkeypatch.context() as broken, two_ranks():
        broken.setattr(Writer, "finish_block", stops)
        with pytest.raises(KeyboardInterrupt):
            run("again")
    with two_ranks():
        run("again")
    assert any(isinstance(order, TrainShare) for order in orders)
    written = [
        {path.name: path.read_bytes() for path in (tmp_path / name).glob("*.safetensors")}
        for name in ("together", "again")
    ]
    assert written[0] == written[1]
    assert sum(w["error"] for w in together) == pytest.approx(sum(w["error"] for w in alone), rel=0.02)


def test_what_goes_wrong_elsewhere_is_told(
    tiny_model: Tiny, monkeypatch: pytest.MonkeyPatch, two_ranks: TwoRanks
) -> None:
    def refuse(order: TrainShare, place: object) -> None:
        raise UserError("this block is odd")

    monkeypatch.setattr(TrainShare, "carry_out", refuse)
    with two_ranks() as ranks, pytest.raises(UserError, match="this block is odd"):
        _trained(tiny_model("llama"), ranks, 2, costs=False)


def test_a_rank_that_dies_is_a_sentence(tiny_model: Tiny, two_ranks: TwoRanks) -> None:
    with two_ranks(dies=True) as ranks, pytest.raises(UserError, match="rank 1 of 2 ended before its work"):
        _trained(tiny_model("llama"), ranks, 2, costs=False)


@pytest.mark.parametrize(
    ("tokens", "windows", "size", "expected"),
    [
        (2048, (64, 512), None, (4, 1)),
        (2048, (64, 512), 2, (2, 2)),
        (2048, (64, 512), 3, (1, 4)),
        (2048, (64, 2048), 2, (1, 1)),
        (
            2048,
            (4, 512),
            2,
            (4, 1),
        ),  # one batch: all is the first rank's, and its bytes are those of one process
        (0, (64, 512), 2, (None, 1)),
    ],
)
def test_a_batch_of_training_is_divided(
    tokens: int, windows: tuple[int, int], size: int | None, expected: tuple[int | None, int]
) -> None:
    solvers = (SimpleNamespace(tokens=tokens),) if tokens else ()
    weight = SimpleNamespace(methods=SimpleNamespace(block_solvers=solvers))
    plan: Any = SimpleNamespace(weights=[weight], economy=SimpleNamespace(windows=None))
    assert training_batches(plan, windows, None if size is None else Ranks(0, size)) == expected


def test_code_of_a_checkpoint_trains_here(tiny_model: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    skeleton = open_skeleton(open_source(tiny_model("llama")))
    tokens = torch.zeros(3, 8, dtype=torch.int64)
    with walk_blocks(skeleton, tokens, device="cpu", dtype=torch.float32, batch_size=1) as walk:
        index = next(iter(walk))
        assert can_train_together(walk.stream, index)
        monkeypatch.setattr(LlamaDecoderLayer, "__module__", "transformers_modules.x")
        assert not can_train_together(walk.stream, index)
