"""The GGUF form, through whole runs: bytes as planned, read back by `gguf`, by `compress.load` and by `verify`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import compress
from compress.checkpoint.gguf import read_gguf_header
from compress.checkpoint.writer import Writer
from compress.errors import UserError
from compress.formats.gguf.tokenizer_checks import COMPOSED
from compress.recipe.recipe import Recipe

gguf = pytest.importorskip("gguf")

ROUND = {
    "name": "round",
    "format": "gguf",
    "steps": [{"targets": ["linear"], "quantize": {"bits": 4, "group_size": 32}, "solver": "nearest"}],
}


def recipe(**quantize: object) -> Recipe:
    return Recipe.parse(ROUND, origin="test").with_settings({f"quantize.{k}": v for k, v in quantize.items()})


@pytest.mark.parametrize("family", ["llama", "llama_tied", "mistral", "qwen3"])
def test_a_run_is_exact_verified_and_loads_again(
    family: str, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    source = tiny_model(family)
    result = compress.compress(source, recipe(), tmp_path / "out")
    file = result.out / "model.gguf"
    assert file.stat().st_size == result.plan.total_bytes
    compress.verify(result.out, source)
    model = compress.load(result.out, dtype=torch.float32, device="cpu")
    dense = compress.compress(source, recipe(), tmp_path / "dense", format="dense")
    reference = AutoModelForCausalLM.from_pretrained(dense.out, dtype=torch.float32)
    tokens = torch.arange(24).view(1, -1)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, reference(tokens).logits, rtol=1e-2, atol=1e-2)


def test_codes_are_carried_over_without_a_second_rounding(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    for symmetric, kind in ((True, "Q4_0"), (False, "Q4_1")):
        chosen = recipe(symmetric=symmetric)
        out = compress.compress(tiny_model("qwen3"), chosen, tmp_path / kind).out
        dense = compress.compress(tiny_model("qwen3"), chosen, tmp_path / f"{kind}-dense", format="dense").out
        reader = {tensor.name: tensor for tensor in gguf.GGUFReader(out / "model.gguf").tensors}
        found = reader["blk.1.ffn_up.weight"]
        assert found.tensor_type == gguf.GGMLQuantizationType[kind]
        values = gguf.quants.dequantize(found.data, found.tensor_type)
        model = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float32)
        expected = model.model.layers[1].mlp.up_proj.weight.detach().numpy()
        np.testing.assert_allclose(values, expected, rtol=0.01, atol=1e-4)


def test_everything_else_is_there_under_llama_cpps_names(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    out = compress.compress(tiny_model("llama"), recipe(), tmp_path / "out").out
    header = read_gguf_header(out / "model.gguf")
    names = {tensor.name for tensor in header.tensors}
    per_block = (
        "attn_q",
        "attn_k",
        "attn_v",
        "attn_output",
        "ffn_gate",
        "ffn_up",
        "ffn_down",
        "attn_norm",
        "ffn_norm",
    )
    blocks = {f"blk.{index}.{name}.weight" for index in range(2) for name in per_block}
    assert names == blocks | {"token_embd.weight", "output.weight", "output_norm.weight"}
    norms = [tensor for tensor in header.tensors if "norm" in tensor.name]
    assert all(tensor.type == torch.float32 for tensor in norms)
    settings = {key: value.value for key, value in header.metadata.items()}
    assert settings["general.architecture"] == "llama"
    assert settings["llama.block_count"] == 2
    assert settings["llama.attention.head_count_kv"] == 2
    assert settings["llama.rope.dimension_count"] == 16
    assert len(settings["tokenizer.ggml.tokens"]) == settings["llama.vocab_size"] == 256


def test_a_changed_byte_is_found(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    out = compress.compress(tiny_model("llama"), recipe(), tmp_path / "out").out
    header = read_gguf_header(out / "model.gguf")
    for name in ("blk.0.attn_norm.weight", "blk.0.attn_q.weight"):
        with (out / "model.gguf").open("r+b") as file:
            file.seek(header.offsets[name] + 1)
            before = file.read(1)
            file.seek(header.offsets[name] + 1)
            file.write(bytes([before[0] ^ 1]))
            file.flush()
            with pytest.raises(UserError, match=name):
                compress.verify(out, tiny_model("llama"))
            file.seek(header.offsets[name] + 1)
            file.write(before)


def test_an_interrupted_run_goes_on_to_the_same_bytes(
    tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = compress.compress(tiny_model("llama"), recipe(), tmp_path / "whole").out / "model.gguf"
    finish = Writer.finish_block

    def stop(self: Writer, block: object, *rest: object) -> None:
        finish(self, block, *rest)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Writer, "finish_block", stop)
        with pytest.raises(KeyboardInterrupt):
            compress.compress(tiny_model("llama"), recipe(), tmp_path / "out")
    assert (tmp_path / "out.partial").is_dir()
    again = compress.compress(tiny_model("llama"), recipe(), tmp_path / "out").out / "model.gguf"
    assert again.read_bytes() == whole.read_bytes()


def test_what_gguf_cannot_express_is_said_at_plan_time(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="no architecture here for models of type 'opt'"):
        compress.plan(tiny_model("opt"), recipe())
    folder = tmp_path / "strange"
    folder.mkdir()
    for path in tiny_model("llama").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["pre_tokenizer"] = {"type": "Whitespace"}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match="no pre-tokenizer that splits text"):
        compress.plan(folder, recipe())
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        compress.plan(folder, recipe())


def test_what_llama_cpp_tokenizes_otherwise_is_said(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    folder = tmp_path / "composed"
    shutil.copytree(tiny_model("llama"), folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**tokenizer, "normalizer": {"type": "NFC"}}))
    sentence = COMPOSED.format(form="NFC")
    recipe = Recipe.load("q8_0")
    assert compress.plan(folder, recipe).notes == (sentence,)
    done = compress.compress(folder, recipe, tmp_path / "out")
    assert sentence in done.report.notes
    compress.verify(tmp_path / "out", folder)
    assert compress.export(folder, tmp_path / "exported").notes == (sentence,)
    (folder / "tokenizer.json").write_text(json.dumps({**tokenizer, "normalizer": {"type": "Lowercase"}}))
    with pytest.raises(UserError, match="does not normalize"):
        compress.plan(folder, recipe)
