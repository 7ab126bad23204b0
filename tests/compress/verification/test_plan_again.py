"""The plan of a written checkpoint from its report: the same as that of the run, refused where the report is damaged."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compress.api import compress
from compress.checkpoint.source import open_source
from compress.errors import UserError
from compress.models.skeleton import open_skeleton
from compress.pipeline.run import Result
from compress.prune.block_removal import without_blocks
from compress.recipe.recipe import Recipe
from compress.verification.plan_again import plan_again, width_pruned_source

STEPS: dict[str, dict[str, Any]] = {
    "rounded": {"steps": [{"quantize": {"bits": 4, "group_size": 32}}]},
    "ranks": {
        "steps": [
            {
                "lowrank": {"ratio": 0.6, "allocate": "truncation", "share": True},
                "solver": "weighted_svd",
                "score": "activation",
            }
        ]
    },
    "sparsities": {"steps": [{"prune": {"sparsity": 0.5, "allocate": "owl"}, "solver": "wanda"}]},
    "depth": {"depth_pruning": {"blocks": 1}},
    "width": {"width_pruning": {"neurons": 0.5}},
    "depth and width": {
        "depth_pruning": {"blocks": 1},
        "width_pruning": {"neurons": 0.5},
        "steps": [{"quantize": {"bits": 4, "group_size": 32}}],
    },
}


@pytest.fixture(scope="module")
def written(
    tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, Result]]:
    """Case → the source and the result of its run."""
    folder = tmp_path_factory.mktemp("again")
    (folder / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 60)
    calibrate = {"data": str(folder / "text.txt"), "samples": 4, "length": 24}
    source, results = tiny_model("llama"), dict[str, Result]()

    def write(case: str) -> tuple[Path, Result]:
        if case not in results:
            recipe = Recipe.parse({"name": "test", "calibrate": calibrate, **STEPS[case]})
            results[case] = compress(source, recipe, folder / case, device="cpu")
        return source, results[case]

    return write


def report_of(result: Result) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((result.out / "compress.json").read_text())
    return data


@pytest.mark.parametrize("case", STEPS)
def test_the_plan_of_the_run(case: str, written: Callable[[str], tuple[Path, Result]]) -> None:
    path, result = written(case)
    report, source = report_of(result), open_source(path)
    if dropped := report["plan"]["dropped"]:
        source = without_blocks(open_skeleton(source), dropped)
    if record := report["plan"]["width_pruned"]:
        source = width_pruned_source(result.out, report, source, record)
    again = plan_again(result.out, report, source).to_json()
    # The form is now the one that was chosen, and the memory that of the model's own dtype.
    alike = {"format_reason": "", "peak_memory": 0}
    assert {**again, **alike} == {**result.plan.to_json(), **alike}


@pytest.mark.parametrize("key", ["recipe", "format", "max_shard_size"])
def test_a_report_that_lacks_a_part(key: str, written: Callable[[str], tuple[Path, Result]]) -> None:
    path, result = written("rounded")
    report = report_of(result)
    del report["plan"][key]
    with pytest.raises(UserError, match=f"incomplete: the plan lacks '{key}'"):
        plan_again(result.out, report, open_source(path))


def test_a_recipe_that_was_changed_is_named_by_its_report(
    written: Callable[[str], tuple[Path, Result]],
) -> None:
    path, result = written("rounded")
    report = report_of(result)
    report["plan"]["recipe"]["steps"][0]["quantise"] = {"bits": 4}
    with pytest.raises(UserError, match=r"compress\.json: unknown key"):
        plan_again(result.out, report, open_source(path))


RECORDS: dict[str, Callable[[dict[str, Any]], object]] = {
    "of fewer blocks": lambda record: record["kept"]["neurons"].pop(),
    "of more neurons than there are": lambda record: record["kept"].update(neurons=["f" * 40] * 2),
    "of another number of neurons": lambda record: record["kept"].update(neurons=["f", "f"]),
    "of other units": lambda record: record["kept"].update(heads=record["kept"].pop("neurons")),
    "of none": lambda record: record["kept"].update(neurons=["0", "0"]),
}


@pytest.mark.parametrize("case", RECORDS)
def test_a_record_of_another_model_is_refused(
    case: str, written: Callable[[str], tuple[Path, Result]]
) -> None:
    path, result = written("width")
    report = report_of(result)
    record = copy.deepcopy(report["plan"]["width_pruned"])
    RECORDS[case](record)
    with pytest.raises(UserError, match="the record of neurons is none of"):
        width_pruned_source(result.out, report, open_source(path), record)
