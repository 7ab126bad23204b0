"""Low-rank recipes from end to end on tiny models: exact plans, verified outputs, reloads, what stays dense."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compress_kernels.layouts import LowRank, SumOf
from compress_kernels.modules import PackedLinear
from transformers import AutoModelForCausalLM

from compress.api import compress, load, plan, verify
from compress.errors import UserError
from compress.recipe.recipe import Recipe

STEPS: dict[str, dict[str, Any]] = {
    "svd-llm": {"lowrank": {"ratio": 0.7}, "solver": "weighted_svd"},
    "gfwsvd": {"lowrank": {"ratio": 0.7, "allocate": "fisher"}, "score": "fisher", "solver": "weighted_svd"},
    "shared": {
        "lowrank": {"ratio": 0.7, "allocate": "truncation", "share": True},
        "score": "activation",
        "solver": "weighted_svd",
    },
    "fwsvd": {"lowrank": {"ratio": 0.7}, "score": "fisher-rows", "solver": "weighted_svd"},
    "energy": {"lowrank": {"ratio": 0.7, "allocate": "energy"}, "solver": "weighted_svd"},
    "on a grid": {"lowrank": {"ratio": 0.7, "bits": 8}, "solver": {"name": "weighted_svd", "rounds": 2}},
    "lost": {"lowrank": {"ratio": 0.8, "columns": 0.05}, "solver": "lost"},
    "lost by weight": {
        "lowrank": {"ratio": 0.8, "columns": 0.05, "allocate": "split", "share": True},
        "solver": "lost",
    },
    "oats": {"lowrank": {"ratio": 0.3}, "prune": {"sparsity": 0.6}, "solver": {"name": "oats", "rounds": 3}},
    "oats by layer": {
        "lowrank": {"ratio": 0.3, "allocate": "fisher", "share": True},
        "prune": {"sparsity": 0.7},
        "score": "fisher",
        "solver": {"name": "oats", "rounds": 3},
    },
    "energy, true input": {
        "lowrank": {"ratio": 0.7, "allocate": "energy", "share": True},
        "true_input_target": True,
        "solver": "weighted_svd",
    },
    "lost, true input": {
        "lowrank": {"ratio": 0.8, "columns": 0.05, "allocate": "fisher", "share": True},
        "score": "fisher",
        "true_input_target": True,
        "solver": "lost",
    },
    "oats, true input": {
        "lowrank": {"ratio": 0.3},
        "prune": {"sparsity": 0.6},
        "true_input_target": True,
        "solver": {"name": "oats", "rounds": 3},
    },
    "eora": {
        "quantize": {"bits": 3, "group_size": 32, "symmetric": False},
        "lowrank": {"rank": 4, "bits": 8},
        "solver": ["gptq", "eora"],
    },
}


def recipe(**step: Any) -> Recipe:
    order = {"true_sequential": True} if step.get("true_input_target") else {}
    return Recipe.parse({"name": "test", "steps": [step], "calibrate": {"samples": 4, "length": 24}, **order})


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("A weight of low rank is the product of two factors. " * 100, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", list(STEPS))
def test_from_recipe_to_model(tiny_model: Callable[..., Path], tmp_path: Path, text: Path, name: str) -> None:
    model, chosen = tiny_model("llama"), recipe(**STEPS[name])
    result = compress(model, chosen, tmp_path / "out", data=str(text), device="cpu")
    assert result.report.bytes.planned == result.report.bytes.actual
    assert plan(model, chosen, data=str(text)).total_bytes == result.report.bytes.actual
    assert verify(tmp_path / "out", model).packed == len(result.plan.weights)
    assert all("spectrum" in weight.info for weight in result.report.weights)
    loaded = load(tmp_path / "out", device="cpu", dtype=torch.float32)
    packed = {n: m for n, m in loaded.named_modules() if isinstance(m, PackedLinear)}
    assert set(packed) == {weight.name for weight in result.plan.weights}
    assert all(isinstance(module.layout, LowRank | SumOf) for module in packed.values())
    ids = torch.arange(2, 26).unsqueeze(0)
    dense = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    for path, module in packed.items():
        dense.get_submodule(path).weight.data = module.dequantize(torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, dense(ids).logits, rtol=1e-3, atol=1e-4)


def test_conv1d_and_experts(tiny_model: Callable[..., Path], tmp_path: Path, text: Path) -> None:
    for family in ("gpt2", "qwen3_moe", "gpt_oss"):
        step = {"lowrank": {"ratio": 0.6, "allocate": "fisher"}, "score": "fisher", "solver": "weighted_svd"}
        result = compress(tiny_model(family), recipe(**step), tmp_path / family, data=str(text), device="cpu")
        loaded = load(tmp_path / family, device="cpu")
        # Experts are packed all together, or they could not run packed.
        assert sum(isinstance(m, PackedLinear) for m in loaded.modules()) == len(result.plan.weights) >= 7


def alike(source: Path, folder: Path) -> Path:
    """A model whose gate and up projections have most of their inputs' directions in common."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    for layer in model.model.layers:
        common = torch.randn(24, 64, generator=generator) / 8
        for linear in (layer.mlp.gate_proj, layer.mlp.up_proj):
            own = torch.randn(128, 24, generator=generator) @ common
            linear.weight.data = own / 8 + 0.01 * torch.randn(128, 64, generator=generator)
    model.to(torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, folder)
    return folder


def test_a_shared_factor_is_stored_once(tiny_model: Callable[..., Path], tmp_path: Path, text: Path) -> None:
    source = alike(tiny_model("llama"), tmp_path / "source")
    lowrank = {"ratio": 0.5, "allocate": "truncation"}
    step = {"targets": ["re:.*mlp.*"], "solver": "weighted_svd"}
    apart = compress(
        source, recipe(lowrank=lowrank, **step), tmp_path / "apart", data=str(text), device="cpu"
    )
    chosen = recipe(lowrank={**lowrank, "share": True}, **step)
    result = compress(source, chosen, tmp_path / "out", data=str(text), device="cpu")
    verify(tmp_path / "out", source)
    sharing = {w.name: w.input_from for w in result.plan.weights if w.input_from is not None}
    owner, other = "model.layers.1.mlp.gate_proj", "model.layers.1.mlp.up_proj"
    assert sharing[other] == owner
    assert f"{other}.right_weight" not in result.plan.shards[0].header.decode(errors="replace")
    assert result.plan.weight_bytes == sum(
        spec.nbytes
        for name, spec in {k: v for w in result.plan.weights for k, v in w.tensors.items()}.items()
    )
    assert sum(w.error for w in result.report.weights) < sum(w.error for w in apart.report.weights)
    loaded = load(tmp_path / "out", device="cpu")
    packed = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    one, two = packed.get_submodule(owner), packed.get_submodule(other)
    assert one.right_weight.data_ptr() == two.right_weight.data_ptr()
    ids = torch.arange(2, 26).unsqueeze(0)
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, packed(ids).logits)


def test_gradients_can_be_kept(tiny_model: Callable[..., Path], tmp_path: Path, text: Path) -> None:
    hashes = []
    for number in (0, 1):
        out, keep = tmp_path / f"out{number}", tmp_path / "kept"
        result = compress(
            tiny_model("llama"), recipe(**STEPS["gfwsvd"]), out, data=str(text), device="cpu", gradients=keep
        )
        hashes.append([shard.sha256 for shard in result.report.shards])
        (folder,) = keep.iterdir()
        assert len(list(folder.iterdir())) == 2
    assert hashes[0] == hashes[1]


def test_dense_form(tiny_model: Callable[..., Path], tmp_path: Path, text: Path) -> None:
    model, chosen = tiny_model("llama"), recipe(**STEPS["svd-llm"])
    native = compress(model, chosen, tmp_path / "native", data=str(text), device="cpu")
    compress(model, chosen, tmp_path / "dense", data=str(text), device="cpu", format="dense")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", dtype=torch.bfloat16)
    packed = load(tmp_path / "native", device="cpu")
    name = native.plan.weights[0].name
    module = packed.get_submodule(name)
    assert isinstance(module, PackedLinear)
    assert torch.equal(plain.get_submodule(name).weight, module.dequantize(torch.bfloat16))


def test_what_stays_dense_is_listed(tiny_model: Callable[..., Path]) -> None:
    planned = plan(tiny_model("llama"), recipe(lowrank={"rank": 24}, solver="weighted_svd"))
    whole = {skipped.name: skipped.reason for skipped in planned.skipped}
    assert "stays dense: compressed it would take" in whole["model.layers.0.self_attn.k_proj"]
    assert any(weight.name.endswith("q_proj") for weight in planned.weights)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"lowrank": {"rank": 65}, "solver": "weighted_svd"}, "rank 65 exceeds its smaller side"),
        ({"lowrank": {"ratio": 1.2}, "solver": "weighted_svd"}, "lowrank.ratio"),
        ({"lowrank": {"ratio": 0.0}, "solver": "weighted_svd"}, "lowrank.ratio"),
        ({"lowrank": {}, "solver": "weighted_svd"}, "either 'ratio' or 'rank'"),
        ({"lowrank": {"ratio": 0.5, "share": True}, "solver": "weighted_svd"}, "'share' goes with"),
        ({"lowrank": {"rank": 8, "allocate": "fisher"}, "solver": "weighted_svd"}, "spreads a 'ratio'"),
        (
            {"lowrank": {"ratio": 0.5, "allocate": "energy"}, "quantize": {"bits": 4}, "solver": "eora"},
            "'eora'",
        ),
        ({"lowrank": {"ratio": 0.5}, "solver": "gptq"}, "cannot serve this step"),
        ({"lowrank": {"ratio": 0.5}, "solver": "lost"}, "cannot serve this step"),
        ({"lowrank": {"ratio": 0.5, "columns": 0.1}, "quantize": {"bits": 4}, "solver": "lost"}, "columns"),
    ],
)
def test_mistakes(tiny_model: Callable[..., Path], step: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan(tiny_model("llama"), recipe(**step))


@pytest.mark.parametrize("by", ["loss", "angle"])
def test_fewer_blocks(tiny_model: Callable[..., Path], tmp_path: Path, text: Path, by: str) -> None:
    model = tiny_model("gemma3", num_hidden_layers=4, layer_types=["sliding_attention", "full_attention"] * 2)
    chosen = Recipe.parse(
        {"name": "test", "depth_pruning": {"blocks": 1, "by": by}, "calibrate": {"samples": 4, "length": 24}}
    )
    result = compress(model, chosen, tmp_path / "out", data=str(text), device="cpu")
    (dropped,) = result.plan.dropped
    small = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert small.config.num_hidden_layers == len(small.config.layer_types) == 3
    large = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    kept = [index for index in range(4) if index != dropped]
    for new, old in enumerate(kept):
        assert small.config.layer_types[new] == large.config.layer_types[old]
        for key, value in small.model.layers[new].state_dict().items():
            assert torch.equal(value, large.model.layers[old].state_dict()[key]), key
    verify(tmp_path / "out", model)


def test_all_blocks_cannot_go(tiny_model: Callable[..., Path], text: Path) -> None:
    chosen = Recipe.parse(
        {"name": "test", "depth_pruning": {"blocks": 2}, "calibrate": {"samples": 4, "length": 24}}
    )
    with pytest.raises(UserError, match="2 of 2 blocks"):
        plan(tiny_model("llama"), chosen, data=str(text))
