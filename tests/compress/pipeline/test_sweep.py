"""Several budgets of one model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compress.errors import UserError
from compress.pipeline import budget_search
from compress.pipeline import sweep as module
from compress.pipeline.sweep import sweep

SMALL: dict[str, Any] = {"samples": 4, "length": 32, "trials": 0, "device": "cpu", "runtime": "native"}


@pytest.fixture(scope="module")
def model(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("llama", initializer_range=0.1)


def test_budgets_share_a_pass_and_an_interrupted_sweep_goes_on(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, passes = [], []
    carry_out, candidates = module.run, budget_search.measure

    def stops_at_the_second(*arguments: Any) -> Any:
        runs.append(arguments)
        if len(runs) == 2:
            raise KeyboardInterrupt
        return carry_out(*arguments)

    def counted(*arguments: Any) -> Any:
        passes.append(arguments)
        return candidates(*arguments)

    monkeypatch.setattr(module, "run", stops_at_the_second)
    monkeypatch.setattr(budget_search, "measure", counted)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        sweep(model, out, bits=[6.0, 5.0], **SMALL)
    assert sorted(path.name for path in out.iterdir() if path.suffix != ".partial") == ["5bits"]
    written = (out / "5bits" / "model.safetensors").stat().st_mtime_ns
    result = sweep(model, out, bits=[6.0, 5.0], **SMALL)
    assert (out / "5bits" / "model.safetensors").stat().st_mtime_ns == written
    assert len(runs) == 3
    assert [point.name for point in result.points] == ["5bits", "6bits"]
    assert result.points[0].nbytes < result.points[1].nbytes
    assert result.points[0].kl > result.points[1].kl > 0
    assert all(point.nbytes <= point.budget for point in result.points)
    assert [one["name"] for one in json.loads((out / "sweep.json").read_text())["points"]] == [
        "5bits",
        "6bits",
    ]
    assert "<svg" in (out / "sweep.html").read_text()
    sweep(model, out, bits=[6.0, 5.0], **SMALL)
    assert len(passes) == 2  # nothing was missing


@pytest.mark.parametrize(
    ("budgets", "sentence"),
    [
        ({}, "Give budgets"),
        ({"budgets": ["1GB"], "bits": [5.0]}, "leave it out"),
        ({"budgets": ["1kB"], "bits": [5.0]}, "below the smallest"),
        ({"budgets": ["4"]}, "no size"),
    ],
)
def test_budgets_that_cannot_be_are_refused_before_any_work(
    model: Path, tmp_path: Path, budgets: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        sweep(model, tmp_path / "out", **budgets, **SMALL)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_left_alone(model: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "5bits").mkdir(parents=True)
    with pytest.raises(UserError):
        sweep(model, tmp_path / "out", bits=[5.0], **SMALL)


def test_a_text_that_is_too_short_is_refused_before_the_search(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = tmp_path / "short.txt"
    short.write_text("Too short.")
    monkeypatch.setattr(budget_search, "measure", lambda *_, **__: pytest.fail("the model was run"))
    with pytest.raises(UserError, match="fewer than one sequence of 32"):
        sweep(model, tmp_path / "out", bits=[5.0], data=str(short), **SMALL)
