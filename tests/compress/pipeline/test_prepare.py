"""The steps before the first weight: the same in `plan` and `compress`, the text tokenized once, no file left behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import compress
from compress.checkpoint.source import open_source
from compress.errors import UserError
from compress.pipeline import calibration, prepare
from compress.pipeline.prepare import Prepared, prepared
from compress.pipeline.request import Request
from compress.recipe.recipe import Recipe

DEPTH = {"depth_pruning": {"blocks": 1}}
WIDTH = {"width_pruning": {"neurons": 0.5}}
GPTQ = {"steps": [{"quantize": {"bits": 4, "group_size": 32}, "solver": "gptq"}]}
ROUNDED = {"steps": [{"quantize": {"bits": 4, "group_size": 32}}]}
RANKS = {
    "steps": [
        {"lowrank": {"ratio": 0.6, "allocate": "truncation"}, "solver": "weighted_svd", "score": "activation"}
    ]
}
FISHER = {"steps": [{"quantize": {"bits": 4, "group_size": 32}, "solver": "gptq", "score": "fisher"}]}
SPARSITY = {"steps": [{"prune": {"sparsity": 0.5, "allocate": "owl"}, "solver": "wanda"}]}

# Recipe → the steps with data, and those of them that a plan takes as well.
CASES: dict[str, tuple[dict[str, Any], list[str], list[str]]] = {
    "rounded": (ROUNDED, [], []),
    "gptq": (GPTQ, ["data"], []),
    "fisher": (FISHER, ["data", "sensitivity"], []),
    "ranks": (RANKS, ["data", "sensitivity"], ["data", "sensitivity"]),
    "sparsity": (SPARSITY, ["data", "sensitivity"], ["data", "sensitivity"]),
    "depth": (DEPTH, ["data", "prune"], ["data", "prune"]),
    "width": (WIDTH, ["data", "prune"], ["data", "prune"]),
    "width, rounded": ({**WIDTH, **ROUNDED}, ["data", "prune"], ["data", "prune"]),
    "everything": (
        {**DEPTH, **WIDTH, **RANKS},
        ["data", "prune", "prune", "sensitivity"],
        ["data", "prune", "prune", "sensitivity"],
    ),
}


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text("The quick brown fox jumps over the lazy dog. " * 60)
    return str(path)


def recipe_of(text: str, settings: dict[str, Any]) -> Recipe:
    calibrate = {"data": text, "samples": 4, "length": 24}
    return Recipe.parse({"name": "test", "calibrate": calibrate, **settings})


def request_of(model: Path, recipe: Recipe, folder: Path, **changes: Any) -> Request:
    options: dict[str, Any] = {"dtype": "fp32", "seed": 0, "format": None, "folder": folder, **changes}
    return Request(open_source(model), recipe, torch.device("cpu"), **options)


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one whenever calibration text is tokenized."""
    calls: list[int] = []
    load = calibration.load_corpus

    def counted(*args: Any, **options: Any) -> Any:
        calls.append(1)
        return load(*args, **options)

    monkeypatch.setattr(calibration, "load_corpus", counted)
    return calls


def steps_of(request: Request) -> tuple[list[str], Prepared]:
    names: list[str] = []

    @contextmanager
    def step(name: str) -> Iterator[None]:
        names.append(name)
        yield

    with prepared(request, step) as ready:
        return names, ready


@pytest.mark.parametrize("case", CASES)
def test_steps_in_order_and_text_tokenized_once(
    case: str, tiny_model: Callable[..., Path], tmp_path: Path, text: str, draws: list[int]
) -> None:
    settings, run_steps, plan_steps = CASES[case]
    recipe, model = recipe_of(text, settings), tiny_model("llama")
    names, ready = steps_of(request_of(model, recipe, tmp_path))
    assert names == run_steps
    assert len(draws) == run_steps.count("data")
    assert (ready.corpus is None) == ("data" not in run_steps)
    draws.clear()
    names, planned = steps_of(request_of(model, recipe, tmp_path, plan_only=True))
    assert names == plan_steps
    assert len(draws) == plan_steps.count("data")
    assert planned.plan.to_json() == ready.plan.to_json()
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


def test_plan_and_compress_agree(
    tiny_model: Callable[..., Path], tmp_path: Path, text: str, draws: list[int]
) -> None:
    recipe, model = recipe_of(text, {**DEPTH, **WIDTH, **RANKS}), tiny_model("llama")
    result = compress.compress(model, recipe, tmp_path / "out", device="cpu", dtype="fp32")
    assert len(draws) == 1
    plan = compress.plan(model, recipe, dtype="fp32")
    assert len(draws) == 2
    assert plan.to_json() == result.plan.to_json()
    assert plan.total_bytes == sum(file.stat().st_size for file in (tmp_path / "out").glob("*.safetensors"))
    compress.verify(tmp_path / "out", model)


def test_files_last_as_long_as_the_context(
    tiny_model: Callable[..., Path], tmp_path: Path, text: str
) -> None:
    folder = tmp_path / "work"
    request = request_of(tiny_model("llama"), recipe_of(text, {**WIDTH, **FISHER}), folder)
    with prepared(request) as ready:
        assert len(list(folder.iterdir())) == 2
        weight = ready.skeleton.views[0]
        ready.skeleton.load_block(weight.block or 0, device="cpu", dtype=torch.float32)
        assert ready.sensitivity.folder is not None
        assert len(list(ready.sensitivity.folder.glob("*.safetensors"))) == 2
    assert list(folder.iterdir()) == []
    with pytest.raises(RuntimeError, match="stop"), prepared(request):
        raise RuntimeError("stop")
    assert list(folder.iterdir()) == []


def test_a_failure_on_the_way_leaves_no_file(
    tiny_model: Callable[..., Path], tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **options: Any) -> Any:
        raise RuntimeError("no plan")

    folder = tmp_path / "work"
    monkeypatch.setattr("compress.pipeline.prepare.make_plan", broken)
    with (
        pytest.raises(RuntimeError, match="no plan"),
        prepared(request_of(tiny_model("llama"), recipe_of(text, WIDTH), folder)),
    ):
        pass
    assert list(folder.iterdir()) == []


def test_the_report_of_pruning_alone_names_its_data(
    tiny_model: Callable[..., Path], tmp_path: Path, text: str
) -> None:
    recipe = recipe_of(text, {**DEPTH, "calibrate": {"data": text, "samples": 1000, "length": 24}})
    result = compress.compress(tiny_model("llama"), recipe, tmp_path / "out", device="cpu")
    assert result.report.calibration is not None
    assert result.report.calibration.data == "text.txt"
    assert any("1000" in note for note in result.report.notes)


@pytest.mark.parametrize("share", [0.99, 0.97])
def test_a_width_share_that_prunes_nothing_is_said_at_plan(
    tiny_model: Callable[..., Path], tmp_path: Path, text: str, share: float
) -> None:
    """The neurons of a tiny llama are left out eight at a time."""
    width = {"width_pruning": {"neurons": share}}
    with prepared(
        request_of(tiny_model("llama"), recipe_of(text, {**width, **ROUNDED}), tmp_path, plan_only=True)
    ) as ready:
        assert "keeps all" in ready.plan.notes[0]
        assert ready.plan.to_json()["notes"] == list(ready.plan.notes)
    with (
        pytest.raises(UserError, match=r"prunes nothing: width_pruning\.neurons .* keeps all"),
        prepared(request_of(tiny_model("llama"), recipe_of(text, width), tmp_path, plan_only=True)),
    ):
        pass
    result = compress.compress(
        tiny_model("llama"), recipe_of(text, {**width, **ROUNDED}), tmp_path / "out", device="cpu"
    )
    assert any("keeps all" in note for note in result.report.notes)


def test_a_share_of_one_says_nothing(tiny_model: Callable[..., Path], tmp_path: Path, text: str) -> None:
    recipe = recipe_of(text, {"width_pruning": {"neurons": 1.0}, **ROUNDED})
    with prepared(request_of(tiny_model("llama"), recipe, tmp_path, plan_only=True)) as ready:
        assert ready.plan.notes == ()


def test_a_text_that_is_too_short_is_refused_before_the_plan(
    tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama")
    short = tmp_path / "short.txt"
    short.write_text("Too short.")
    assert compress.plan(model, recipe_of(str(short), ROUNDED)).weights  # nothing reads it
    monkeypatch.setattr(prepare, "make_plan", lambda *_, **__: pytest.fail("a plan was made"))
    for settings in (GPTQ, DEPTH, WIDTH, {**ROUNDED, "heal": {"train": ["norms"]}}):
        with pytest.raises(UserError, match="has 10 tokens, fewer than"):
            compress.plan(model, recipe_of(str(short), settings))
    with pytest.raises(UserError, match="has 10 tokens, fewer than one sequence of 24"):
        compress.compress(model, recipe_of(str(short), GPTQ), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["short.txt"]


def test_a_plan_says_that_windows_overlap(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    model = tiny_model("llama")
    few = tmp_path / "few.txt"
    few.write_text("The quick brown fox jumps over it. ")
    (note,) = compress.plan(model, recipe_of(str(few), GPTQ)).notes
    assert "for 4 windows of 24, so the windows overlap" in note
    few.write_text("The quick brown fox jumps over it. " * 4)
    assert compress.plan(model, recipe_of(str(few), GPTQ)).notes == ()
