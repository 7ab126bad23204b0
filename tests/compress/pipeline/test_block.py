"""One block: the stages, what is observed before each, the dense activations, and the records."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from compress.calibrate.walk import walk_blocks
from compress.checkpoint.source import open_source
from compress.checkpoint.writer import Writer
from compress.pipeline.block import BlockJob, _alike
from compress.pipeline.job import Job
from compress.pipeline.prepare import Prepared, prepared
from compress.pipeline.request import Request
from compress.recipe.recipe import Recipe
from compress.score.statistics import Statistics
from compress.system.monitor import Monitor
from compress.system.progress import Silent

QUANTIZE = {"bits": 2, "group_size": 32}
GPTQ = {"quantize": QUANTIZE, "solver": "gptq"}
TRUE_INPUT = {"quantize": QUANTIZE, "solver": "gptq", "true_input_target": True}


@pytest.fixture
def opened(tiny_model: Callable[..., Path], tmp_path: Path) -> Callable[..., Any]:
    """``with opened(recipe…) as (job, writer, walk)``: block 0 can be asked for from the walk."""
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 60)

    @contextmanager
    def open_it(*steps: dict[str, Any], family: str = "llama", **settings: Any) -> Iterator[Any]:
        calibrate = {"data": str(text), "samples": 4, "length": 24}
        recipe = Recipe.parse({"name": "test", "steps": list(steps), "calibrate": calibrate, **settings})
        source = open_source(tiny_model(family))
        request = Request(source, recipe, torch.device("cpu"), "fp32", 0, None, tmp_path)
        with prepared(request) as found:
            writer = Writer(tmp_path / "out", found.plan.shards, source=source, fingerprint="test")
            with writer, _walk(found) as walk:
                yield _job(found), writer, walk

    return open_it


def _job(found: Prepared) -> Job:
    return Job(
        found.skeleton,
        found.plan,
        torch.device("cpu"),
        found.dtype,
        0,
        Monitor(),
        Silent(),
        found.sensitivity,
    )


def _walk(found: Prepared) -> Any:
    assert found.corpus is not None
    return walk_blocks(
        found.skeleton,
        found.corpus.tokens,
        device="cpu",
        dtype=found.dtype,
        dense=found.plan.needs_dense,
        batch_size=2,
    )


def observed(monkeypatch: pytest.MonkeyPatch, stream: Any) -> list[tuple[set[str], dict[str, Statistics]]]:
    """Every call of ``observe``: the weights, by the last part of their names, and a copy of what came back."""
    calls: list[tuple[set[str], dict[str, Statistics]]] = []
    observe = stream.observe

    def noted(index: int, needs: Any, *, only: Any, dense_parameters: Any, **rest: Any) -> Any:
        statistics = observe(index, needs, only=only, dense_parameters=dense_parameters, **rest)
        calls.append(({name.rpartition(".")[2] for name in only}, dict(statistics)))
        return statistics

    monkeypatch.setattr(stream, "observe", noted)
    return calls


def test_all_weights_at_once(opened: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(GPTQ) as (job, writer, walk):
        calls = observed(monkeypatch, walk.stream)
        records = BlockJob(job, writer, next(iter(walk)), walk.stream).carry_out()
    assert [len(names) for names, _ in calls] == [7]
    assert sorted(records) == sorted(weight.name for weight in job.plan.block(0))
    assert all(record["tokens"] == 4 * 24 for record in records.values())


STAGES = [{"q_proj", "k_proj", "v_proj"}, {"o_proj"}, {"gate_proj", "up_proj"}, {"down_proj"}]


def test_stage_by_stage_sees_the_compressed_inputs(
    opened: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(GPTQ, true_sequential=True) as (job, writer, walk):
        index = next(iter(walk))
        name = "model.layers.0.self_attn.o_proj"
        before = walk.stream.observe(index, {name: frozenset({"gram"})})[name].gram
        calls = observed(monkeypatch, walk.stream)
        BlockJob(job, writer, index, walk.stream).carry_out()
    assert [names for names, _ in calls] == STAGES
    after = calls[1][1][name].gram
    assert not torch.allclose(after, before, rtol=1e-2)


def test_the_dense_activations_never_see_a_compressed_weight(
    opened: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(TRUE_INPUT, true_sequential=True) as (job, writer, walk):
        index = next(iter(walk))
        expected = torch.cat(list(walk.stream.run(index)))
        BlockJob(job, writer, index, walk.stream).carry_out()
        dense = torch.cat([hidden for hidden, _ in walk.stream.inputs(1, dense=True)])
        compressed = torch.cat(list(walk.stream.run(index)))
    torch.testing.assert_close(dense, expected)
    assert not torch.allclose(compressed, expected, rtol=1e-2)


@pytest.mark.parametrize(
    "solver", ["gptq", ["gptq", {"name": "signround", "iterations": 2}]], ids=["gptq", "signround"]
)
def test_what_was_written_is_in_the_block(opened: Callable[..., Any], solver: Any) -> None:
    with opened({"quantize": QUANTIZE, "solver": solver}) as (job, writer, walk):
        index = next(iter(walk))
        records = BlockJob(job, writer, index, walk.stream).carry_out()
        for weight in job.plan.block(index):
            stored = job.plan.exporter.load(weight, writer, job.plan.facts).dense(torch.float32)
            assert torch.equal(weight.view.get(job.skeleton.parameter_of(weight.view)), stored)
            assert records[weight.name]["error"] > 1e-3


def test_statistics_go_as_weights_are_solved(opened: Callable[..., Any]) -> None:
    with opened(GPTQ) as (job, writer, walk):
        index = next(iter(walk))
        block = BlockJob(job, writer, index, walk.stream)
        stage = job.plan.block(index)
        statistics = block._observe(stage, None, last=True)
        held: list[int] = []
        solve = job.solve
        noted = SimpleNamespace(
            skeleton=job.skeleton,
            plan=job.plan,
            ranks=None,
            step=job.step,
            write=job.write,
            solve=lambda weight, seen, factors: (held.append(len(seen)), solve(weight, seen, factors))[1],
        )
        block.job = noted  # type: ignore[assignment]
        block._solve_stage(stage, statistics)
    assert held == [7, 6, 5, 4, 3, 2, 1]
    assert statistics == {}


def test_a_transform_is_in_the_record(opened: Callable[..., Any]) -> None:
    with opened(
        {"quantize": QUANTIZE, "solver": "nearest", "score": "activation-diagonal"}, transforms="awq"
    ) as (
        job,
        writer,
        walk,
    ):
        records = BlockJob(job, writer, next(iter(walk)), walk.stream).carry_out()
    assert {str(record["info"]["transform"]).partition(":")[0] for record in records.values()} <= {
        "scaled",
        "unscaled",
    }


def test_weights_of_the_same_block_solvers_are_solved_together() -> None:
    first, second = ("signround",), ("lottery",)
    held: Any = [
        (SimpleNamespace(name=name, methods=SimpleNamespace(block_solvers=solvers)), None)
        for name, solvers in (("a", first), ("b", second), ("c", first))
    ]
    assert [[weight.name for weight, _ in group] for group in _alike(held)] == [["a", "c"], ["b"]]


def test_block_solvers_are_given_the_dense_weights(
    opened: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in fp32, where a weight of the problem could be the parameter itself."""
    given: dict[str, torch.Tensor] = {}

    def solve(self: Any, block: Any, starts: Any) -> Any:
        given.update({name: problem.weight.clone() for name, problem in block.problems.items()})
        return dict(starts)

    monkeypatch.setattr("compress.solvers.signround.SignRound.solve", solve)
    with opened({"quantize": QUANTIZE, "solver": ["gptq", "signround"]}) as (job, writer, walk):
        index = next(iter(walk))
        dense = {w.name: w.view.get(job.skeleton.parameter_of(w.view)).clone() for w in job.plan.block(index)}
        BlockJob(job, writer, index, walk.stream).carry_out()
    assert given.keys() == dense.keys()
    assert all(torch.equal(given[name], dense[name]) for name in dense)


def _inputs_of(job: Job, stream: Any, name: str, *, dense: bool) -> torch.Tensor:
    """The inputs of a linear module ``[tokens, in]`` when block 0 runs as it is now."""
    recorded: list[torch.Tensor] = []
    module = job.skeleton.model.get_submodule(name)
    handle = module.register_forward_pre_hook(lambda _, args: recorded.append(args[0].flatten(0, -2).clone()))
    for _ in stream.run(0, dense=dense):
        pass
    handle.remove()
    return torch.cat(recorded).double()


@pytest.mark.parametrize("name", ["self_attn.o_proj", "mlp.down_proj"])
def test_the_cross_moment_is_between_the_dense_and_the_compressed_block(
    opened: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Of every stage, also when the stages before it are compressed."""
    full = f"model.layers.0.{name}"
    with opened(TRUE_INPUT, true_sequential=True) as (job, writer, walk):
        index, stream = next(iter(walk)), walk.stream
        dense = _inputs_of(job, stream, full, dense=True)
        observe, expected, cross = stream.observe, list[torch.Tensor](), list[torch.Tensor]()

        def noted(index: int, needs: Any, *, only: Any, dense_parameters: Any, **rest: Any) -> Any:
            if full in only:
                compressed = _inputs_of(job, stream, full, dense=False)
                expected.append(dense.T @ compressed / len(dense))
            statistics = observe(index, needs, only=only, dense_parameters=dense_parameters, **rest)
            if full in only:
                cross.append(statistics[full].cross.double().clone())
            return statistics

        monkeypatch.setattr(stream, "observe", noted)
        BlockJob(job, writer, index, stream).carry_out()
    torch.testing.assert_close(cross, expected, rtol=1e-3, atol=1e-5)
