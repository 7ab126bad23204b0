"""An importance matrix as the statistics of a recipe: resolved for every weight at plan time, or refused in one sentence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import compress
from compress.checkpoint.source import open_source
from compress.errors import UserError
from compress.formats.gguf.imatrix import Importance, write_imatrix
from compress.formats.gguf.placement import place
from compress.models.skeleton import open_skeleton
from compress.pipeline.weight import solve_weight
from compress.planning.make import facts_of
from compress.recipe.recipe import Recipe
from compress.score.metric import Kron, Side
from compress.score.statistics import Statistics

pytest.importorskip("gguf")
GRID = {"bits": 3, "group_size": 32, "scales": "mse"}


def write_for(
    folder: Path, path: Path, *, seed: int = 0, without: str = "", narrower: str = "", factor: float = 8
) -> dict[str, Tensor]:
    """An importance matrix with random numbers for every weight of the blocks; weight → its own ``[in]``."""
    skeleton = open_skeleton(open_source(folder))
    generator = torch.Generator().manual_seed(seed)
    views = [view for view in skeleton.views if view.block is not None and not view.router]
    placement = place(facts_of(skeleton))
    by_tensor: dict[str, list[Tensor]] = {}
    own: dict[str, Tensor] = {}
    for view in views:
        here = placement.weights[view.name]
        row = torch.rand(view.shape[1], generator=generator) ** 4
        own[view.name] = row
        if here.tensor != without:
            by_tensor.setdefault(here.tensor, []).append(row[:-1] if here.tensor == narrower else row)
    tensors = {
        name: Importance(torch.stack(rows) * factor, torch.full((len(rows),), 8.0))
        for name, rows in by_tensor.items()
    }
    write_imatrix(path, tensors, dataset="text", chunks=1, chunk_size=8)
    return own


def recipe_of(path: Path, **changes: Any) -> Recipe:
    step = {"quantize": GRID, "score": {"name": "imatrix", "file": str(path)}, "solver": "nearest", **changes}
    return Recipe.parse({"name": "test", "steps": [step]})


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_every_weight_is_solved_in_its_own_diagonal(
    family: str, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    folder, path = tiny_model(family), tmp_path / "a.imatrix"
    own = write_for(folder, path)
    plan = compress.plan(folder, recipe_of(path), format="native")
    assert not plan.needs_data
    assert plan.importance.keys() == {weight.name for weight in plan.weights}
    for name, row in plan.importance.items():
        torch.testing.assert_close(row, own[name])
    out = tmp_path / "out"
    done = compress.compress(folder, recipe_of(path), out, format="dense", dtype="fp32")
    written, skeleton = open_source(out), open_skeleton(open_source(folder))
    for weight in plan.weights[:3]:
        skeleton.load_block(weight.view.block or 0, device="cpu", dtype=torch.float32)
        dense = weight.view.get(skeleton.parameter_of(weight.view)).clone()
        attempt = solve_weight(weight.methods, dense, Statistics(), Kron(right=Side(own[weight.name])), 0)
        found = written.read(f"{weight.name}.weight").float()
        torch.testing.assert_close(
            found, attempt.solution.theta.to(torch.bfloat16).float(), rtol=1e-2, atol=1e-3
        )
    assert done.report.plan["imatrix"].keys() == {"a.imatrix"}
    assert str(tmp_path) not in (out / "compress.json").read_text()
    assert AutoModelForCausalLM.from_pretrained(out) is not None
    path.unlink()
    compress.verify(out, folder)  # the file is gone


def test_it_goes_with_solvers_that_look_at_data(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    write_for(tiny_model("llama"), tmp_path / "a.imatrix")
    plan = compress.plan(
        tiny_model("llama"), recipe_of(tmp_path / "a.imatrix", solver=["gptq", "coordinate_descent"])
    )
    assert len(plan.importance) == 14


WRONG: Mapping[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "missing": (
        {"without": "blk.1.ffn_up.weight"},
        {},
        r"says nothing of blk\.1\.ffn_up\.weight, which is model",
    ),
    "width": ({"narrower": "blk.0.attn_q.weight"}, {}, "does not fit the 64 inputs of"),
    "head": ({}, {"targets": ["linear", "head"]}, r"says nothing of output\.weight"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_file_that_does_not_fit_is_refused_at_plan_time(
    name: str, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    written, step, sentence = WRONG[name]
    folder, path = tiny_model("llama"), tmp_path / "a.imatrix"
    write_for(folder, path, **written)
    with pytest.raises(UserError, match=f"a.imatrix .*{sentence}"):
        compress.plan(folder, recipe_of(path, **step))


def test_no_file_and_changed_inputs_are_refused(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    folder, path = tiny_model("llama"), tmp_path / "a.imatrix"
    with pytest.raises(UserError, match="a.imatrix cannot be read"):
        compress.plan(folder, recipe_of(path))
    with pytest.raises(UserError, match="score 'imatrix': give the 'file'"):
        compress.plan(folder, recipe_of(path, score="imatrix"))
    write_for(folder, path)
    step = recipe_of(path).model_dump(mode="json")["steps"][0]
    recipe = Recipe.parse({"name": "test", "steps": [step], "depth_pruning": {"blocks": 1, "by": "angle"}})
    with pytest.raises(UserError, match="does not go with 'depth_pruning'"):
        compress.plan(folder, recipe, samples=2, length=16)


@pytest.mark.parametrize("factor", [-8.0, float("nan")])
def test_numbers_that_are_no_mean_squares_are_refused(
    factor: float, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    write_for(tiny_model("llama"), tmp_path / "a.imatrix", factor=factor)
    with pytest.raises(UserError, match="no mean squares"):
        compress.plan(tiny_model("llama"), recipe_of(tmp_path / "a.imatrix"))


def test_a_run_that_is_continued_notices_another_file(
    tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, path = tiny_model("llama"), tmp_path / "a.imatrix"
    write_for(folder, path)
    with monkeypatch.context() as patch:
        patch.setattr("compress.pipeline.run.Run._finish", lambda self, writer: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            compress.compress(folder, recipe_of(path), tmp_path / "out", format="native")
    write_for(folder, path, seed=1)
    with pytest.raises(UserError, match="imatrix"):
        compress.compress(folder, recipe_of(path), tmp_path / "out", format="native")
    compress.compress(folder, recipe_of(path), tmp_path / "out", format="native", restart=True)
