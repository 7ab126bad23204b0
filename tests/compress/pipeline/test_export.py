"""`compress export`: a finished checkpoint as GGUF, its codes carried over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from compress_cli.main import app
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import compress
from compress.checkpoint.gguf import read_gguf_header
from compress.checkpoint.source import open_source
from compress.errors import UserError
from compress.formats.read import packed_weights
from compress.recipe.recipe import Recipe

pytest.importorskip("gguf")


def recipe(**quantize: object) -> Recipe:
    step = {"quantize": {"bits": 4, "group_size": 32, **quantize}, "solver": "nearest"}
    return Recipe.parse({"name": "round", "steps": [step]})


@pytest.mark.parametrize(
    ("quantize", "kind"),
    [
        ({}, "q4_0"),
        ({"symmetric": False}, "q4_1"),
        ({"bits": 8, "group_size": 64}, "q8_0"),
        ({"bits": 3, "group_size": "channel"}, "q4_0"),
    ],
)
def test_codes_are_carried_over(
    quantize: dict[str, object], kind: str, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    first = compress.compress(tiny_model("llama"), recipe(**quantize), tmp_path / "first").out
    made = compress.export(first, tmp_path / "gguf")
    assert made.nbytes == (made.out / "model.gguf").stat().st_size
    types = {tensor.name: tensor.type for tensor in read_gguf_header(made.out / "model.gguf").tensors}
    assert {types[f"blk.{n}.attn_q.weight"] for n in range(2)} == {kind}
    tokens = torch.arange(24).view(1, -1)
    with torch.no_grad():
        ours = compress.load(made.out, dtype=torch.float32, device="cpu")(tokens).logits
        theirs = compress.load(first, dtype=torch.float32, device="cpu")(tokens).logits
    torch.testing.assert_close(ours, theirs, rtol=5e-3, atol=5e-3)


def test_a_dense_checkpoint_is_written_as_it_is(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    source = tiny_model("qwen3")
    made = compress.export(source, tmp_path / "gguf")
    assert made.carried == 0
    types = {tensor.name: tensor.type for tensor in read_gguf_header(made.out / "model.gguf").tensors}
    assert types["blk.0.ffn_up.weight"] == torch.bfloat16
    model = compress.load(made.out, dtype=torch.float32, device="cpu")
    reference = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    tokens = torch.arange(24).view(1, -1)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, reference(tokens).logits)


def test_what_no_type_holds_is_stored_dense(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    first = compress.compress(tiny_model("llama"), recipe(group_size=16), tmp_path / "first").out
    made = compress.export(first, tmp_path / "gguf")
    types = {tensor.name: tensor.type for tensor in read_gguf_header(made.out / "model.gguf").tensors}
    assert (made.carried, types["blk.0.attn_q.weight"]) == (0, torch.bfloat16)


@pytest.mark.parametrize("format", ["gptq", "awq", "mlx"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_codes_go_to_other_servers(
    format: str, symmetric: bool, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    first = compress.compress(tiny_model("llama"), recipe(symmetric=symmetric), tmp_path / "first").out
    made = compress.export(first, tmp_path / format, format=format)
    assert (made.carried, made.nbytes) == (14, (made.out / "model.safetensors").stat().st_size)
    before, after = open_source(first), open_source(made.out)
    packed, carried = packed_weights(before), packed_weights(after)
    for name, weight in packed.items():
        ours, theirs = (
            one.layout.codes(one.tensors(source), one.shape)[0]  # type: ignore[attr-defined]
            for one, source in ((carried[name], after), (weight, before))
        )
        assert torch.equal(ours, theirs), name
    others = {
        name for name in after.headers if name.endswith(("norm.weight", "lm_head.weight", "tokens.weight"))
    }
    assert all(torch.equal(after.read(name), before.read(name)) for name in others)
    assert len(others) == 7
    back = compress.export(made.out, tmp_path / "gguf") if format != "mlx" else None
    assert back is None or back.carried == 14


def test_what_another_form_cannot_hold_is_refused(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    five = compress.compress(tiny_model("llama"), recipe(bits=5), tmp_path / "five").out
    float_zero = recipe(symmetric=False, zero_point="float")
    native = compress.compress(tiny_model("llama"), float_zero, tmp_path / "native").out
    made = sorted(path.name for path in tmp_path.iterdir())
    for path, format, sentence in (
        (five, "gptq", "has 5 bits, where GPTQ's format packs"),
        (native, "awq", "is stored as affine, which AWQ's format does not have"),
    ):
        with pytest.raises(UserError, match=f"format {format} cannot hold this: .*{sentence}"):
            compress.export(path, tmp_path / "out", format=format)
    assert sorted(path.name for path in tmp_path.iterdir()) == made
    mlx = compress.export(native, tmp_path / "mlx", format="mlx").out
    name = "model.layers.0.mlp.up_proj"
    ours, theirs = (
        packed_weights(open_source(path))[name].tensors(open_source(path)) for path in (mlx, native)
    )
    assert all(torch.equal(ours[suffix], theirs[suffix]) for suffix in ("weight", "scales", "biases"))


def test_refusals(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exported as gguf, gptq, awq, mlx, fp8 or modelopt, not as 'onnx'"):
        compress.export(tiny_model("llama"), tmp_path / "a", format="onnx")
    with pytest.raises(UserError, match="has no packed weights whose codes awq could hold"):
        compress.export(tiny_model("llama"), tmp_path / "c", format="awq")
    with pytest.raises(UserError, match="no architecture here for models of type 'opt'"):
        compress.export(tiny_model("opt"), tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_the_command(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    source, out = str(tiny_model("llama")), str(tmp_path / "gguf")
    result = CliRunner().invoke(app, ["export", source, "--format", "gguf", "-o", out])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "gguf" / "model.gguf").is_file()
    again = CliRunner().invoke(app, ["export", source, "-o", out])
    assert again.exit_code == 2
    assert "already exists" in again.stderr
