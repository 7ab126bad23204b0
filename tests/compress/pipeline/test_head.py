"""The output head: solved behind the blocks, on what they send it, whatever the solver; continued where a run was killed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from compress import Recipe, compress
from compress.calibrate.capture import CannotStream
from compress.checkpoint.source import open_source
from compress.formats.dense_source import open_dense
from compress.models.skeleton import open_skeleton
from compress.pipeline import run as run_module
from compress.pipeline.run import Result
from compress.pipeline.weight import solve_weight
from compress.planning.make import make_plan
from compress.score.statistics import Statistics

GRID = {"bits": 3, "group_size": 32}
BLOCKS = {"quantize": GRID, "solver": "gptq"}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("The quick brown fox jumps over the lazy dog, and then it sleeps. " * 60)
    return path


def recipe_of(text: Path, *steps: dict[str, Any], **settings: Any) -> Recipe:
    calibrate = {"data": str(text), "samples": 4, "length": 24}
    return Recipe.parse({"name": "test", "steps": list(steps), "calibrate": calibrate, **settings})


def figures(done: Result) -> dict[str, Any]:
    return {weight.name: weight for weight in done.report.weights}


def dense(folder: Path) -> dict[str, Tensor]:
    source = open_dense(folder)
    return {name: source.read(name) for name in source.headers}


@pytest.mark.parametrize("family", ["llama", "llama_tied", "gpt2", "gemma3"])
def test_the_head_is_solved_on_the_inputs_of_the_compressed_model(
    family: str, tiny_model: Callable[..., Path], tmp_path: Path, text: Path
) -> None:
    """Against transformers: its own forward over the compressed blocks gives the Gram matrix, in float64."""
    folder = tiny_model(family)
    recipe = recipe_of(text, BLOCKS, {"targets": ["head"], "quantize": GRID, "solver": "gptq"})
    done = compress(folder, recipe, tmp_path / "out", dtype="fp32", format="native")
    source = open_source(folder)
    plan = make_plan(open_skeleton(source), recipe, format="native")
    (planned,) = plan.block(None)
    assert planned.view.in_head
    assert figures(done)[planned.name].tokens == 4 * 24

    written, model = (
        dense(tmp_path / "out"),
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
    )
    state = model.state_dict()
    for name, tensor in written.items():
        if planned.name not in name and name in state:
            state[name].copy_(tensor)
    seen: list[Tensor] = []
    model.get_output_embeddings().register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        model(run_tokens(folder, recipe), use_cache=False)
    rows = seen[0].double().reshape(-1, 64)
    statistics = Statistics(tokens=len(rows), gram=(rows.T @ rows / len(rows)).float())
    weight = source.read(f"{planned.view.name}.weight").float()
    methods = planned.methods
    attempt = solve_weight(methods, weight, statistics, methods.score.metric(statistics), 0)
    found = written[f"{planned.view.name}.weight"].float()
    rounded = solve_weight(
        plan_nearest(folder, text, planned.name), weight, Statistics(), methods.score.metric(statistics), 0
    )
    ours, by_hand, nearest = (
        methods.score.metric(statistics).loss(weight - theta)
        for theta in (found, attempt.solution.theta, rounded.solution.theta)
    )
    assert ours == pytest.approx(by_hand, rel=0.03)  # decoded in bf16, the blocks differ in the last bits
    assert ours < 0.9 * nearest


def plan_nearest(folder: Path, text: Path, name: str) -> Any:
    recipe = recipe_of(text, {"targets": ["head"], "quantize": GRID})
    plan = make_plan(open_skeleton(open_source(folder)), recipe, format="native")
    return next(weight.methods for weight in plan.weights if weight.name == name)


def run_tokens(folder: Path, recipe: Recipe) -> Tensor:
    from compress.pipeline.calibration import draw_corpus  # noqa: PLC0415

    return draw_corpus(open_skeleton(open_source(folder)), recipe, 0).tokens


@pytest.mark.parametrize(
    ("moment", "family"), [("observe_head", "llama"), ("observe_head", "llama_tied"), ("_finish", "llama")]
)
def test_a_killed_run_goes_on(
    moment: str,
    family: str,
    tiny_model: Callable[..., Path],
    tmp_path: Path,
    text: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before the head, with all blocks done, and behind it."""
    head = {"targets": ["head"], "quantize": GRID, "solver": ["gptq", "coordinate_descent"]}
    recipe = recipe_of(text, {**BLOCKS, "true_input_target": True}, {**head, "true_input_target": True})
    folder = tiny_model(family)
    options: dict[str, Any] = {"format": "native"}
    whole = compress(folder, recipe, tmp_path / "unbroken", **options)

    def killed(*args: Any, **named: Any) -> Any:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(run_module if moment == "observe_head" else run_module.Run, moment, killed)
        with pytest.raises(RuntimeError, match="killed"):
            compress(folder, recipe, tmp_path / "out", **options)
    if moment == "_finish":  # the head is written already
        monkeypatch.setattr(run_module, "observe_head", killed)
    again = compress(folder, recipe, tmp_path / "out", **options)
    first, second = ((tmp_path / out / "model.safetensors").read_bytes() for out in ("out", "unbroken"))
    assert first == second
    assert figures(again).keys() == figures(whole).keys()


def test_a_head_alone_is_solved_on_the_dense_blocks(
    tiny_model: Callable[..., Path], tmp_path: Path, text: Path
) -> None:
    recipe = recipe_of(text, {"targets": ["head"], "quantize": GRID, "solver": ["gptq", "group_scales"]})
    done = compress(tiny_model("llama"), recipe, tmp_path / "out", format="native")
    (of_head,) = figures(done).values()
    assert of_head.error < of_head.error_nearest


@pytest.mark.parametrize(
    ("steps", "settings", "tokens"),
    [
        ((BLOCKS,), {"head": 4}, 96),
        ((BLOCKS,), {"head": {"bits": 4, "solver": "nearest"}}, None),
        (({"quantize": GRID},), {"head": 4}, None),
        (({"quantize": GRID},), {"head": {"bits": 4, "solver": ["gptq"]}}, 96),
    ],
)
def test_the_option_head_solves_where_the_recipe_looks_at_data(
    steps: Any,
    settings: dict[str, Any],
    tokens: int | None,
    tiny_model: Callable[..., Path],
    tmp_path: Path,
    text: Path,
) -> None:
    recipe = recipe_of(text, *steps, **settings)
    done = compress(tiny_model("llama"), recipe, tmp_path / "out", format="native")
    assert figures(done)["lm_head"].tokens == tokens
    again = Recipe.parse(recipe.model_dump(mode="json"))
    assert again == recipe


def test_a_tied_weight_takes_the_heads_grid(tiny_model: Callable[..., Path], text: Path) -> None:
    skeleton = open_skeleton(open_source(tiny_model("llama_tied")))
    plan = make_plan(skeleton, recipe_of(text, BLOCKS, embeddings=4, head=8))
    (shared,) = plan.block(None)
    assert shared.view.kind == "embedding"
    assert shared.methods.structure.bits == 8
    plan = make_plan(skeleton, recipe_of(text, BLOCKS, embeddings=4))
    (shared,) = plan.block(None)
    assert shared.methods.structure.bits == 4
    assert shared.needs == {"gram"}


def test_a_head_that_cannot_be_reached_is_refused_before_any_block(
    tiny_model: Callable[..., Path], tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*args: Any) -> Any:
        raise CannotStream("its code does something else")

    monkeypatch.setattr("compress.calibrate.stream.head_forward", unreachable)
    monkeypatch.setattr(
        "compress.pipeline.run.BlockJob.carry_out", lambda self: pytest.fail("a block was solved")
    )
    recipe = recipe_of(text, BLOCKS, {"targets": ["head"], "quantize": GRID, "solver": "gptq"})
    with pytest.raises(CannotStream, match="something else"):
        compress(tiny_model("llama"), recipe, tmp_path / "out", format="native")
    assert not list(tmp_path.glob("out*"))
