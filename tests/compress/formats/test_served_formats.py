"""GPTQ, AWQ and MLX from a recipe: what is on disk by a slow reader, what is refused, what our reader makes of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compress_kernels.layouts import AffineInteger, PackedFloat, PackedInteger
from safetensors.torch import load_file
from torch import Tensor

import compress
from compress.checkpoint.quantized.read import decode_source
from compress.checkpoint.source import open_source
from compress.errors import UserError
from compress.formats.dense_source import open_dense, stays_packed
from compress.formats.read import packed_weights
from compress.recipe.recipe import Recipe

Tiny = Callable[..., Path]
Q = "model.layers.1.self_attn.q_proj"
AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)


def recipe(*, solver: str = "nearest", step: dict[str, Any] | None = None, **quantize: Any) -> Recipe:
    settings = {"bits": 4, "group_size": 32, **quantize}
    return Recipe.parse({"name": "r", "steps": [{"quantize": settings, "solver": solver, **(step or {})}]})


def stream(words: Tensor, index: int, bits: int) -> int:
    """Number ``index`` of ``bits`` bits in 32-bit words, lowest bit first."""
    whole = sum((int(word) & 0xFFFFFFFF) << (32 * i) for i, word in enumerate(words.tolist()))
    return (whole >> (index * bits)) & ((1 << bits) - 1)


def slow_row(
    format: str, tensors: dict[str, Tensor], name: str, row: int, bits: int, version: str = "gptq"
) -> Tensor:
    """A row of a weight in float64, read number by number as the formats are described; ``version`` is that of GPTQ's."""
    part = {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}
    if format == "mlx":
        scales, biases = (part[key][row].double() for key in ("scales", "biases"))
        columns = part["weight"].shape[1] * 32 // bits
        codes = torch.tensor([stream(part["weight"][row], j, bits) for j in range(columns)])
        width = columns // len(scales)
        return codes * scales.repeat_interleave(width) + biases.repeat_interleave(width)
    scales, groups = part["scales"][:, row].double(), len(part["scales"])
    if format == "gptq":
        codes = torch.tensor([stream(part["qweight"][:, row], j, bits) for j in range(len(part["g_idx"]))])
        less = int(version == "gptq")
        zeros = torch.tensor([stream(part["qzeros"][g], row, bits) + less for g in range(groups)])
        return (codes - zeros[part["g_idx"].long()]) * scales[part["g_idx"].long()]
    shift = 4 * AWQ_PLACES[row % 8]
    codes, zeros = ((part[key][:, row // 8].long() >> shift) & 15 for key in ("qweight", "qzeros"))
    width = len(codes) // groups
    return (codes - zeros.repeat_interleave(width)) * scales.repeat_interleave(width)


SCHEMES = [
    *[
        ("gptq", {"bits": bits, "symmetric": symmetric})
        for bits in (2, 3, 4, 8)
        for symmetric in (True, False)
    ],
    ("gptq", {"group_size": "channel", "symmetric": False}),
    ("gptq", {"group_size": "tensor"}),
    *[("awq", {"symmetric": symmetric}) for symmetric in (True, False)],
    *[
        ("mlx", {"bits": bits, "symmetric": symmetric})
        for bits in (2, 3, 6, 8)
        for symmetric in (True, False)
    ],
    ("mlx", {"group_size": "channel"}),
]


@pytest.mark.parametrize(("format", "quantize"), SCHEMES, ids=str)
def test_what_is_on_disk(format: str, quantize: dict[str, Any], tiny_model: Tiny, tmp_path: Path) -> None:
    made = compress.compress(tiny_model("llama"), recipe(**quantize), tmp_path / "out", format=format)
    tensors = load_file(made.out / "model.safetensors")
    source = open_source(made.out)
    assert stays_packed(source)
    weight = packed_weights(source)[Q]
    ours = weight.layout.decode(weight.tensors(source), weight.shape, torch.float64)
    bits = quantize.get("bits", 4)
    for row in (0, 5, 63):
        slow = slow_row(
            format, tensors, Q, row, bits, source.config["quantization_config"].get("checkpoint_format")
        )
        torch.testing.assert_close(ours[row], slow, rtol=1e-6, atol=1e-9)
    # As a source for another run, in the dtype that it had.
    dense = open_dense(made.out).read(f"{Q}.weight")
    torch.testing.assert_close(dense.double(), ours, rtol=2**-8, atol=1e-6)
    original = open_source(tiny_model("llama")).read(f"{Q}.weight").double()
    worst = {2: 0.6, 3: 0.3, 4: 0.15, 6: 0.04, 8: 0.01}[bits] * (
        1 if quantize.get("group_size") is None else 1.5
    )
    assert float((ours - original).norm() / original.norm()) < worst


def test_what_config_says(tiny_model: Tiny, tmp_path: Path) -> None:
    def config(format: str, **quantize: Any) -> dict[str, Any]:
        out = tmp_path / f"{format}-{len(list(tmp_path.iterdir()))}"
        compress.compress(tiny_model("llama"), recipe(**quantize), out, format=format)
        found: dict[str, Any] = json.loads((out / "config.json").read_text())
        return found

    gptq = config("gptq", bits=3, group_size="channel", symmetric=False)["quantization_config"]
    said = {"quant_method": "gptq", "checkpoint_format": "gptq_v2", "bits": 3, "group_size": -1}
    said |= {"sym": False, "desc_act": False}
    assert said.items() <= gptq.items()
    assert "dynamic" not in gptq
    awq = config("awq")["quantization_config"]
    said = {"quant_method": "awq", "version": "gemm", "bits": 4, "group_size": 32, "zero_point": True}
    assert said.items() <= awq.items()
    assert awq["modules_to_not_convert"] == ["lm_head"]
    mlx = config("mlx", bits=8)
    scheme = {"group_size": 32, "bits": 8, "mode": "affine"}
    assert mlx["quantization"] == mlx["quantization_config"] == scheme


def test_layers_that_stay_dense_are_named(tiny_model: Tiny, tmp_path: Path) -> None:
    made = recipe(step={"ignore": ["re:.*layers.0.*down_proj"]})
    compress.compress(tiny_model("llama"), made, tmp_path / "gptq", format="gptq")
    said = json.loads((tmp_path / "gptq" / "config.json").read_text())["quantization_config"]
    assert list(said["dynamic"]) == [r"-:^model\.layers\.0\.mlp\.down_proj$"]
    (held,) = said["modules_in_block_to_quantize"]
    assert "model.layers.1.mlp.down_proj" in held
    assert "model.layers.0.mlp.down_proj" not in held
    compress.compress(tiny_model("llama"), made, tmp_path / "awq", format="awq")
    said = json.loads((tmp_path / "awq" / "config.json").read_text())["quantization_config"]
    assert set(said["modules_to_not_convert"]) == {"lm_head", "model.layers.0.mlp.down_proj"}


def test_mlx_holds_embeddings_head_and_mixed_bits(tiny_model: Tiny, tmp_path: Path) -> None:
    quantize = {"bits": 4, "group_size": 32, "symmetric": False}
    steps = [
        {"quantize": quantize, "solver": "nearest"},
        {
            "targets": ["embeddings"],
            "quantize": {**quantize, "bits": 6, "group_size": 64},
            "solver": "nearest",
        },
    ]
    mixed = Recipe.parse({"name": "r", "steps": steps})
    out = compress.compress(tiny_model("llama_tied"), mixed, tmp_path / "mlx", format="mlx").out
    said = json.loads((out / "config.json").read_text())["quantization"]
    assert said == {
        "group_size": 32,
        "bits": 4,
        "mode": "affine",
        "model.embed_tokens": {"group_size": 64, "bits": 6, "mode": "affine"},
    }
    source = open_source(out)
    weights = packed_weights(source)
    assert weights["model.embed_tokens"].layout == AffineInteger(6, 64)
    tensors = load_file(out / "model.safetensors")
    row = slow_row("mlx", tensors, "model.embed_tokens", 7, 6)
    held = weights["model.embed_tokens"]
    decoded = held.layout.decode(held.tensors(source), held.shape, torch.float64)
    torch.testing.assert_close(decoded[7], row, atol=1e-9, rtol=1e-6)


def test_asymmetric_grids_of_mlx_have_fractions(tiny_model: Tiny, tmp_path: Path) -> None:
    """The bias is what the solver chose, not a whole zero point times the scale."""
    out = compress.compress(tiny_model("llama"), recipe(symmetric=False), tmp_path / "mlx", format="mlx").out
    tensors = load_file(out / "model.safetensors")
    zero = -tensors[f"{Q}.biases"].double() / tensors[f"{Q}.scales"].double()
    assert float((zero - zero.round()).abs().mean()) > 0.15
    native = recipe(symmetric=False, zero_point="float")
    made = compress.compress(tiny_model("llama"), native, tmp_path / "native")
    assert made.report.format.name == "native"
    weights = packed_weights(open_source(made.out))[Q]
    theirs = packed_weights(open_source(out))[Q]
    assert torch.equal(
        weights.tensors(open_source(made.out))["weight"], theirs.tensors(open_source(out))["weight"]
    )


@pytest.mark.parametrize("mode", ["mxfp4", "nvfp4", "mxfp8"])
def test_small_floats_of_mlx(mode: str, tiny_model: Tiny, tmp_path: Path) -> None:
    """On disk as MLX has them, read by the decoder that is held against MLX's own values, and run packed."""
    step = {"targets": ["linear", "embeddings"], "quantize": {"type": mode}, "solver": "nearest"}
    asked = Recipe.parse({"name": "r", "steps": [step]})
    out = compress.compress(tiny_model("llama"), asked, tmp_path / "mlx", format="mlx").out
    said = json.loads((out / "config.json").read_text())["quantization"]
    group, bits = {"mxfp4": (32, 4), "nvfp4": (16, 4), "mxfp8": (32, 8)}[mode]
    assert said == {"group_size": group, "bits": bits, "mode": mode}
    tensors = load_file(out / "model.safetensors")
    assert (tensors[f"{Q}.weight"].dtype, tensors[f"{Q}.scales"].dtype) == (torch.uint32, torch.uint8)
    source = open_source(out)
    decoded = decode_source(source, said).read(f"{Q}.weight").double()
    held = packed_weights(source)[Q]
    ours = held.layout.decode(held.tensors(source), held.shape, torch.float64)
    torch.testing.assert_close(ours, decoded, rtol=2**-8, atol=0)
    original = open_source(tiny_model("llama")).read(f"{Q}.weight").double()
    assert float((ours - original).norm() / original.norm()) < (0.04 if bits == 8 else 0.14)
    model: Any = compress.load(out, dtype=torch.float32, device="cpu")
    assert model.get_submodule(Q).layout == PackedFloat.of(mode)


def test_a_scale_of_the_whole_weight_does_not_go_to_mlx(tiny_model: Tiny, tmp_path: Path) -> None:
    step = {"quantize": {"type": "nvfp4"}, "solver": "nearest"}
    first = compress.compress(
        tiny_model("llama"), Recipe.parse({"name": "r", "steps": [step]}), tmp_path / "first"
    )
    with pytest.raises(UserError, match="has a scale of the whole weight, which nvfp4 of MLX does not have"):
        compress.export(first.out, tmp_path / "mlx", format="mlx")
    assert [path.name for path in tmp_path.iterdir()] == ["first"]
    four = {"quantize": {"type": "mxfp4"}, "solver": "nearest"}
    second = compress.compress(
        tiny_model("llama"), Recipe.parse({"name": "r", "steps": [four]}), tmp_path / "second"
    )
    assert compress.export(second.out, tmp_path / "mlx", format="mlx").carried == 14


@pytest.mark.parametrize("format", ["gptq", "awq", "mlx"])
def test_our_reader_runs_it_packed(format: str, tiny_model: Tiny, tmp_path: Path) -> None:
    made = compress.compress(tiny_model("llama"), recipe(symmetric=False), tmp_path / "out", format=format)
    model: Any = compress.load(made.out, dtype=torch.float32, device="cpu")
    layout = model.get_submodule(Q).layout
    assert isinstance(layout, AffineInteger if format == "mlx" else PackedInteger)
    dense = compress.compress(
        made.out, recipe(bits=8, group_size="channel"), tmp_path / "dense", format="dense"
    )
    tokens = torch.arange(24).view(1, -1)
    with torch.no_grad():
        again = compress.load(dense.out, dtype=torch.float32, device="cpu")(tokens).logits
        difference = (model(tokens).logits - again).norm() / again.norm()
    assert float(difference) < 0.05


REFUSED = [
    ("gptq", "llama", recipe(bits=5), "has 5 bits, where GPTQ's format packs 2, 3, 4 and 8"),
    ("awq", "llama", recipe(bits=3), "has 3 bits, where AWQ's format packs 4 alone"),
    ("mlx", "llama", recipe(bits=7), "has 7 bits, where MLX's format packs"),
    ("gptq", "llama", recipe(group_size=16), "has groups of 16, where readers of GPTQ's format take"),
    ("mlx", "llama", recipe(group_size=16), "has groups of 16, where MLX's format has 32, 64 and 128"),
    ("mlx", "llama", recipe(group_size="channel", symmetric=False), "float zero points go with groups of"),
    (
        "awq",
        "llama",
        recipe(symmetric=False, zero_point="float"),
        "is stored as affine, which AWQ's format does not",
    ),
    (
        "gptq",
        "llama",
        recipe(bits=8, group_size="channel", step={"activations": {"bits": 8, "strategy": "token"}}),
        "is stored as int-quantized",
    ),
    (
        "mlx",
        "llama",
        recipe(bits=8, group_size="channel", step={"activations": {"bits": 8, "strategy": "token"}}),
        "is stored as int-quantized",
    ),
    (
        "mlx",
        "llama",
        Recipe.parse({"name": "f", "steps": [{"quantize": {"type": "fp8"}, "solver": "nearest"}]}),
        "is stored as float, which MLX's format does not have",
    ),
    ("gptq", "gpt2", recipe(), "is a transposed Conv1D"),
    ("mlx", "gpt2", recipe(), "is a transposed Conv1D"),
    ("gptq", "llama", recipe(step={"targets": ["linear", "embeddings"]}), "is an embedding"),
    ("awq", "llama", recipe(step={"targets": ["re:lm_head"]}), "is the head"),
    ("awq", "qwen3_moe", recipe(), "is an expert"),
    ("awq", "gpt_neox", recipe(), "in models of type 'gpt_neox' transformers puts scales of activations"),
    ("mlx", "qwen3_moe", recipe(), "is an expert"),
    (
        "gptq",
        "llama",
        Recipe.parse({"name": "p", "steps": [{"prune": {"sparsity": 0.5}, "solver": "nearest"}]}),
        "is stored as bitmask, which GPTQ's format does not have",
    ),
    (
        "mlx",
        "llama",
        Recipe.parse({"name": "l", "steps": [{"lowrank": {"ratio": 0.5}, "solver": "weighted_svd"}]}),
        "is stored as low-rank",
    ),
]


@pytest.mark.parametrize(
    ("format", "family", "asked", "sentence"), REFUSED, ids=lambda value: str(value)[:24]
)
def test_what_does_not_fit_is_a_sentence_before_any_work(
    format: str, family: str, asked: Recipe, sentence: str, tiny_model: Tiny, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=sentence):
        compress.compress(tiny_model(family), asked, tmp_path / "out", format=format)
    assert list(tmp_path.iterdir()) == []


def test_several_schemes(tiny_model: Tiny, tmp_path: Path) -> None:
    steps = [
        {"quantize": {"bits": 4, "group_size": 32}, "solver": "nearest"},
        {"targets": ["re:.*down_proj"], "quantize": {"bits": 8, "group_size": 32}, "solver": "nearest"},
    ]
    mixed = Recipe.parse({"name": "r", "steps": steps})
    with pytest.raises(UserError, match="several schemes, of which GPTQ's format has one"):
        compress.compress(tiny_model("llama"), mixed, tmp_path / "out", format="gptq")


def test_an_interrupted_run_goes_on(
    tiny_model: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is read back of a finished block is in the layout on disk."""
    for format in ("gptq", "awq", "mlx"):
        asked = recipe(symmetric=False)
        whole = compress.compress(tiny_model("llama"), asked, tmp_path / f"{format}-whole", format=format).out
        with monkeypatch.context() as patched:
            patched.setattr("compress.pipeline.run.Run._finish", _interrupt)
            with pytest.raises(KeyboardInterrupt):
                compress.compress(tiny_model("llama"), asked, tmp_path / format, format=format)
        again = compress.compress(tiny_model("llama"), asked, tmp_path / format, format=format).out
        assert (again / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def _interrupt(*arguments: Any) -> Any:
    raise KeyboardInterrupt
