"""Which class is built for a checkpoint: language models, encoders, towers; what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    BertForMaskedLM,
    BertModel,
    PreTrainedModel,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from compress.checkpoint.source import open_source
from compress.errors import UserError
from compress.models.architecture import predicts_next_token, require_next_token_loss
from compress.models.build import build_on_meta
from compress.models.skeleton import open_skeleton

SMALL: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 130,
}


def written(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("kind", "cls"),
    [("bert", BertModel), ("bert", BertForMaskedLM), ("roberta", RobertaForSequenceClassification)],
    ids=["base", "masked", "classifier"],
)
def test_the_class_that_the_configuration_names(tmp_path: Path, kind: str, cls: Any) -> None:
    """Not the causal language model that transformers could also make of the same configuration."""
    folder = written(cls(AutoConfig.for_model(kind, **SMALL)), tmp_path)
    model = build_on_meta(open_source(folder))
    assert type(model) is cls
    assert not predicts_next_token(model)
    with pytest.raises(UserError, match="predicts no tokens"):
        require_next_token_loss(model, "This needs")
    assert len(open_skeleton(open_source(folder)).blocks) == 2


def test_language_models_predict_tokens(tiny_model: Callable[..., Path]) -> None:
    for family in ("llama", "gpt2", "opt"):
        model = build_on_meta(open_source(tiny_model(family)))
        assert predicts_next_token(model)
        require_next_token_loss(model, "This needs")


def test_a_pooler_without_weights_is_left_out(tmp_path: Path) -> None:
    """Many embedding models pool by the mean and ship no pooler, which transformers would fill at random."""
    torch.manual_seed(0)
    folder = written(BertModel(AutoConfig.for_model("bert", **SMALL)), tmp_path)
    tensors = load_file(folder / "model.safetensors")
    save_file({n: t for n, t in tensors.items() if "pooler" not in n}, folder / "model.safetensors")
    skeleton = open_skeleton(open_source(folder))
    assert skeleton.model.pooler is None


def test_encoder_decoders_are_refused(tmp_path: Path) -> None:
    config = T5Config(vocab_size=256, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4)
    folder = written(T5ForConditionalGeneration(config), tmp_path)
    with pytest.raises(UserError, match="an encoder and a decoder"):
        open_skeleton(open_source(folder))
