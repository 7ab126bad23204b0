"""A packed weight that is not the source's is found, even if every hash was made to fit; a sound output passes."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import compress as api
from compress.checkpoint.source import open_source
from compress.errors import UserError
from compress.models.skeleton import open_skeleton
from compress.models.source_weights import SourceWeights, distance
from compress.recipe.recipe import Recipe
from compress.report.schema import Report

GROUPS = {"bits": 4, "group_size": 32}
RECIPES: dict[str, dict[str, Any]] = {
    "gptq": {"steps": [{"quantize": GROUPS, "solver": "gptq"}]},
    "awq": {"transforms": ["awq"], "steps": [{"quantize": GROUPS, "solver": "nearest"}]},
    "narrower": {"width_pruning": {"neurons": 0.5}, "steps": [{"quantize": GROUPS}]},
    "embeddings": {"steps": [{"targets": ["linear", "embeddings"], "quantize": GROUPS}]},
    "low rank": {"steps": [{"lowrank": {"ratio": 0.5}, "solver": "weighted_svd"}]},
    "half the numbers": {"steps": [{"prune": {"sparsity": 0.5}, "solver": "wanda"}]},
    "dense": {"format": "dense", "steps": [{"quantize": GROUPS}]},
}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text("The quick brown fox jumps over the lazy dog. " * 40)
    return str(path)


def run(model: Path, recipe: dict[str, Any], out: Path, text: str, **options: Any) -> Report:
    calibrate = {"data": text, "samples": 4, "length": 24}
    parsed = Recipe.parse({"name": "test", "calibrate": calibrate, **recipe})
    return api.compress(model, parsed, out, device="cpu", **options).report


def swap(out: Path, one: str, other: str) -> None:
    """Exchange the tensors of two weights of one shape and make all that is recorded of bytes fit again."""
    file = out / "model.safetensors"
    tensors = load_file(file)
    first = {name: name.replace(one, other) for name in tensors if name.startswith(f"{one}.")}
    assert first
    for name, partner in first.items():
        tensors[name], tensors[partner] = tensors[partner], tensors[name]
    header = file.read_bytes()[: 8 + int.from_bytes(file.read_bytes()[:8], "little")]
    slots = json.loads(header[8:])
    data = bytearray(file.read_bytes())
    report = json.loads((out / "compress.json").read_text())
    for name in (*first, *first.values()):
        begin, end = (len(header) + place for place in slots[name]["data_offsets"])
        data[begin:end] = tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        report["tensors"][name] = hashlib.sha256(bytes(data[begin:end])).hexdigest()
    file.write_bytes(data)
    for shard in report["shards"]:
        shard["sha256"] = hashlib.sha256(bytes(data)).hexdigest()
    (out / "compress.json").write_text(json.dumps(report))


@pytest.mark.parametrize("name", RECIPES)
def test_two_weights_that_changed_places_are_found(
    name: str, tiny_model: Callable[..., Path], tmp_path: Path, text: str
) -> None:
    model, out = tiny_model("llama"), tmp_path / "out"
    report = run(model, RECIPES[name], out, text)
    assert all(weight.distance is not None and 0 < weight.distance < 3 for weight in report.weights)
    api.verify(out, model)
    swap(out, "model.layers.0.mlp.up_proj", "model.layers.0.mlp.gate_proj")
    with pytest.raises(UserError, match=r"mlp\.(gate|up)_proj is not the source's weight as it was written"):
        api.verify(out, model)


def test_blocks_that_changed_places_are_found(
    tiny_model: Callable[..., Path], tmp_path: Path, text: str
) -> None:
    model, out = tiny_model("llama"), tmp_path / "out"
    run(model, RECIPES["gptq"], out, text)
    swap(out, "model.layers.0.self_attn.o_proj", "model.layers.1.self_attn.o_proj")
    with pytest.raises(UserError, match=r"layers\.0\.self_attn\.o_proj is not the source's"):
        api.verify(out, model)


def test_experts_that_changed_places_are_found(
    tiny_model: Callable[..., Path], tmp_path: Path, text: str
) -> None:
    model, out = tiny_model("mixtral"), tmp_path / "out"
    report = run(model, RECIPES["gptq"], out, text)
    names = [weight.name for weight in report.weights if weight.kind == "expert" and weight.block == 1]
    one, other = [name for name in names if name.endswith(names[0].rpartition(".")[2])][:2]
    api.verify(out, model)
    swap(out, one, other)
    with pytest.raises(UserError, match="is not the source's weight"):
        api.verify(out, model)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_whatever_the_run_computed_in(
    dtype: str, tiny_model: Callable[..., Path], tmp_path: Path, text: str
) -> None:
    out = tmp_path / "out"
    run(tiny_model("llama"), RECIPES["gptq"], out, text, dtype=dtype)
    api.verify(out, tiny_model("llama"))


@pytest.mark.parametrize("place", ["model.norm.weight", "model.embed_tokens.weight", "lm_head.weight"])
def test_a_nan_outside_of_the_blocks_is_refused(
    place: str, tiny_model: Callable[..., Path], tmp_path: Path, text: str
) -> None:
    model, out = Path(shutil.copytree(tiny_model("llama"), tmp_path / "model")), tmp_path / "out"
    run(model, RECIPES["gptq"], out, text)
    tensors = load_file(model / "model.safetensors")
    tensors[place].view(-1)[3] = float("nan")
    save_file(tensors, model / "model.safetensors")
    with pytest.raises(UserError, match=f"{place} holds NaN"):
        run(model, RECIPES["gptq"], tmp_path / "other", text)
    assert not list(tmp_path.glob("other*"))
    # As a run of an earlier version would have written it.
    written = load_file(out / "model.safetensors")
    written[place] = tensors[place]
    before = (out / "model.safetensors").read_bytes()
    header = before[: 8 + int.from_bytes(before[:8], "little")]
    begin, end = (len(header) + at for at in json.loads(header[8:])[place]["data_offsets"])
    data = tensors[place].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    (out / "model.safetensors").write_bytes(before[:begin] + data + before[end:])
    report = json.loads((out / "compress.json").read_text())
    report["tensors"][place] = hashlib.sha256(data).hexdigest()
    (out / "compress.json").write_text(json.dumps(report))
    with pytest.raises(UserError, match=f"{place} holds NaN"):
        api.verify(out, model)


def test_distances_of_plain_numbers() -> None:
    weight = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    assert distance(weight, weight) == 0
    assert distance(torch.zeros(2, 2), weight) == 1
    assert distance(weight.bfloat16() + 1, weight) == pytest.approx(2 / 5)
    assert distance(torch.zeros(2, 2), torch.zeros(2, 2)) == 0
    assert distance(weight, torch.zeros(2, 2)) == 1


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_weights_are_read_as_the_model_holds_them(family: str, tiny_model: Callable[..., Path]) -> None:
    skeleton = open_skeleton(open_source(tiny_model(family)))
    weights = SourceWeights(skeleton)
    skeleton.load_block(1, device="cpu", dtype=skeleton.dtype)
    for view in skeleton.block_views(1):
        expected = view.get(skeleton.parameter_of(view).detach())
        found = weights.read(view)
        assert found is not None
        assert torch.equal(found, expected)
