"""Whole models, read from disk or from what a caller decodes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from compress.checkpoint.source import open_source
from compress.errors import UserError
from compress.models.materialize import load_dense
from compress.models.skeleton import open_skeleton

TinyModel = Callable[..., Path]
FAMILIES = ["llama", "llama_tied", "gpt2", "phi3", "mixtral", "gpt_oss"]


@pytest.mark.parametrize("family", FAMILIES)
def test_load_dense_is_from_pretrained(tiny_model: TinyModel, family: str) -> None:
    folder = tiny_model(family)
    model = load_dense(open_source(folder), torch.bfloat16)
    expected = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    tokens = torch.arange(30).view(1, 30)
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, expected(tokens).logits)
    assert not model.training
    assert model.generation_config.eos_token_id == expected.generation_config.eos_token_id


def pack(folder: Path, out: Path) -> tuple[dict[str, Tensor], dict[str, tuple[int, int]]]:
    """A checkpoint in which each weight of the blocks is replaced by another tensor of its own name."""
    skeleton = open_skeleton(open_source(folder))
    weights: dict[str, Tensor] = {}
    for index in range(len(skeleton.blocks)):
        skeleton.load_block(index, device="cpu", dtype=torch.float32)
        for view in skeleton.block_views(index):
            weights[view.name] = view.get(skeleton.parameter_of(view)).clone()
    shutil.copytree(folder, out)
    tensors = load_file(folder / "model.safetensors")
    for view in skeleton.views:
        if view.name in weights:
            for name in view.sources:
                tensors[name] = torch.zeros(0)  # so that transformers, without us, fails instead of guessing
            tensors[f"{view.name}.weight_packed"] = torch.zeros(1, dtype=torch.int32)
    save_file(tensors, out / "model.safetensors")
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(
        json.dumps({**config, "quantization_config": {"quant_method": "compress"}})
    )
    return weights, {name: (weight.shape[0], weight.shape[1]) for name, weight in weights.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_can_be_supplied(tiny_model: TinyModel, tmp_path: Path, family: str) -> None:
    folder = tiny_model(family)
    weights, shapes = pack(folder, tmp_path / "packed")
    model = load_dense(open_source(tmp_path / "packed"), torch.float32, decode=weights.get, supplied=shapes)
    expected = load_dense(open_source(folder), torch.float32)
    wanted = dict(expected.named_parameters())
    assert all(torch.equal(parameter, wanted[name]) for name, parameter in model.named_parameters())


@pytest.mark.parametrize("family", ["llama", "gpt_oss"])
def test_a_supplied_weight_must_come(tiny_model: TinyModel, tmp_path: Path, family: str) -> None:
    weights, shapes = pack(tiny_model(family), tmp_path / "packed")
    name = next(iter(weights))
    del weights[name]
    with pytest.raises(UserError, match=name):
        load_dense(open_source(tmp_path / "packed"), torch.float32, decode=weights.get, supplied=shapes)


def test_some_weights_decoded_over_those_on_disk(tiny_model: TinyModel) -> None:
    def decode(name: str) -> Tensor | None:
        return torch.full((128, 64), 2.0) if name == "model.layers.1.mlp.up_proj" else None

    model = load_dense(open_source(tiny_model("llama")), torch.float32, decode=decode)
    assert bool((model.model.layers[1].mlp.up_proj.weight == 2).all())
    assert not bool((model.model.layers[0].mlp.up_proj.weight == 2).all())
