"""Spaces of real models: which parameters write and read the residual stream and the values, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from compress.checkpoint.source import open_source
from compress.models.skeleton import open_skeleton
from compress.transforms.tracing import Norm, Spaces, find_spaces

Tiny = Callable[..., Path]


def _spaces(folder: Path) -> Spaces:
    return find_spaces(open_skeleton(open_source(folder)))


def test_every_reader_and_writer_of_a_llama(tiny_model: Tiny) -> None:
    stream = _spaces(tiny_model("llama")).residual
    assert stream is not None
    blocks = [f"model.layers.{index}" for index in range(2)]
    outputs = {f"{block}.{name}.weight" for block in blocks for name in ("self_attn.o_proj", "mlp.down_proj")}
    assert {(one.parameter, one.dim) for one in stream.writers} == {
        ("model.embed_tokens.weight", 1),
        *((name, 0) for name in outputs),
    }
    attention = {
        f"{block}.self_attn.{name}.weight": block
        for block in blocks
        for name in ("q_proj", "k_proj", "v_proj")
    }
    gates = {f"{block}.mlp.{name}.weight": block for block in blocks for name in ("gate_proj", "up_proj")}
    norms = {name: f"{block}.input_layernorm.weight" for name, block in attention.items()}
    norms |= {name: f"{block}.post_attention_layernorm.weight" for name, block in gates.items()}
    norms["lm_head.weight"] = "model.norm.weight"
    assert {one.parameter: one.norm for one in stream.readers} == {
        name: Norm(norm) for name, norm in norms.items()
    }
    assert (stream.size, stream.block, stream.keeps_mean) == (64, 64, False)


@pytest.mark.parametrize("family", ["gpt2", "opt", "gpt_neox"])
def test_layer_norm_keeps_the_mean_and_has_a_shift(tiny_model: Tiny, family: str) -> None:
    stream = _spaces(tiny_model(family)).residual
    assert stream is not None
    assert stream.keeps_mean
    assert all(one.norm is not None and one.norm.bias for one in stream.readers)
    written = {one.parameter for one in stream.writers}
    assert any(name.endswith("bias") for name in written)


def test_a_norm_that_multiplies_by_one_plus_its_weight(tiny_model: Tiny) -> None:
    spaces = _spaces(tiny_model("gemma3"))
    assert spaces.residual is None
    assert "layers.0.post_attention_layernorm.weight scales it" in spaces.refusal
    assert len(spaces.inner) == 2  # values go through no such norm


def test_experts_and_their_router_read_the_stream(tiny_model: Tiny) -> None:
    stream = _spaces(tiny_model("gpt_oss")).residual
    assert stream is not None
    readers = {(one.parameter, one.dim) for one in stream.readers}
    assert ("model.layers.0.mlp.experts.gate_up_proj", 1) in readers
    assert ("model.layers.0.mlp.router.weight", 1) in readers
    writers = {(one.parameter, one.dim) for one in stream.writers}
    assert ("model.layers.0.mlp.experts.down_proj", 2) in writers
    assert ("model.layers.0.mlp.experts.down_proj_bias", 1) in writers


@pytest.mark.parametrize(
    ("family", "rows"), [("llama", (0, 32)), ("phi3", (96, 128)), ("gpt2", (128, 192)), ("opt", (0, 64))]
)
def test_values_by_head(tiny_model: Tiny, family: str, rows: tuple[int, int]) -> None:
    inner = _spaces(tiny_model(family)).inner
    assert len(inner) == 2
    for space in inner:
        assert space.block == 16
        assert {(one.start, one.stop) for one in space.writers} == {rows}
        assert len(space.readers) == 1
        assert space.readers[0].norm is None


def test_a_forward_that_ends_early_is_a_refusal(tiny_model: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError

    monkeypatch.setattr("transformers.models.llama.modeling_llama.LlamaMLP.forward", fail)
    spaces = _spaces(tiny_model("llama"))
    assert spaces.residual is None
    assert not spaces.inner
    assert spaces.refusal == "its forward cannot be followed without weights (RuntimeError)"
