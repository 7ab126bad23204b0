"""Tiny random models with just as much of a skeleton around them as the stream needs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from compress.calibrate import gradients, whole_gradients

SHAPE: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**SHAPE),
    "gpt2": lambda: transformers.GPT2Config(vocab_size=96, n_embd=32, n_layer=3, n_head=4, n_positions=64),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**SHAPE),
    "opt": lambda: transformers.OPTConfig(**SHAPE, ffn_dim=48, word_embed_proj_dim=32),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **SHAPE,
        head_dim=8,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "mixtral": lambda: transformers.MixtralConfig(**SHAPE, **EXPERTS),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(
        **SHAPE,
        head_dim=8,
        moe_intermediate_size=16,
        num_experts=8,
        num_experts_per_tok=2,
        decoder_sparse_step=1,
    ),
    "gpt_oss": lambda: transformers.GptOssConfig(
        **SHAPE,
        **EXPERTS,
        head_dim=8,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "falcon": lambda: transformers.FalconConfig(
        vocab_size=96, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, alibi=False
    ),
    "phi": lambda: transformers.PhiConfig(**SHAPE),
}


@dataclass(frozen=True)
class View:
    """As much of a WeightView as the observer reads."""

    name: str
    parameter: str
    kind: str
    block: int
    shape: tuple[int, int]
    expert: int | None = None
    flattened: int = 0


@dataclass
class WholeModel:
    """A skeleton whose blocks are always loaded."""

    model: nn.Module
    blocks: list[str]
    views: tuple[View, ...]
    calls: list[str] = field(default_factory=list)
    shared_blocks: tuple[str, str] | None = None
    dtype: torch.dtype = torch.float32

    def block_module(self, index: int) -> nn.Module:
        return self.model.get_submodule(self.blocks[index])

    def load_block(self, index: int, **options: object) -> None:
        """All blocks are in memory, and no source that could hold a NaN is behind them."""

    def load_rest(self, **options: object) -> None:
        """As :meth:`load_block`."""

    @contextmanager
    def loaded_rest(self, *, device: torch.device, dtype: torch.dtype) -> Iterator[None]:
        self.calls.append("load_rest")
        try:
            yield
        finally:
            self.calls.append("release_rest")


def _views(block: nn.Module, prefix: str, index: int) -> list[View]:
    views: list[View] = []
    for path, parameter in block.named_parameters():
        module = block.get_submodule(path.rpartition(".")[0])
        name = f"{prefix}.{path}"
        if parameter.dim() == 3:
            size_in, size_out = (1, 2) if getattr(module, "is_transposed", False) else (2, 1)
            shape = (parameter.shape[size_out], parameter.shape[size_in])
            views += [
                View(f"{name}.{expert}", name, "expert", index, shape, expert)
                for expert in range(len(parameter))
            ]
        elif isinstance(module, nn.Linear) and parameter.dim() == 2:
            views.append(View(name.removesuffix(".weight"), name, "linear", index, tuple(parameter.shape)))
        elif type(module).__name__ == "Conv1D" and parameter.dim() == 2:
            shape = (parameter.shape[1], parameter.shape[0])
            views.append(View(name.removesuffix(".weight"), name, "conv1d", index, shape))
    return views


@pytest.fixture
def whole_model() -> Callable[[str], WholeModel]:
    """Build a tiny random fp32 model of a family, all of it in memory."""

    def build(family: str) -> WholeModel:
        torch.manual_seed(0)
        config = CONFIGS[family]()
        config.bos_token_id = config.eos_token_id = config.pad_token_id = None
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter.data, std=0.2)
        pattern = re.compile(r"(.*\.(?:h|layers)\.\d+)$")
        blocks = [name for name, _ in model.named_modules() if pattern.match(name)]
        views = [
            view
            for index, name in enumerate(blocks)
            for view in _views(model.get_submodule(name), name, index)
        ]
        return WholeModel(model, blocks, tuple(views))

    return build


@pytest.fixture
def tokens() -> torch.Tensor:
    """Seven sequences, so that batches of two leave one over."""
    return torch.randint(0, 96, (7, 20), generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def exact_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients are compared with those of the whole model to more digits than products in bf16 have."""
    for module in (gradients, whole_gradients):
        monkeypatch.setattr(module, "quick_products", nullcontext)
