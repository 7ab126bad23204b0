"""What all tests share: tiny random models of many families, written once per session, and a small
tokenizer."""

from __future__ import annotations

import gc
import os
import signal

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

torch.set_num_threads(1)
transformers.utils.logging.disable_progress_bar()

_LONGEST = ("fuzz", "zoo", "devices", "packaging")
"""Folders whose files take longest, though they hold few tests."""

_TEXT = [
    "The quick brown fox jumps over the lazy dog.",
    "def add(first, second):\n    return first + second\n",
    "A model is compressed block by block, and every weight of it is accounted for.",
]
_CHAT = "{% for message in messages %}<s>{{ message['role'] }}: {{ message['content'] }}</s>\n{% endfor %}"

_COMMON: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
    "tie_word_embeddings": False,
}
_EXPERTS: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {**_COMMON},
    "llama_tied": {**_COMMON, "model_type": "llama", "tie_word_embeddings": True},
    "qwen3": {**_COMMON},
    "mistral": {**_COMMON, "sliding_window": 16},
    "gemma3": {
        **_COMMON,
        "model_type": "gemma3_text",
        "tie_word_embeddings": True,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"],
        "query_pre_attn_scalar": 16,
    },
    "phi3": {**_COMMON},
    "gpt2": {
        "vocab_size": 256,
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 128,
        "bos_token_id": 0,
        "eos_token_id": 1,
    },
    "opt": {
        "vocab_size": 256,
        "hidden_size": 64,
        "ffn_dim": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "word_embed_proj_dim": 64,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    },
    "gpt_neox": {
        key: value for key, value in _COMMON.items() if key not in ("num_key_value_heads", "head_dim")
    },
    "mixtral": {**_COMMON, **_EXPERTS},
    "qwen3_moe": {
        **_COMMON,
        "moe_intermediate_size": 64,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "decoder_sparse_step": 1,
        "norm_topk_prob": True,
    },
    "gpt_oss": {
        **_COMMON,
        **_EXPERTS,
        "max_position_embeddings": 131072,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"],
    },
}
"""Tiny configurations by family: hidden size 64, two blocks, 256 tokens."""


def write_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer of 256 tokens: `<s>` 0, `</s>` 1, then 254 bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[:254]
    trainer = trainers.BpeTrainer(
        vocab_size=256, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_TEXT, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    fast.chat_template = _CHAT
    fast.save_pretrained(folder)


def build_tiny(family: str, **changes: Any) -> transformers.PreTrainedModel:
    """A tiny random model in bf16, the same at every call. `changes` go into its configuration."""
    settings = {**FAMILIES[family], **changes}
    kind = settings.pop("model_type", family)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings))
    with torch.no_grad():  # transformers starts biases and norms at 0 and 1, which would hide mistakes
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 or name.endswith(("bias", "sinks")):
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.to(torch.bfloat16).eval()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """The garbage collector lets alone what torch, transformers and eight thousand tests have made: none of it is garbage."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files: one that is left to the end keeps the other workers waiting."""
    here = Path(__file__).parent
    items.sort(key=lambda item: item.path.relative_to(here).parts[0] not in _LONGEST)


def pytest_configure() -> None:
    """A job in the background of a shell ignores Ctrl-C; tests that press it run as in front of it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_unconfigure() -> None:
    """Libraries count at the end of the process what nobody has taken away."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny_model("llama")` → a folder with a tiny random checkpoint and a tokenizer; do not write into it.

    The families are the keys of `FAMILIES`; further settings go into the configuration
    (`tiny_model("llama", num_hidden_layers=4)`).
    """
    written: dict[tuple[Any, ...], Path] = {}

    def write(family: str, **changes: Any) -> Path:
        key = (family, repr(sorted(changes.items())))
        if key not in written:
            folder = tmp_path_factory.mktemp(family.replace("_", "-"))
            build_tiny(family, **changes).save_pretrained(folder, safe_serialization=True)
            write_tokenizer(folder)
            written[key] = folder
        return written[key]

    return write
