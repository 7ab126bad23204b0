"""From what a run knows to its report: every weight, every byte, and the steps in their order."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from compress.calibrate.corpus import Corpus
from compress.checkpoint.journal import Entry
from compress.checkpoint.source import open_source
from compress.checkpoint.writer import Written
from compress.models.skeleton import open_skeleton
from compress.planning.make import make_plan
from compress.recipe.recipe import Recipe
from compress.report.assemble import RunFacts, assemble, describe, versions
from compress.report.schema import Report
from compress.system.monitor import Monitor, span_record

RECIPE: dict[str, Any] = {
    "name": "test",
    "calibrate": {"data": "/home/someone/texts/words.txt", "samples": 4, "length": 24},
    "steps": [
        {"quantize": {"bits": 4, "group_size": 32}, "solver": ["gptq", "coordinate_descent"]},
        {
            "targets": ["re:.*down_proj"],
            "quantize": {"bits": 8, "group_size": "channel"},
            "solver": "nearest",
        },
    ],
}


@pytest.fixture
def facts(tiny_model: Callable[..., Path]) -> RunFacts:
    skeleton = open_skeleton(open_source(tiny_model("llama")))
    monitor = Monitor(seconds={"load": 1.0, "solve": 4.0}, peaks={"setup": 5, "solve": 700}, earlier_wall=5.5)
    corpus = Corpus(torch.zeros(4, 24, dtype=torch.int64), "words", 1000, bos=True)
    plan = make_plan(skeleton, Recipe.parse(RECIPE))
    return RunFacts(skeleton, plan, corpus, torch.device("cpu"), 3, monitor, ("a note",), {"ranks": {"a": 1}})


def written(facts: RunFacts) -> Written:
    def record(name: str) -> dict[str, Any]:
        return {
            "error": 0.25,
            "error_nearest": 0.5,
            "damping": 0.01,
            "tokens": 96,
            "fallback": None,
            "info": {"gain": 0.5} if "down" in name else {},
        }

    entries = tuple(
        Entry(
            block=index,
            records={weight.name: record(weight.name) for weight in facts.plan.block(index)},
            tensors={},
            seconds={
                "load": 1.0,
                "solve": 2.0,
                "peak_bytes": float(peak),
                **span_record("solve", 5.0 * index + 1, 5.0 * index + 3),
                **span_record("read ahead", 5.0 * index, 5.0 * index + 1),
            },
        )
        for index, peak in ((0, 900), (1, 0))
    )
    entries = (*entries, Entry(block="rest", records={}, tensors={}, seconds={"solve": 100.0}))
    return Written(entries, {"model.safetensors": (1234, "ab" * 32)}, {"a tensor": "cd" * 32})


def test_every_weight_by_its_record(facts: RunFacts) -> None:
    report = assemble(facts, written(facts))
    assert [weight.name for weight in report.weights] == [weight.name for weight in facts.plan.weights]
    by_name = {weight.name: weight for weight in report.weights}
    up, down = (by_name[f"model.layers.1.mlp.{name}_proj"] for name in ("up", "down"))
    assert (up.block, up.kind, up.shape, up.error, up.tokens) == (1, "linear", (128, 64), 0.25, 96)
    assert (up.solver, up.structure) == ("gptq + coordinate_descent", "int4 group 32")
    assert (down.solver, down.structure) == ("nearest", "int8 per channel")
    assert down.info == {"gain": 0.5}
    assert up.bytes_before == 128 * 64 * 2
    assert up.bits_per_weight == pytest.approx(8 * up.bytes_after / (128 * 64))
    assert sum(weight.bytes_after for weight in report.weights) == facts.plan.weight_bytes


def test_the_run_itself(facts: RunFacts) -> None:
    report = assemble(facts, written(facts))
    assert (report.bytes.planned, report.bytes.actual) == (facts.plan.total_bytes, 1234)
    assert [(shard.file, shard.bytes) for shard in report.shards] == [("model.safetensors", 1234)]
    assert report.seed == 3
    assert report.notes == ("a note",)
    assert report.sensitivity == {"ranks": {"a": 1}}
    assert report.source.architecture == "LlamaForCausalLM"
    assert report.source.blocks == 2
    assert report.source.stored_as is None
    assert [(step.name, step.seconds, step.peak_bytes) for step in report.steps] == [
        ("load", 1.0, None),
        ("solve", 4.0, 700),
    ]
    assert report.seconds == 5.5
    assert [(block.index, block.seconds, block.peak_bytes) for block in report.blocks] == [
        (0, 3.0, 900),
        (1, 3.0, None),
    ]
    assert [list(block.spans.items()) for block in report.blocks] == [
        [("read ahead", (0.0, 1.0)), ("solve", (1.0, 3.0))],
        [("read ahead", (5.0, 6.0)), ("solve", (6.0, 8.0))],
    ]
    assert report.tensors == {"a tensor": "cd" * 32}
    assert report.plan == facts.plan.to_json()


def test_calibration_without_the_folders_of_a_person(facts: RunFacts) -> None:
    calibration = assemble(facts, written(facts)).calibration
    assert calibration is not None
    assert calibration.data == "words.txt"
    assert (calibration.samples, calibration.length, calibration.tokens, calibration.bos) == (4, 24, 96, True)
    without = RunFacts(**{**vars(facts), "corpus": None, "sensitivity": {}})
    report = assemble(without, written(facts))
    assert report.calibration is None
    assert report.sensitivity is None


def test_it_comes_back_from_its_text(facts: RunFacts) -> None:
    report = assemble(facts, written(facts))
    assert Report.model_validate_json(report.to_text()) == report


def test_versions() -> None:
    found = versions()
    assert found["torch"] == metadata.version("torch")
    assert set(found) == {"python", "compress-llm", "torch", "transformers", "safetensors"}


def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr("compress.report.assemble.metadata.version", missing)
    assert versions()["torch"] == "not installed"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": "nf4"}, "nf4"),
        ({"name": "packed", "bits": 4, "group": 32, "symmetric": True}, "int4 group 32"),
        (
            {"name": "packed", "bits": 3, "group": "channel", "symmetric": False},
            "int3 per channel, asymmetric",
        ),
        ({"name": "plain", "bits": 8, "group": "tensor"}, "int8 per tensor"),
    ],
)
def test_layouts_in_words(fields: dict[str, Any], words: str) -> None:
    layout: Any = SimpleNamespace(to_json=lambda: fields)
    assert describe(layout) == words
