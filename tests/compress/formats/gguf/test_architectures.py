"""Families in GGUF: every tensor has its place, and a file written for llama.cpp loads again as the model that it was."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import compress
from compress.errors import UserError
from compress.formats.gguf.architectures import ARCHITECTURES
from compress.formats.gguf.derived import (
    DERIVED_FFN,
    DERIVED_GROUPS,
    DERIVED_QUERIES,
    DERIVED_ROTATED,
    DERIVED_WINDOWS,
    with_derived,
)
from compress.formats.gguf.metadata import architecture_of, model_metadata, rope_tensors
from compress.recipe.recipe import Recipe

gguf = pytest.importorskip("gguf")

RECIPE = Recipe.parse(
    {
        "name": "round",
        "format": "gguf",
        "steps": [{"targets": ["linear", "experts"], "quantize": {"type": "q8_0"}, "solver": "nearest"}],
    }
)
FAMILIES = ["llama", "mixtral", "qwen3_moe", "phi3", "gpt2", "gpt_neox", "gpt_oss"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_goes_through_gguf_and_back(
    family: str, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    source = tiny_model(family)
    out = compress.compress(source, RECIPE, tmp_path / "out").out
    reader = gguf.GGUFReader(out / "model.gguf")
    assert all(bool(torch.isfinite(torch.from_numpy(_values(tensor))).all()) for tensor in reader.tensors)
    compress.verify(out, source)
    model = compress.load(out, dtype=torch.float32, device="cpu")
    reference = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    tokens = torch.arange(20).view(1, -1)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, reference(tokens).logits, rtol=0.05, atol=0.05)


def _values(tensor: Any) -> Any:
    return gguf.quants.dequantize(tensor.data, tensor.tensor_type)


def test_experts_are_one_tensor_and_biases_are_parted(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    source = tiny_model("gpt_oss")
    out = compress.compress(source, RECIPE, tmp_path / "out").out
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(out / "model.gguf").tensors}
    state = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).state_dict()
    fused = state["model.layers.1.mlp.experts.gate_up_proj"]  # [experts, in, 2 · out], gate and up in turns
    for half, name in enumerate(("gate", "up")):
        found = torch.from_numpy(_values(tensors[f"blk.1.ffn_{name}_exps.weight"]))
        torch.testing.assert_close(found, fused[:, :, half::2].transpose(1, 2), rtol=0.02, atol=1e-3)
        bias = torch.from_numpy(tensors[f"blk.1.ffn_{name}_exps.bias"].data.copy())
        assert torch.equal(bias, state["model.layers.1.mlp.experts.gate_up_proj_bias"][:, half::2])


def test_rows_of_queries_and_keys_are_as_llama_cpps_rope_wants_them(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    for family, permuted in (("llama", True), ("qwen3", False)):
        source = tiny_model(family)
        out = compress.compress(source, RECIPE, tmp_path / family).out
        tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(out / "model.gguf").tensors}
        state = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).state_dict()
        for letter, heads in (("q", 4), ("k", 2)):
            own = state[f"model.layers.0.self_attn.{letter}_proj.weight"]
            if permuted:
                own = own.view(heads, 2, 8, -1).transpose(1, 2).reshape(own.shape)
            found = torch.from_numpy(_values(tensors[f"blk.0.attn_{letter}.weight"]))
            torch.testing.assert_close(found, own, rtol=0.02, atol=1e-3)


def test_settings_that_llama_cpp_has_built_in_are_checked() -> None:
    with pytest.raises(UserError, match="'hidden_act' silu, and this one has gelu"):
        architecture_of(with_derived({"model_type": "llama", "hidden_act": "gelu", "num_attention_heads": 2}))
    layers = ["full_attention", "sliding_attention"]
    config = {"model_type": "gemma3_text", "layer_types": layers, "num_attention_heads": 2}
    with pytest.raises(UserError, match="'windows' 6, and this one has irregular"):
        architecture_of(with_derived(config))


@pytest.mark.parametrize("family", ["mistral", "mixtral", "phi3", "starcoder2"])
def test_a_window_that_llama_cpp_does_not_have_ends_the_context(family: str) -> None:
    sizes = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 64}
    config = with_derived(
        {"model_type": family, **sizes, "max_position_embeddings": 128, "sliding_window": 16}
    )
    assert _context(config) == 16
    assert _context(with_derived({**config, "sliding_window": None})) == 128


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "qwen2_moe", "qwen3_moe", "smollm3"])
def test_a_window_in_some_layers_is_refused_where_llama_cpp_has_none(family: str) -> None:
    config = {"model_type": family, "use_sliding_window": True, "num_attention_heads": 2}
    with pytest.raises(UserError, match="'use_sliding_window' False, and this one has True"):
        architecture_of(with_derived(config))


def _context(config: dict[str, Any]) -> int:
    architecture = architecture_of(config)
    found = model_metadata("tiny", config, architecture, 0)[f"{architecture.name}.context_length"]
    return int(found.value)


def test_what_a_configuration_implies() -> None:
    falcon = with_derived(
        {"hidden_size": 64, "num_attention_heads": 8, "multi_query": True, "num_kv_heads": 8}
    )
    assert (falcon[DERIVED_GROUPS], falcon[DERIVED_QUERIES], falcon[DERIVED_FFN]) == (1, 8, 256)
    partial = with_derived(
        {"hidden_size": 64, "num_attention_heads": 4, "rope_parameters": {"partial_rotary_factor": 0.25}}
    )
    assert partial[DERIVED_ROTATED] == 4
    layers = ["sliding_attention"] * 5 + ["full_attention"]
    assert with_derived({"layer_types": layers * 2 + layers[:2]})[DERIVED_WINDOWS] == 6


def test_long_contexts_have_their_factors_as_tensors() -> None:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = with_derived({"hidden_size": 256, "num_attention_heads": 2, "rope_parameters": rope})
    factors = rope_tensors(config)["rope_freqs.weight"]
    assert factors.shape == (64,)
    assert float(factors[0]) == 1.0
    assert float(factors[-1]) == 8.0
    assert bool((factors.diff() >= 0).all())


def test_every_table_is_of_an_architecture_that_the_package_gguf_knows() -> None:
    assert {architecture.name for architecture in ARCHITECTURES.values()} <= set(
        gguf.MODEL_ARCH_NAMES.values()
    )


LATENT = {
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_key_value_heads": 4,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 64,
}


@pytest.mark.parametrize(
    ("kind", "more", "gating"),
    [
        ("deepseek_v2", {"topk_method": "greedy", "norm_topk_prob": False}, 1),
        ("deepseek_v3", {"n_group": 2, "topk_group": 1, "num_nextn_predict_layers": 1}, 2),
    ],
)
def test_latent_attention_goes_through_gguf_and_back(
    kind: str, more: dict[str, Any], gating: int, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    source = tiny_model("qwen3_moe", model_type=kind, **LATENT, **more)
    out = compress.compress(source, RECIPE, tmp_path / "out").out
    reader = gguf.GGUFReader(out / "model.gguf")
    fields = {name.removeprefix("deepseek2."): field.contents() for name, field in reader.fields.items()}
    assert fields["attention.key_length"] == 32
    assert fields["leading_dense_block_count"] == 1
    assert fields["expert_gating_func"] == gating
    assert fields.get("expert_group_count") == more.get("n_group")
    names = {tensor.name for tensor in reader.tensors}
    assert {"blk.0.attn_kv_b.weight", "blk.0.attn_q_a_norm.weight", "blk.1.ffn_up_shexp.weight"} <= names
    assert ("blk.1.exp_probs_b.bias" in names) == (kind == "deepseek_v3")
    compress.verify(out, source)


def test_layers_that_predict_further_tokens_are_left_out(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tmp_path / "more"
    shutil.copytree(tiny_model("qwen3_moe", model_type="deepseek_v3", **LATENT), folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.2.enorm.weight"] = torch.ones(64)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    made = compress.export(folder, tmp_path / "out")
    names = {tensor.name for tensor in gguf.GGUFReader(made.out / "model.gguf").tensors}
    assert not any(name.startswith("blk.2.") for name in names)


def test_experts_that_are_chosen_by_groups_of_v2_are_refused() -> None:
    config = with_derived({"model_type": "deepseek_v2", "topk_method": "group_limited_greedy"})
    with pytest.raises(UserError, match="'topk_method' greedy"):
        architecture_of(config)


YARN = {"rope_type": "yarn", "factor": 8.0, "rope_theta": 1e4}


@pytest.mark.parametrize(
    ("more", "multiplier"),
    [
        ({}, None),
        ({"attention_factor": 0.1 * math.log(8.0) + 1}, None),
        ({"mscale": 0.707, "mscale_all_dim": 0.707}, 0.0707),
    ],
)
def test_yarn_multiplies_attention_as_llama_cpp_does(more: dict[str, Any], multiplier: float | None) -> None:
    found = _metadata_of({**YARN, **more}).get("llama.rope.scaling.yarn_log_multiplier")
    assert (None if found is None else found.value) == pytest.approx(multiplier)


@pytest.mark.parametrize("more", [{"attention_factor": 2.0}, {"mscale": 1.0, "mscale_all_dim": 0.5}])
def test_yarn_that_multiplies_attention_otherwise_is_refused(more: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="YaRN's attention"):
        _metadata_of({**YARN, **more})


def _metadata_of(rope: dict[str, Any]) -> dict[str, Any]:
    config = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
    config |= {"max_position_embeddings": 64, "rope_parameters": rope}
    return model_metadata("model", with_derived(config), ARCHITECTURES["llama"], 0)
