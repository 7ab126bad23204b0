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
from compress.errors import UserError
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


def test_refusals(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exported as gguf, not as 'awq'"):
        compress.export(tiny_model("llama"), tmp_path / "a", format="awq")
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
