"""The plain fp8 format and ModelOpt's: what is on disk by a slow reader, what our reader makes of it, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compress_kernels.layouts import PackedFloat
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import compress
from compress.checkpoint.source import open_source
from compress.errors import UserError
from compress.formats.dense_source import open_dense, stays_packed
from compress.formats.read import cache_scheme, packed_weights
from compress.recipe.recipe import Recipe

Q = "model.layers.1.self_attn.q_proj"
DOWN = "model.layers.0.mlp.down_proj"
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
TOKEN: dict[str, Any] = {"bits": 8, "type": "float", "strategy": "token"}
STATIC: dict[str, Any] = {"bits": 8, "type": "float", "strategy": "tensor", "dynamic": False}
GROUP: dict[str, Any] = {"bits": 8, "type": "float", "strategy": "group", "group_size": 128}
NV: dict[str, Any] = {"bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}
MX: dict[str, Any] = {"bits": 8, "type": "float", "strategy": "group", "group_size": 32, "scale_type": "e8m0"}

ALGORITHMS = {
    "FP8": ({"type": "fp8", "group_size": "tensor"}, STATIC),
    "FP8_PER_CHANNEL_PER_TOKEN": ({"type": "fp8", "group_size": "channel"}, TOKEN),
    "FP8_PB_WO": ({"type": "fp8", "group_size": "block"}, GROUP),
    "MXFP8": ({"type": "mxfp8"}, MX),
    "NVFP4": ({"type": "nvfp4"}, NV),
    "W4A16_NVFP4": ({"type": "nvfp4"}, None),
}


@pytest.fixture(scope="module")
def dense(tiny_model: Callable[..., Path]) -> Path:
    """A model with inputs of 128 and 256, and rows that 128 does not divide in its keys and values."""
    return tiny_model("llama", hidden_size=128, intermediate_size=256, head_dim=32)


@pytest.fixture(scope="module")
def words() -> Tensor:
    return torch.randint(2, 256, (2, 32), generator=torch.Generator().manual_seed(1))


def recipe(quantize: dict[str, Any], activations: dict[str, Any] | None = None, **more: Any) -> Recipe:
    step = {
        "quantize": quantize,
        "solver": "nearest",
        **({"activations": activations} if activations else {}),
    }
    return Recipe.parse({"name": "r", "steps": [step], **more})


def run(dense: Path, asked: Recipe, out: Path, format: str) -> Path:
    """Calibrated on two windows of this file."""
    return compress.compress(dense, asked, out, data=__file__, samples=2, length=32, format=format).out


def slow(tensors: dict[str, Tensor], name: str, row: int) -> Tensor:
    """A row in float64, number by number."""
    part = {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}
    weight = part["weight"]
    if weight.dtype == torch.uint8:
        halves = [code for octet in weight[row].tolist() for code in (octet & 15, octet >> 4)]
        elements = [E2M1[code & 7] * (-1 if code & 8 else 1) for code in halves]
    else:
        elements = weight[row].double().tolist()
    columns = len(elements)
    scale = part["weight_scale_inv"] if "weight_scale_inv" in part else part["weight_scale"]
    if scale.dtype == torch.uint8:
        scales = [2.0 ** (int(octet) - 127) for octet in scale[row]]
    elif scale.dim() == 0:
        scales = [float(scale)]
    elif scale.dim() == 1:
        scales = [float(scale[row])]
    elif weight.dtype == torch.uint8:
        scales = [float(each) * float(part["weight_scale_2"]) for each in scale[row].float()]
    else:
        blocks = scale.squeeze(3).squeeze(1) if scale.dim() == 4 else scale
        scales = blocks[row // 128].double().tolist()
    width = columns // len(scales)
    return torch.tensor([one * scales[i // width] for i, one in enumerate(elements)], dtype=torch.float64)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_modelopt(algorithm: str, dense: Path, tmp_path: Path) -> None:
    quantize, activations = ALGORITHMS[algorithm]
    out = run(dense, recipe(quantize, activations), tmp_path / "out", "modelopt")
    said = json.loads((out / "config.json").read_text())["quantization_config"]
    assert (said["quant_method"], said["quant_algo"], said["ignore"]) == ("modelopt", algorithm, ["lm_head"])
    theirs = json.loads((out / "hf_quant_config.json").read_text())["quantization"]
    assert (theirs["quant_algo"], theirs["exclude_modules"]) == (algorithm, ["lm_head"])
    tensors, source = load_file(out / "model.safetensors"), open_source(out)
    assert stays_packed(source)
    for name in (Q, DOWN):
        held = packed_weights(source)[name]
        ours = held.layout.decode(held.tensors(source), held.shape, torch.float64)
        for row in (0, 77, 127):
            torch.testing.assert_close(ours[row], slow(tensors, name, row), rtol=1e-6, atol=1e-12)
        original = open_source(dense).read(f"{name}.weight").double()
        assert float((ours - original).norm() / original.norm()) < (0.12 if "4" in algorithm else 0.04)
        read = open_dense(out).read(f"{name}.weight").double()
        torch.testing.assert_close(read, ours, rtol=2**-8, atol=1e-9)
    stored = {name for name in tensors if name.endswith(".input_scale")}
    assert len(stored) == (14 if algorithm in ("FP8", "NVFP4") else 0)


def test_inputs_of_nvfp4_are_rounded_by_the_reciprocal_that_is_stored(
    dense: Path, words: Tensor, tmp_path: Path
) -> None:
    """The same recipe as compressed-tensors stores the scale of all inputs itself; both models compute the same."""
    quantize, activations = ALGORITHMS["NVFP4"]
    ours = run(dense, recipe(quantize, activations), tmp_path / "modelopt", "modelopt")
    other = run(dense, recipe(quantize, activations), tmp_path / "other", "compressed-tensors")
    scale = load_file(ours / "model.safetensors")[f"{Q}.input_scale"]
    outer = load_file(other / "model.safetensors")[f"{Q}.input_global_scale"]
    torch.testing.assert_close(scale * outer, torch.ones(1), rtol=1e-6, atol=0)
    logits = [
        compress.load(folder, dtype=torch.float32, device="cpu")(words).logits.detach()
        for folder in (ours, other)
    ]
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-3, atol=1e-4)
    again = compress.export(other, tmp_path / "again", format="modelopt").out
    first, second = (load_file(folder / "model.safetensors") for folder in (ours, again))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name].float(), second[name].float()) for name in first)
    assert (again / "hf_quant_config.json").is_file()


def test_plain_fp8(dense: Path, tmp_path: Path) -> None:
    """On disk as DeepSeek's checkpoints are; transformers reads the same values."""
    quantize, activations = ALGORITHMS["FP8_PB_WO"]
    out = run(dense, recipe(quantize, activations), tmp_path / "out", "fp8")
    said = json.loads((out / "config.json").read_text())["quantization_config"]
    wanted = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    assert wanted.items() <= said.items()
    assert said["modules_to_not_convert"] == ["lm_head"]
    tensors, source = load_file(out / "model.safetensors"), open_source(out)
    assert tensors[f"{DOWN}.weight_scale_inv"].shape == (1, 2)
    held = packed_weights(source)[DOWN]
    assert held.layout == PackedFloat.of("fp8", "block", torch.float32)
    ours = held.layout.decode(held.tensors(source), held.shape, torch.float64)
    torch.testing.assert_close(ours[5], slow(tensors, DOWN, 5), rtol=1e-6, atol=1e-12)
    theirs = AutoModelForCausalLM.from_pretrained(out, dtype=torch.bfloat16)
    found = theirs.get_submodule(DOWN).weight.detach().double()
    torch.testing.assert_close(found, ours, rtol=2**-7, atol=1e-6)
    loaded: Any = compress.load(out, dtype=torch.float32, device="cpu")
    assert loaded.get_submodule(DOWN).layout == held.layout
    torch.testing.assert_close(open_dense(out).read(f"{DOWN}.weight").double(), ours, rtol=2**-8, atol=1e-9)


def test_the_shipped_recipe_goes_out_as_plain_fp8(dense: Path, tmp_path: Path) -> None:
    first = compress.compress(dense, "fp8-block", tmp_path / "first")
    assert first.report.format.name == "compressed-tensors"
    again = compress.export(first.out, tmp_path / "again", format="fp8")
    assert again.carried == 14
    made = compress.compress(dense, "fp8-block", tmp_path / "made", format="fp8")
    assert made.report.format.servers == ("transformers", "vllm")


@pytest.mark.parametrize(
    ("format", "quantize", "activations", "reason"),
    [
        ("fp8", {"type": "fp8", "group_size": "channel"}, TOKEN, "fp8 with scales by channel"),
        ("fp8", {"type": "fp8", "group_size": "block"}, None, "takes inputs as they are"),
        ("fp8", {"type": "nvfp4"}, NV, "nvfp4 with scales by groups of 16"),
        ("fp8", {"bits": 4, "group_size": 32}, None, "it holds small floats"),
        ("modelopt", {"type": "mxfp4"}, None, "none of ModelOpt's format that servers read: FP8"),
        ("modelopt", {"type": "fp8", "group_size": "tensor"}, TOKEN, "fp8 per token inputs"),
        ("modelopt", {"bits": 4, "group_size": 32}, None, "it holds small floats"),
    ],
)
def test_what_the_forms_do_not_hold(
    format: str, quantize: Any, activations: Any, reason: str, dense: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=reason):
        run(dense, recipe(quantize, activations), tmp_path / "out", format)
    assert not list(tmp_path.iterdir())


def test_keys_and_values(dense: Path, tmp_path: Path) -> None:
    """FP8 by tensor goes to ModelOpt and comes back; plain fp8 cannot say it, ModelOpt no other."""
    quantize, activations = ALGORITHMS["FP8_PB_WO"]
    cache = {"bits": 8, "type": "float", "strategy": "tensor"}
    out = run(dense, recipe(quantize, activations, kv_cache=cache), tmp_path / "out", "modelopt")
    assert (
        json.loads((out / "hf_quant_config.json").read_text())["quantization"]["kv_cache_quant_algo"] == "FP8"
    )
    scheme = cache_scheme(open_source(out))
    assert scheme is not None
    assert (scheme.type, scheme.strategy, scheme.dynamic) == ("float", "tensor", False)
    with pytest.raises(UserError, match="plain fp8 format does not express"):
        run(dense, recipe(quantize, activations, kv_cache=cache), tmp_path / "no", "fp8")
    whole = {"bits": 8, "type": "int", "strategy": "tensor"}
    with pytest.raises(UserError, match="has fp8 per tensor"):
        run(dense, recipe(quantize, activations, kv_cache=whole), tmp_path / "no", "modelopt")


def test_settings_in_their_own_file_and_algorithms_that_are_not_read(dense: Path, tmp_path: Path) -> None:
    """Older checkpoints of ModelOpt say nothing in ``config.json``."""
    out = run(dense, recipe({"type": "nvfp4"}), tmp_path / "out", "modelopt")
    before = packed_weights(open_source(out))[Q].tensors(open_source(out))
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(
        json.dumps({k: v for k, v in config.items() if k != "quantization_config"})
    )
    source = open_source(out)
    after = packed_weights(source)[Q].tensors(source)
    assert all(torch.equal(before[name], after[name]) for name in before)
    config["quantization_config"]["quant_algo"] = "W4A8_AWQ"
    (out / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="ModelOpt's 'W4A8_AWQ', which is not read here"):
        packed_weights(open_source(out))


def test_a_checkpoint_that_does_not_fit_is_decoded_or_refused(dense: Path, tmp_path: Path) -> None:
    quantize, activations = ALGORITHMS["FP8_PB_WO"]
    out = run(dense, recipe(quantize, activations), tmp_path / "out", "fp8")
    tensors = load_file(out / "model.safetensors")
    whole = {**tensors, f"{Q}.weight_scale_inv": torch.ones(2, 2)}
    save_file(whole, out / "model.safetensors", metadata={"format": "pt"})
    assert not stays_packed(open_source(out))
    out = run(dense, recipe({"type": "nvfp4"}), tmp_path / "nv", "modelopt")
    tensors = load_file(out / "model.safetensors")
    cut = {**tensors, f"{Q}.weight_scale": tensors[f"{Q}.weight_scale"].view(torch.uint8)[:, :3].contiguous()}
    save_file(cut, out / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="do not fit each other"):
        open_dense(out)
