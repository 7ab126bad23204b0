"""One run: what it is known by, what is taken over from an earlier one, and what an exception leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from compress.api import compress
from compress.checkpoint.read_ahead import ReadAhead
from compress.checkpoint.source import open_source
from compress.checkpoint.writer import Writer
from compress.pipeline import block as block_module
from compress.pipeline.job import Job
from compress.pipeline.prepare import Prepared, prepared
from compress.pipeline.request import Request
from compress.pipeline.run import Run
from compress.planning.fingerprint import fingerprint
from compress.recipe.recipe import Recipe
from compress.system.monitor import Monitor
from compress.system.progress import Silent

GPTQ = {"quantize": {"bits": 4, "group_size": 32}, "solver": "gptq"}
ROUNDED = {"quantize": {"bits": 4, "group_size": 32}}


class Recorder(Silent):
    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def start(self, total_blocks: int, total_weights: int, total_bytes: int) -> None:
        self.calls.append(("start", (total_blocks, total_weights, total_bytes)))

    def block(self, index: int) -> None:
        self.calls.append(("block", index))

    def weight(self, name: str, nbytes: int) -> None:
        self.calls.append(("weight", (name, nbytes)))

    def note(self, text: str) -> None:
        self.calls.append(("note", text))

    def finish(self) -> None:
        self.calls.append(("finish", None))

    def of(self, kind: str) -> list[Any]:
        return [value for name, value in self.calls if name == kind]


@pytest.fixture
def ready(tiny_model: Callable[..., Path], tmp_path: Path) -> Callable[..., Any]:
    """``with ready(step, …)`` → what is prepared of a run of those steps on a tiny model."""
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 60)

    @contextmanager
    def open_it(*steps: dict[str, Any], family: str = "llama", **settings: Any) -> Iterator[Prepared]:
        calibrate = {"data": str(text), "samples": 4, "length": 24}
        recipe = Recipe.parse({"name": "test", "steps": list(steps), "calibrate": calibrate, **settings})
        source = open_source(tiny_model(family))
        request = Request(source, recipe, torch.device("cpu"), "fp32", 0, None, tmp_path)
        with prepared(request) as result:
            yield result

    return open_it


def run_of(found: Prepared, progress: Silent | None = None, **changes: Any) -> Run:
    job = Job(
        found.skeleton,
        found.plan,
        torch.device("cpu"),
        found.dtype,
        0,
        Monitor(),
        progress or Silent(),
        found.sensitivity,
    )
    return Run(replace(job, **changes), found.corpus)


def writer_of(found: Prepared, run: Run, out: Path) -> Writer:
    source = found.skeleton.source
    return Writer(
        out, found.plan.shards, source=source, fingerprint=fingerprint(found.plan, source, **run.identity())
    )


def test_what_decides_the_bytes(ready: Callable[..., Any]) -> None:
    with ready(GPTQ) as found:
        identity = run_of(found).identity()
        assert identity == run_of(found).identity()
        for changes in ({"dtype": torch.bfloat16}, {"device": torch.device("meta")}, {"seed": 1}):
            assert run_of(found, **changes).identity() != identity
        other = replace(found.corpus, tokens=found.corpus.tokens + 1)
        assert Run(run_of(found).job, other).identity()["tokens"] != identity["tokens"]
        assert Run(run_of(found).job, None).identity()["tokens"] != identity["tokens"]


def test_listeners_hear_of_every_block_and_weight(ready: Callable[..., Any], tmp_path: Path) -> None:
    listener = Recorder()
    with ready(GPTQ) as found:
        run = run_of(found, listener)
        with writer_of(found, run, tmp_path / "out") as writer:
            run.carry_out(writer)
    assert listener.of("block") == [0, 1]
    ((blocks, weights, nbytes),) = listener.of("start")
    assert (blocks, weights) == (2, 14)
    assert (
        sum(size for _, size in listener.of("weight"))
        == nbytes
        == 2 * sum(w.numel for w in found.plan.weights)
    )
    assert sorted(name for name, _ in listener.of("weight")) == sorted(w.name for w in found.plan.weights)
    assert listener.calls[-1] == ("finish", None)
    assert len(listener.of("finish")) == 1


@pytest.mark.parametrize("step", [GPTQ, ROUNDED])
def test_finished_blocks_are_not_solved_again(
    ready: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: dict[str, Any]
) -> None:
    carry_out, solved = block_module.BlockJob.carry_out, list[int]()

    def counted(self: Any) -> Any:
        if self.index == stop:
            raise RuntimeError("killed")
        solved.append(self.index)
        return carry_out(self)

    monkeypatch.setattr("compress.pipeline.run.BlockJob.carry_out", counted)
    with ready(step) as found:
        for stop, out in ((1, "out"), (None, "out"), (None, "unbroken")):
            listener = Recorder()
            run = run_of(found, listener)
            if stop is not None:
                with (
                    pytest.raises(RuntimeError, match="killed"),
                    writer_of(found, run, tmp_path / out) as writer,
                ):
                    run.carry_out(writer)
                assert all(parameter.is_meta for parameter in found.skeleton.model.parameters())
            else:
                with writer_of(found, run, tmp_path / out) as writer:
                    run.carry_out(writer)
                assert len(listener.of("weight")) == 14
            assert listener.calls[-1] == ("finish", None)
    assert solved == [0, 1, 0, 1]
    first, second = ((tmp_path / out / "model.safetensors").read_bytes() for out in ("out", "unbroken"))
    assert first == second


def test_a_last_block_that_is_finished_is_not_loaded(
    ready: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ready(GPTQ) as found:
        run = run_of(found)
        monkeypatch.setattr(Run, "_finish", lambda self, writer: 1 / 0)
        with pytest.raises(ZeroDivisionError), writer_of(found, run, tmp_path / "out") as writer:
            run.carry_out(writer)
        loaded: list[int] = []
        load = found.skeleton.load_block
        monkeypatch.setattr(
            found.skeleton,
            "load_block",
            lambda index, **options: (loaded.append(index), load(index, **options)),
        )
        with pytest.raises(ZeroDivisionError), writer_of(found, run, tmp_path / "out") as writer:
            run.carry_out(writer)
    assert loaded == [0]


def test_weights_outside_the_blocks_come_first(ready: Callable[..., Any], tmp_path: Path) -> None:
    listener = Recorder()
    head = {"targets": ["lm_head"], "quantize": {"bits": 8, "group_size": "channel"}}
    with ready(GPTQ, head) as found:
        run = run_of(found, listener)
        with writer_of(found, run, tmp_path / "out") as writer:
            run.carry_out(writer)
    assert listener.of("weight")[0][0] == "lm_head"
    assert listener.calls.index(("weight", listener.of("weight")[0])) < listener.calls.index(("block", 0))


def test_a_failure_outside_the_blocks_frees_them(
    ready: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **options: Any) -> Any:
        raise RuntimeError("stop")

    monkeypatch.setattr(Job, "solve", broken)
    with ready({"targets": ["lm_head"], "quantize": {"bits": 8, "group_size": "channel"}}) as found:
        run = run_of(found)
        with pytest.raises(RuntimeError, match="stop"), writer_of(found, run, tmp_path / "out") as writer:
            run.carry_out(writer)
        assert all(parameter.is_meta for parameter in found.skeleton.model.parameters())


@pytest.mark.parametrize(("tokens", "rows"), [(None, None), (48, 2), (10, 1), (1000, 41)])
def test_block_solvers_choose_the_batch(
    ready: Callable[..., Any], tokens: int | None, rows: int | None
) -> None:
    block = {**GPTQ, "solver": ["gptq", {"name": "signround", "tokens": tokens}]} if tokens else GPTQ
    with ready(block) as found:
        assert run_of(found)._batch_size(found.corpus) == rows


def test_the_next_block_is_read_while_this_one_is_solved(
    ready: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[tuple[str, int]] = []
    carry_out = block_module.BlockJob.carry_out

    def solved(self: Any) -> Any:
        events.append(("solve", self.index))
        if self.index == stop:
            raise RuntimeError("killed")
        return carry_out(self)

    monkeypatch.setattr("compress.pipeline.run.BlockJob.carry_out", solved)
    with ready(ROUNDED) as found:
        skeleton = found.skeleton
        of_block = [skeleton.block_on_disk(index) for index in range(2)]
        begin, load = ReadAhead.begin, skeleton.load_block

        def begun(self: Any, tensors: Any) -> None:
            events.append(("read", of_block.index(list(tensors))))
            begin(self, tensors)

        monkeypatch.setattr(ReadAhead, "begin", begun)
        monkeypatch.setattr(
            skeleton, "load_block", lambda index, **how: (events.append(("load", index)), load(index, **how))
        )
        stop = 1
        run = run_of(found)
        with pytest.raises(RuntimeError, match="killed"), writer_of(found, run, tmp_path / "out") as writer:
            run.carry_out(writer)
        assert events == [("read", 0), ("read", 1), ("load", 0), ("solve", 0), ("load", 1), ("solve", 1)]
        # What is finished and needed by nobody is not read again.
        events.clear()
        stop = 2
        run = run_of(found)
        with writer_of(found, run, tmp_path / "out") as writer:
            run.carry_out(writer)
        assert events == [("read", 1), ("load", 1), ("solve", 1)]


def test_a_continued_run_has_one_timeline(
    tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = Writer.finish_block

    def killed(self: Writer, block: Any, *args: Any) -> None:
        finish(self, block, *args)
        if block == 0:
            raise KeyboardInterrupt

    recipe = {"name": "test", "steps": [ROUNDED]}
    with monkeypatch.context() as patch:
        patch.setattr(Writer, "finish_block", killed)
        with pytest.raises(KeyboardInterrupt):
            compress(tiny_model("llama"), recipe, tmp_path / "out", device="cpu")
    report = compress(tiny_model("llama"), recipe, tmp_path / "out", device="cpu").report
    first, second = (block.spans for block in report.blocks)
    for spans in (first, second):
        assert {"read ahead", "wait", "load", "solve", "write", "write behind"} <= spans.keys()
        assert all(0 <= start <= end <= report.seconds for start, end in spans.values())
        assert spans["read ahead"][1] <= spans["load"][0] <= spans["solve"][0] <= spans["write behind"][0]
    assert first["solve"][1] <= second["load"][0]
    steps = {step.name: step.seconds for step in report.steps}
    assert 0 < steps["wait"] < report.seconds
    assert sum(steps.values()) <= report.seconds
