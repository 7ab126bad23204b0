"""Weights dealt out to ranks: the bytes of one process, and one sentence for whatever ends early."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import compress
from compress.calibrate import gradient_store, stream
from compress.calibrate.gradient_shares import GatherShare
from compress.checkpoint.source import open_source
from compress.checkpoint.writer import Writer
from compress.errors import UserError
from compress.models.skeleton import open_skeleton
from compress.pipeline import preparation, prepare
from compress.pipeline.dealing import Tasks, check_work, deal
from compress.planning.make import make_plan
from compress.recipe.recipe import Recipe
from compress.score.statistics import Statistics
from compress.system.ranks import Ranks

Tiny = Callable[..., Path]
TwoRanks = Callable[..., AbstractContextManager[Ranks]]
SETTINGS = {"quantize.group_size": 32}


def _compress(model: Path, out: Path, recipe: str, **settings: Any) -> dict[str, bytes]:
    changes = {**SETTINGS, **settings}
    compress.compress(model, recipe, out, samples=4, length=32, settings=changes, device="cpu")
    return {path.name: path.read_bytes() for path in out.glob("*.safetensors")}


@pytest.mark.parametrize(
    ("family", "recipe"),
    [
        ("llama", "w4-rtn"),
        ("llama", "w4-gptq"),
        ("llama", "w3-adaround"),
        ("mixtral", "w4-gptq"),
        ("llama", "w4a4-quarot"),
        ("llama", "w4-awq"),
        ("llama", "w2-signround"),
    ],
)
def test_two_ranks_write_the_bytes_of_one(
    family: str,
    recipe: str,
    tiny_model: Tiny,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    two_ranks: TwoRanks,
) -> None:
    model = tiny_model(family)
    settings = {"steps.0.quantize.group_size": 32} if recipe == "w4a4-quarot" else SETTINGS
    monkeypatch.setitem(globals(), "SETTINGS", settings)
    alone = _compress(model, tmp_path / "alone", recipe)
    sent: list[int] = []
    with two_ranks() as ranks:
        send = Ranks.send
        monkeypatch.setattr(
            Ranks,
            "send",
            lambda self, to, thing: (sent.append(len(getattr(thing, "tasks", ()))), send(self, to, thing))[1],
        )
        assert ranks.size == 2
        together = _compress(model, tmp_path / "together", recipe)
    assert together == alone
    assert sum(sent) >= 2 * 2
    reports = [json.loads((tmp_path / name / "compress.json").read_text()) for name in ("alone", "together")]
    assert reports[0]["weights"] == reports[1]["weights"]


@pytest.mark.parametrize(("family", "recipe"), [("llama", "best-w3"), ("mixtral", "sparse50-awp")])
def test_two_ranks_share_gradients(
    family: str,
    recipe: str,
    tiny_model: Tiny,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    two_ranks: TwoRanks,
) -> None:
    model = tiny_model(family)
    monkeypatch.setitem(globals(), "SETTINGS", {"steps.0.quantize.group_size": 32} if "w3" in recipe else {})
    _compress(model, tmp_path / "alone", recipe)
    orders: list[type] = []
    send = Ranks.send
    monkeypatch.setattr(
        Ranks, "send", lambda self, to, thing: (orders.append(type(thing)), send(self, to, thing))[1]
    )
    with two_ranks():
        _compress(model, tmp_path / "together", recipe)
    assert orders.count(GatherShare) == 2
    assert Tasks in orders
    one, other = (
        json.loads((tmp_path / name / "compress.json").read_text())["weights"]
        for name in ("alone", "together")
    )
    assert [weight["name"] for weight in other] == [weight["name"] for weight in one]
    # Of single weights that hardly err, another choice between two as good is a large share.
    assert sum(weight["error"] for weight in other) == pytest.approx(
        sum(weight["error"] for weight in one), rel=0.02
    )


def test_a_rank_that_dies_leaves_an_output_that_goes_on(
    tiny_model: Tiny, tmp_path: Path, two_ranks: TwoRanks
) -> None:
    model = tiny_model("llama")
    alone = _compress(model, tmp_path / "alone", "w4-gptq")
    with two_ranks(dies=True), pytest.raises(UserError, match="rank 1 of 2 ended before its work was done"):
        _compress(model, tmp_path / "out", "w4-gptq")
    assert not (tmp_path / "out").exists()
    assert _compress(model, tmp_path / "out", "w4-gptq") == alone


# Recipe → its settings, and what is interrupted.
INTERRUPTED: dict[str, tuple[str, dict[str, Any], tuple[Any, str]]] = {
    "after a block": ("w3-gptq", SETTINGS, (Writer, "finish_block")),
    "after a trained block": ("w2-signround", SETTINGS, (Writer, "finish_block")),
    "within the gradients": (
        "best-w3",
        {"steps.0.quantize.group_size": 32},
        (gradient_store, "block_output_moments"),
    ),
    "after gradients and a block": ("best-w3", {"steps.0.quantize.group_size": 32}, (Writer, "finish_block")),
}


@pytest.mark.parametrize("where", INTERRUPTED)
def test_a_continued_run_of_two_ranks_writes_the_bytes_of_an_unbroken_one(
    where: str, tiny_model: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, two_ranks: TwoRanks
) -> None:
    recipe, settings, (owner, name) = INTERRUPTED[where]
    monkeypatch.setitem(globals(), "SETTINGS", settings)
    monkeypatch.setitem(stream.BATCH_TOKENS, "cpu", 32)
    model, calls = tiny_model("llama"), list[int]()
    with two_ranks():
        unbroken = _compress(model, tmp_path / "unbroken", recipe)
    real = getattr(owner, name)

    def second_time(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    with monkeypatch.context() as broken, two_ranks():
        broken.setattr(owner, name, second_time)
        with pytest.raises(KeyboardInterrupt):
            _compress(model, tmp_path / "out", recipe)
    assert not (tmp_path / "out").exists()
    with two_ranks():
        assert _compress(model, tmp_path / "out", recipe) == unbroken


def test_more_ranks_than_work_are_refused_before_gradients(
    tiny_model: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "current_ranks", lambda: Ranks(0, 9))
    monkeypatch.setattr(
        preparation, "sensitivity_pass", lambda *args, **kwargs: pytest.fail("gradients were taken")
    )
    monkeypatch.setitem(globals(), "SETTINGS", {"steps.0.quantize.group_size": 32})
    with pytest.raises(UserError, match="9 ranks are more than the 7 weights that a block has to solve"):
        _compress(tiny_model("llama"), tmp_path / "out", "best-w3")


def test_a_sentence_of_another_rank_is_told(
    tiny_model: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, two_ranks: TwoRanks
) -> None:
    def refuse(tasks: Tasks, place: object) -> None:
        raise UserError("this weight is odd")

    monkeypatch.setattr(Tasks, "carry_out", refuse)
    with two_ranks(), pytest.raises(UserError, match="this weight is odd"):
        _compress(tiny_model("llama"), tmp_path / "out", "w4-gptq")


def _plan(folder: Path, solver: Any = "gptq") -> Any:
    step = {"quantize": {"bits": 4, "group_size": 32}, "solver": solver}
    return make_plan(open_skeleton(open_source(folder)), Recipe.parse({"name": "x", "steps": [step]}))


def test_more_ranks_than_work(tiny_model: Tiny) -> None:
    plan = _plan(tiny_model("llama"))
    check_work(plan, None)
    check_work(plan, Ranks(0, 7))
    with pytest.raises(UserError, match="8 ranks are more than the 7 weights that a block has to solve"):
        check_work(plan, Ranks(0, 8))
    with pytest.raises(UserError, match="run it in one process"):
        check_work(replace(plan, weights=plan.weights[:1]), Ranks(0, 2))


def test_shares_are_even_and_keep_inputs_together(tiny_model: Tiny) -> None:
    weights = _plan(tiny_model("llama")).block(0)
    seen = {input: Statistics(tokens=place) for place, input in enumerate(("qkv", "o", "up", "down"))}
    roles = {"q": "qkv", "k": "qkv", "v": "qkv", "o": "o", "gate": "up", "up": "up", "down": "down"}
    statistics = {w.name: seen[roles[w.name.split(".")[-1].removesuffix("_proj")]] for w in weights}
    shares = deal(weights, statistics, 2)
    assert sorted(w.name for share in shares for w in share) == sorted(w.name for w in weights)
    for input in seen.values():
        assert sum(any(statistics[w.name] is input for w in share) for share in shares) == 1
    costs = [sum(w.numel * w.view.shape[1] for w in share) for share in shares]
    assert max(costs) <= 2 * min(costs)
    assert all(len(share) == 1 for share in deal(weights, statistics, 7))


def test_torchrun(tiny_model: Tiny, tmp_path: Path) -> None:
    model = tiny_model("llama")
    alone = _compress(model, tmp_path / "alone", "w4-gptq")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = ["-m", "compress_cli", "run", str(model), "-r", "w4-gptq", "-o", str(tmp_path / "out")]
    options = ["--samples", "4", "--length", "32", "--set", "quantize.group_size=32", "--device", "cpu"]
    done = subprocess.run(
        [*torchrun, *command, *options, "--no-fresh-process"], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("is written and verified") == 1
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.safetensors")} == alone
