"""Recipes with a rotation from end to end: planned, run, verified, opened by others, and refused where they cannot be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from compress import Recipe, compress, load, plan, verify
from compress.errors import UserError
from compress.pipeline.block import BlockJob

TEXT = "the quick brown fox jumps over the lazy dog " * 40
GRID = {"bits": 8, "group_size": 16, "scales": "mse"}
IDS = torch.arange(2, 26).unsqueeze(0)


def _recipe(*transforms: Any, **step: Any) -> Recipe:
    steps = [{"targets": ["linear", "experts"], "quantize": GRID, "solver": "nearest", **step}]
    return Recipe.parse({"name": "rotated", "transforms": list(transforms), "steps": steps})


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    return {"data": str(text), "samples": 2, "length": 32}


@pytest.mark.parametrize("family", ["llama_tied", "gpt2", "gpt_oss"])
def test_the_output_is_the_model_but_for_rounding(
    tiny_model: Callable[..., Path], tmp_path: Path, options: dict[str, Any], family: str
) -> None:
    source = tiny_model(family)
    planned = plan(source, _recipe("rotation"), **options)
    result = compress(source, _recipe("rotation"), tmp_path / "out", **options)
    verify(tmp_path / "out", source)
    assert planned.total_bytes == result.plan.total_bytes
    assert any("residual stream of 64 features is rotated: Hadamard 64" in note for note in planned.notes)
    recorded = json.loads((tmp_path / "out" / "compress.json").read_text())["plan"]["rotation"]
    assert recorded["seed"] == 0
    assert recorded["residual"].startswith("Hadamard 64")
    dense = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    with torch.no_grad():
        expected = dense(IDS).logits
        found = load(tmp_path / "out").float()(IDS).logits
    assert float((found - expected).norm() / expected.norm()) < 0.05  # experts may be chosen anew by a hair


def test_plain_transformers_opens_it_with_a_head_of_its_own(
    tiny_model: Callable[..., Path], tmp_path: Path, options: dict[str, Any]
) -> None:
    source = tiny_model("llama_tied")
    compress(source, _recipe("rotation"), tmp_path / "out", **options)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    dense = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    with torch.no_grad():
        expected, found = dense(IDS).logits, model(IDS).logits
    assert float((found - expected).norm() / expected.norm()) < 0.03


def test_a_learned_rotation_is_verified_by_what_is_known_of_it(
    tiny_model: Callable[..., Path], tmp_path: Path, options: dict[str, Any]
) -> None:
    source = tiny_model("llama")
    recipe = _recipe({"name": "rotation", "residual": "learned", "steps": 3}, activations={"bits": 8})
    result = compress(source, recipe, tmp_path / "out", **options)
    verify(tmp_path / "out", source)
    assert not list(tmp_path.glob("out.partial*"))
    recorded = json.loads((tmp_path / "out" / "compress.json").read_text())["plan"]["rotation"]
    assert len(recorded["learned"]) == 64
    assert any("Learning it took the divergence" in note for note in result.plan.notes)
    dense = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    with torch.no_grad():
        expected, found = dense(IDS).logits, load(tmp_path / "out").float()(IDS).logits
    assert float((found - expected).norm() / expected.norm()) < 0.05


def test_an_output_rotated_otherwise_is_not_verified(
    tiny_model: Callable[..., Path], tmp_path: Path, options: dict[str, Any]
) -> None:
    source = tiny_model("llama")
    compress(source, _recipe("rotation"), tmp_path / "out", **options)
    report = tmp_path / "out" / "compress.json"
    data = json.loads(report.read_text())
    data["plan"]["rotation"]["seed"] = 1
    report.write_text(json.dumps(data))
    with pytest.raises(UserError, match="is not what it is in the source"):
        verify(tmp_path / "out", source)


def test_a_recipe_that_names_no_rotation_cannot_have_made_one(
    tiny_model: Callable[..., Path], tmp_path: Path, options: dict[str, Any]
) -> None:
    source = tiny_model("llama")
    compress(source, _recipe("rotation"), tmp_path / "out", **options)
    report = tmp_path / "out" / "compress.json"
    data = json.loads(report.read_text())
    data["plan"]["recipe"]["transforms"] = []
    report.write_text(json.dumps(data))
    with pytest.raises(UserError, match="records a rotation that its recipe does not name"):
        verify(tmp_path / "out", source)


def test_smoothing_follows_a_rotation(
    tiny_model: Callable[..., Path], tmp_path: Path, options: dict[str, Any]
) -> None:
    source = tiny_model("llama")
    recipe = _recipe("rotation", {"name": "smoothquant", "alpha": 0.5}, activations={"bits": 8})
    compress(source, recipe, tmp_path / "out", **options)
    verify(tmp_path / "out", source)


@pytest.mark.parametrize(
    ("transforms", "message"),
    [
        (["awq", "rotation"], "'rotation' is named once and first"),
        (["rotation", "rotation"], "'rotation' is named once and first"),
        ([{"name": "rotation", "blocks": 32}], "has no option 'blocks'"),
        ([{"name": "rotation", "residual": "haar"}], "residual"),
        ([{"name": "rotation", "block": 24}], "blocks of 24 do not divide 64 features"),
    ],
)
def test_mistakes_are_told_at_plan_time(
    tiny_model: Callable[..., Path], transforms: list[Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        plan(tiny_model("llama"), _recipe(*transforms))


def test_a_model_that_cannot_be_rotated_is_refused_at_plan_time(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="residual stream of Gemma3ForCausalLM cannot be rotated exactly"):
        compress(tiny_model("gemma3"), _recipe("rotation"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pruned_widths_are_rotated_too(
    tiny_model: Callable[..., Path], tmp_path: Path, options: dict[str, Any]
) -> None:
    source = tiny_model("llama")
    recipe = _recipe("rotation").with_settings({"width_pruning": {"neurons": 0.5}})
    compress(source, recipe, tmp_path / "out", **options)
    verify(tmp_path / "out", source)


def test_a_changed_tensor_is_found(
    tiny_model: Callable[..., Path], tmp_path: Path, options: dict[str, Any]
) -> None:
    source = tiny_model("llama_tied")
    compress(source, _recipe("rotation"), tmp_path / "out", **options)
    file = tmp_path / "out" / "model.safetensors"
    tensors = load_file(str(file))
    tensors["lm_head.weight"][0] *= -1
    save_file(tensors, str(file), metadata={"format": "pt"})
    with pytest.raises(UserError):
        verify(tmp_path / "out", source)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize(
    ("bits", "solver"), [(8, "nearest"), (4, ["gptq", "group_scales", "coordinate_descent"])]
)
def test_inputs_that_no_space_reaches_are_rotated_while_it_runs(
    tiny_model: Callable[..., Path],
    tmp_path: Path,
    options: dict[str, Any],
    family: str,
    bits: int,
    solver: Any,
) -> None:
    source = tiny_model(family)
    recipe = _recipe(
        {"name": "rotation", "online": True},
        activations={"bits": 8},
        quantize={"bits": bits, "group_size": 16},
        solver=solver,
        targets=["linear"],
        true_input_target=bits == 4,
    )
    result = compress(source, recipe, tmp_path / "out", **options)
    verify(tmp_path / "out", source)
    assert result.plan.format == "native"
    why = "transposed Conv1D" if family == "gpt2" else "rotated while it runs, which transformers would leave"
    assert why in result.plan.format_reason
    rotated = {
        weight.name.rpartition(".")[0]
        for weight in result.plan.weights
        if weight.activations and weight.activations.hadamard
    }
    assert len(rotated) == 2
    assert all(name.endswith("mlp") for name in rotated)
    distances = {weight.name: weight.distance for weight in result.report.weights}
    assert max(value for value in distances.values() if value is not None) < (0.02 if bits == 8 else 0.25)
    dense = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    with torch.no_grad():
        expected, found = dense(IDS).logits, load(tmp_path / "out").float()(IDS).logits
    assert float((found - expected).norm() / expected.norm()) < (0.02 if bits == 8 else 0.2)


def test_a_run_that_was_stopped_goes_on_with_rotated_inputs(
    tiny_model: Callable[..., Path], tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny_model("llama")
    recipe = _recipe({"name": "rotation", "online": True}, activations={"bits": 8}, solver="gptq")
    compress(source, recipe, tmp_path / "whole", **options)
    original = BlockJob.carry_out

    def stop(self: BlockJob) -> Any:
        if self.index == 1:
            raise KeyboardInterrupt
        return original(self)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(BlockJob, "carry_out", stop)
        compress(source, recipe, tmp_path / "out", **options)
    compress(source, recipe, tmp_path / "out", **options)
    one, two = (load_file(str(tmp_path / name / "model.safetensors")) for name in ("whole", "out"))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (
            {"activations": {"bits": 8, "dynamic": False}},
            "rotated inputs have dynamic scales: set rotation's 'online: false'",
        ),
        (
            {"activations": {"bits": 8}, "score": "input-scale", "solver": "gptq"},
            "of single inputs: set 'online: false'",
        ),
        ({"activations": {"bits": 8}, "solver": ["gptq", "adaround"], "quantize": {**GRID, "bits": 3}}, ""),
    ],
)
def test_what_does_not_go_with_rotated_inputs(
    tiny_model: Callable[..., Path], step: dict[str, Any], message: str
) -> None:
    recipe = _recipe({"name": "rotation", "online": True}, **step)
    if not message:
        assert plan(tiny_model("llama"), recipe).format == "native"
        return
    with pytest.raises(UserError, match=message):
        plan(tiny_model("llama"), recipe)


def test_a_server_that_cannot_rotate_is_refused_at_plan_time(tiny_model: Callable[..., Path]) -> None:
    recipe = _recipe({"name": "rotation", "online": True}, activations={"bits": 8})
    with pytest.raises(
        UserError, match="format compressed-tensors cannot hold this: .* rotated while it runs"
    ):
        plan(tiny_model("llama"), recipe, format="compressed-tensors")
    # Without rounded inputs there is nothing to rotate while it runs.
    assert (
        plan(tiny_model("llama"), _recipe({"name": "rotation", "online": True})).format
        == "compressed-tensors"
    )
