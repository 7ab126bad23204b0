"""A run without data: every targeted weight is rounded to nearest and written in a given form; and a second rank."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from compress.checkpoint.source import open_source
from compress.checkpoint.writer import Writer, Written
from compress.models.skeleton import Skeleton, open_skeleton
from compress.planning.fingerprint import fingerprint
from compress.planning.make import make_plan
from compress.planning.plan import Plan
from compress.recipe.recipe import Recipe
from compress.score.statistics import Statistics
from compress.solvers.base import Problem
from compress.solvers.nearest import Nearest
from compress.system.orders import release, serve_orders
from compress.system.ranks import Ranks, joined


@dataclass(frozen=True)
class Rounded:
    """A written checkpoint, its plan, and the weights that a loader should find in it."""

    out: Path
    plan: Plan
    dense: Mapping[str, Tensor]


def recipe_of(*steps: Mapping[str, Any], **settings: Any) -> Recipe:
    """A recipe of steps such as ``{"quantize": {"bits": 4, "group_size": 16}}``."""
    return Recipe.parse({"name": "test", "steps": list(steps), **settings})


@pytest.fixture(scope="session")
def make_recipe() -> Callable[..., Recipe]:
    return recipe_of


@pytest.fixture(scope="session")
def write_rounded() -> Callable[..., Rounded]:
    """``write_rounded(model, out, recipe, format="auto")`` → :class:`Rounded`."""

    def write(
        model: Path, out: Path, recipe: Recipe, *, format: str = "auto", max_shard_size: int = 100_000
    ) -> Rounded:
        source = open_source(model)
        skeleton = open_skeleton(source)
        plan = make_plan(skeleton, recipe, format=format, max_shard_size=max_shard_size)
        dense: dict[str, Tensor] = {}
        with Writer(out, plan.shards, source=source, fingerprint=fingerprint(plan, source)) as writer:
            for index in (None, *range(len(skeleton.blocks))):
                for weight in plan.block(index):
                    original = weight.view.get(_parameter(skeleton, weight.view.parameter, index)).float()
                    problem = Problem(
                        original, weight.methods.structure, weight.methods.score.metric(NOTHING)
                    )
                    packed = Nearest().solve(problem).encode(weight.methods.structure)
                    stored = plan.exporter.save(weight, packed, writer, plan.facts)
                    dense[weight.name] = stored.dense(torch.float32)
                writer.finish_block("rest" if index is None else index, {})
            for weight in plan.weights:
                again = plan.exporter.load(weight, writer, plan.facts).dense(torch.float32)
                assert torch.equal(again, dense[weight.name]), weight.name
            writer.pass_through(plan.passed_through)
            finish(writer, source.config, plan)
        return Rounded(out, plan, dense)

    return write


NOTHING = Statistics()


def finish(writer: Writer, config: Mapping[str, Any], plan: Plan) -> None:
    """Complete the folder as the pipeline does, with as much of a report as ``verify`` reads."""
    quantization = {"quantization_config": plan.quantization_config} if plan.quantization_config else {}

    def describe(written: Written) -> dict[str, Any]:
        shards = [
            {"file": name, "bytes": size, "sha256": sha} for name, (size, sha) in written.shards.items()
        ]
        return {"plan": plan.to_json(), "shards": shards, "tensors": written.tensors}

    writer.finish(
        {**config, **quantization},
        describe,
        files=lambda report: {"compress.json": json.dumps(report)},
    )


def _parameter(skeleton: Skeleton, name: str, index: int | None) -> Tensor:
    if index is None:
        skeleton.load_rest(device="cpu", dtype=skeleton.model.dtype, head=True)
    else:
        skeleton.load_block(index, device="cpu", dtype=skeleton.model.dtype)
    return skeleton.model.get_parameter(name)


@pytest.fixture(scope="session")
def two_ranks() -> Callable[..., AbstractContextManager[Ranks]]:
    """``with two_ranks(dies=False) as ranks``: this process as the first of two."""
    return _two_ranks


def _place_of(rank: int, port: int) -> dict[str, str]:
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)} | place


def _serve(port: int, dies: bool) -> None:
    os.environ |= _place_of(1, port)
    with joined({}) as ranks:
        assert ranks is not None
        if dies:
            ranks.receive(0)
            os._exit(1)
        serve_orders(ranks, "cpu")


@contextmanager
def _two_ranks(*, dies: bool = False) -> Iterator[Ranks]:
    """This process as the first of two; the other one is forked from it, and may die over its first work."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    other = multiprocessing.get_context("fork").Process(target=_serve, args=(port, dies))
    before = dict(os.environ)
    other.start()
    os.environ |= _place_of(0, port)
    try:
        with joined({}) as ranks:
            assert ranks is not None
            try:
                yield ranks
            finally:
                release(ranks)
    finally:
        os.environ.clear()
        os.environ |= before
        other.join(60)
    assert other.exitcode == dies
