"""The mixes of llama.cpp: which tensor has which type."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from compress_kernels.layouts import GGUFBlocks

import compress
from compress.errors import UserError
from compress.formats.gguf.mixes import MIXES, _more_bits
from compress.recipe.recipe import Recipe
from compress.report.assemble import describe


def types_of(source: Path | str, recipe: str | Recipe) -> dict[str, str]:
    planned = compress.plan(source, recipe)
    return {weight.name: weight.layout.to_json()["type"] for weight in planned.weights}


def test_more_bits_go_to_the_ends_and_to_every_third_layer_between() -> None:
    assert [layer for layer in range(16) if _more_bits(layer, 16)] == [0, 1, 4, 7, 10, 13, 14, 15]


def test_the_types_of_q4_k_m_are_those_of_llama_cpp() -> None:
    types = types_of("embedded", "q4_k_m")
    rich = {name for name, kind in types.items() if kind == "q6_k"}
    layers = [layer for layer in range(6) if _more_bits(layer, 6)]
    expected = {f"model.layers.{n}.{part}" for n in layers for part in ("self_attn.v_proj", "mlp.down_proj")}
    assert rich == expected | {"model.embed_tokens"}
    assert {kind for name, kind in types.items() if name not in rich} == {"q4_k"}


def test_a_head_of_its_own_has_the_bits_and_the_embeddings_have_not(tiny_model: Callable[..., Path]) -> None:
    source = tiny_model("llama", hidden_size=256, intermediate_size=256)
    types = types_of(source, "Q4_K_M")
    assert (types["lm_head"], types["model.embed_tokens"]) == ("q6_k", "q4_k")


def test_widths_that_do_not_fit_take_the_types_of_llama_cpp(tiny_model: Callable[..., Path]) -> None:
    counted = Counter(types_of(tiny_model("llama"), "q4_k_m").values())
    assert set(counted) == {"q5_0", "q8_0"}
    bare = Recipe.load("q4_k_m", {"quantize.fallback": False})
    with pytest.raises(
        UserError, match=r"no multiple of the 256 .* llama.cpp takes .*'quantize.fallback: true'"
    ):
        compress.plan(tiny_model("llama"), bare)


def test_a_mix_that_llama_cpp_does_not_have_is_named() -> None:
    recipe = Recipe.load("q4_k_m", {"quantize.mix": "l"})
    with pytest.raises(UserError, match="no mix 'l' of q4_k: known are"):
        compress.plan("embedded", recipe)
    assert ("q4_k", "l") not in MIXES


def test_the_type_of_a_weight_is_told_in_llama_cpps_words() -> None:
    assert describe(GGUFBlocks("q4_k")) == "GGUF Q4_K"
