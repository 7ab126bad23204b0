"""Tiny checkpoints with a byte-level tokenizer, and a text."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

VOCABULARY = 258


def save_tokenizer(folder: Path, *, swap: bool = False) -> None:
    """One token per byte, `<s>` and `</s>`; `swap` exchanges two letters' numbers."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<s>", "</s>", *alphabet])}
    if swap:
        vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(folder)


def save_model(folder: Path, *, seed: int = 0, noise: float = 0.0, vocabulary: int = VOCABULARY) -> Path:
    """A random Llama of two layers; `noise` is added to its weights."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        # Large enough for predictions that are far from uniform.
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=1,
    )
    model = LlamaForCausalLM(config)
    if noise:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=noise)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def load(
    path: str | Path, *, dtype: torch.dtype, device: torch.device, trust_remote_code: bool = False
) -> PreTrainedModel:
    """The loader that these tests measure with."""
    del trust_remote_code
    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype).to(device)


@pytest.fixture(scope="session")
def models() -> SimpleNamespace:
    """The functions above, for tests that make further checkpoints."""
    return SimpleNamespace(
        load=load, save_model=save_model, save_tokenizer=save_tokenizer, vocabulary=VOCABULARY
    )


@pytest.fixture(scope="session")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "dense")


@pytest.fixture(scope="session")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "noisy", noise=0.05)


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "held-out.txt"
    path.write_text(
        "".join(f"Line {n}: the quick brown fox — {n * n % 97}.\n" for n in range(60)), encoding="utf-8"
    )
    return path
