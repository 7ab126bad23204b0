"""Parameters of other shapes than the configuration says: blocks of unequal widths."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from compress.errors import UserError
from compress.models.resize import SHAPES, resize

NAMES = [f"model.layers.0.mlp.{name}.weight" for name in ("gate_proj", "up_proj", "down_proj")]
NARROW = dict(zip(NAMES, ([40, 64], [40, 64], [64, 40]), strict=True))


def load(path: Path, kind: type = AutoModelForCausalLM) -> PreTrainedModel:
    model: PreTrainedModel = kind.from_pretrained(path)  # type: ignore[attr-defined]
    return model


def test_linear_layers_take_their_new_sizes(tiny_model: Callable[..., Path]) -> None:
    model = load(tiny_model("llama"))
    resize(model, NARROW)
    for name, shape in NARROW.items():
        layer = model.get_submodule(name.removesuffix(".weight"))
        assert isinstance(layer, nn.Linear)
        assert list(layer.weight.shape) == [layer.out_features, layer.in_features] == shape
        assert layer.weight.dtype == torch.bfloat16
    assert list(model.get_parameter("model.layers.1.mlp.up_proj.weight").shape) == [128, 64]
    model(torch.arange(5).unsqueeze(0))


def test_transposed_layers_take_theirs(tiny_model: Callable[..., Path]) -> None:
    model = load(tiny_model("gpt2"))
    resize(
        model,
        {
            "transformer.h.0.mlp.c_fc.weight": [64, 32],
            "transformer.h.0.mlp.c_fc.bias": [32],
            "transformer.h.0.mlp.c_proj.weight": [32, 64],
        },
    )
    layer = model.get_submodule("transformer.h.0.mlp.c_fc")
    assert isinstance(layer, Conv1D)
    assert (layer.nx, layer.nf) == (64, 32)
    model(torch.arange(5).unsqueeze(0))


def test_names_with_and_without_the_prefix_of_the_decoder(tiny_model: Callable[..., Path]) -> None:
    bare = load(tiny_model("llama"), AutoModel)
    resize(bare, NARROW)
    assert list(bare.get_parameter("layers.0.mlp.up_proj.weight").shape) == [40, 64]
    whole = load(tiny_model("llama"))
    resize(whole, {name.removeprefix("model."): shape for name, shape in NARROW.items()})
    assert list(whole.get_parameter("model.layers.0.mlp.up_proj.weight").shape) == [40, 64]


def test_whether_it_trains_stays(tiny_model: Callable[..., Path]) -> None:
    model = load(tiny_model("llama"))
    model.requires_grad_(False)
    resize(model, NARROW)
    assert not any(model.get_parameter(name).requires_grad for name in NAMES)


@pytest.mark.parametrize(
    ("shapes", "match"),
    [
        ({"model.layers.7.mlp.up_proj.weight": [1, 1]}, "which LlamaForCausalLM does not have"),
        ({NAMES[0]: [64]}, "not one of 2 sizes"),
        ({"model.norm.weight": [8, 8]}, "not one of 1 sizes"),
    ],
)
def test_shapes_that_cannot_be(
    tiny_model: Callable[..., Path], shapes: dict[str, list[int]], match: str
) -> None:
    with pytest.raises(UserError, match=match) as caught:
        resize(load(tiny_model("llama")), shapes)
    assert SHAPES in str(caught.value)
