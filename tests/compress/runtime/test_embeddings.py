"""Packed embeddings in running models: classes with a forward of their own, heads that are tied, and what stays dense."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compress_kernels.modules import PackedEmbedding, PackedLinear
from torch import nn
from transformers import AutoModelForCausalLM

import compress
from compress.checkpoint.source import open_source
from compress.models.skeleton import open_skeleton
from compress.models.views import WeightView
from compress.runtime.embeddings import embedding_modules

Tiny = Callable[..., Path]
TOKENS = torch.arange(3, 27).view(2, 12)


@pytest.fixture(scope="module")
def written(tiny_model: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The embeddings of a family in 6 bits and nothing else, packed or decoded."""
    root = tmp_path_factory.mktemp("embeddings")

    def write(family: str, format: str) -> Path:
        out = root / f"{family} {format}"
        if not out.exists():
            step = {"targets": ["embeddings"], "quantize": {"bits": 6, "group_size": 32}}
            recipe = compress.Recipe.parse({"name": "x", "steps": [step]})
            compress.compress(tiny_model(family), recipe, out, format=format)
        return out

    return write


@pytest.mark.parametrize("family", ["llama_tied", "gemma3", "gpt2", "opt"])
def test_a_model_computes_what_the_decoded_one_does(family: str, written: Callable[..., Path]) -> None:
    ours = compress.load(written(family, "native"), dtype=torch.float32)
    decoded = AutoModelForCausalLM.from_pretrained(written(family, "dense"), dtype=torch.float32)
    tables = [name for name, module in decoded.named_modules() if isinstance(module, nn.Embedding)]
    assert tables
    for name in tables:
        packed, dense = ours.get_submodule(name), decoded.get_submodule(name)
        assert isinstance(packed, PackedEmbedding)
        assert isinstance(packed, type(dense))
    with torch.no_grad():
        # Scales are bf16 in both, but the decoded values of the dense copy are rounded to bf16.
        torch.testing.assert_close(ours(TOKENS).logits, decoded(TOKENS).logits, rtol=2e-2, atol=2e-2)


def test_a_class_of_the_model_keeps_what_it_does_to_its_rows(written: Callable[..., Path]) -> None:
    """Gemma scales its embeddings by a buffer that no checkpoint holds."""
    model = compress.load(written("gemma3", "native"), dtype=torch.float32)
    table: Any = model.get_input_embeddings()
    assert float(table.embed_scale) == pytest.approx(64**0.5, rel=1e-2)
    plain = nn.functional.embedding(TOKENS, table.dequantize(torch.float32)) * table.embed_scale
    torch.testing.assert_close(table(TOKENS), plain)


def test_a_tied_head_holds_no_tensors_of_its_own(written: Callable[..., Path]) -> None:
    for model in (
        compress.load(written("llama_tied", "native")),
        AutoModelForCausalLM.from_pretrained(written("llama_tied", "native")),
    ):
        head = model.get_output_embeddings()
        assert isinstance(head, PackedLinear)
        assert head.prepare() is model.get_input_embeddings().prepare()
        assert not any(name.startswith("lm_head") for name in model.state_dict())


def view_of(path: Path) -> tuple[nn.Module, WeightView]:
    skeleton = open_skeleton(open_source(path))
    return skeleton.model, next(view for view in skeleton.views if view.kind == "embedding")


def test_the_modules_that_use_a_weight(tiny_model: Tiny) -> None:
    model, view = view_of(tiny_model("llama_tied"))
    modules = embedding_modules(model, view)
    assert modules is not None
    assert list(modules) == ["model.embed_tokens", "lm_head"]
    model, view = view_of(tiny_model("llama"))
    assert list(embedding_modules(model, view) or ()) == ["model.embed_tokens"]


def test_a_base_model_has_no_head_to_tie(tiny_model: Tiny) -> None:
    model, view = view_of(tiny_model("llama_tied"))
    del model.lm_head
    assert list(embedding_modules(model, view) or ()) == ["model.embed_tokens"]


def test_what_cannot_run_packed(tiny_model: Tiny) -> None:
    model, view = view_of(tiny_model("llama_tied"))
    table: Any = model.get_submodule(view.module)
    table.max_norm = 1.0
    assert embedding_modules(model, view) is None
    table.max_norm = None

    class Scaled(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(input)

    model.lm_head.__class__ = Scaled
    assert embedding_modules(model, view) is None
