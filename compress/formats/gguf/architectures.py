"""The architectures that llama.cpp knows, as data: names, orders of rows, settings beside the common ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compress.checkpoint.gguf import Kind
from compress.checkpoint.tensor_edits import RowOrder


@dataclass(frozen=True)
class Setting:
    """A metadata key under the architecture's name, and the keys of ``config.json`` of which the first present gives it.

    ``needed``: without it llama.cpp cannot build the model. ``fixed`` is the value where no key of the configuration has it.
    """

    key: str
    kind: Kind
    names: tuple[str, ...] = ()
    needed: bool = False
    fixed: Any = None


@dataclass(frozen=True)
class RowEdit:
    """Tensors whose rows are in another order: a regular expression on the disk name, the order, and the keys of
    ``config.json`` that hold its counts."""

    pattern: str
    rows: RowOrder
    counts: tuple[str, ...]


@dataclass(frozen=True)
class Architecture:
    """A family as llama.cpp knows it.

    Attributes:
        name: llama.cpp's name for it, and the prefix of its metadata keys.
        rows: tensors whose rows are in another order.
        plus_one: a regular expression on disk names: norms that multiply by one plus what is stored.
        settings: metadata keys of its own.
        ignored: a regular expression on the disk names of tensors that follow from the configuration.
    """

    name: str
    rows: tuple[RowEdit, ...] = ()
    plus_one: str | None = None
    settings: tuple[Setting, ...] = ()
    ignored: str | None = None


COMMON = (
    Setting("block_count", "u32", ("num_hidden_layers", "n_layer", "num_layers"), needed=True),
    Setting("context_length", "u32", ("max_position_embeddings", "n_positions", "n_ctx"), needed=True),
    Setting("embedding_length", "u32", ("hidden_size", "n_embd"), needed=True),
    Setting("feed_forward_length", "u32", ("intermediate_size", "ffn_hidden_size", "n_inner")),
    Setting("attention.head_count", "u32", ("num_attention_heads", "n_head"), needed=True),
    Setting("attention.head_count_kv", "u32", ("num_key_value_heads", "num_kv_heads")),
    Setting("attention.key_length", "u32", ("head_dim",)),
    Setting("attention.value_length", "u32", ("head_dim",)),
    Setting("attention.layer_norm_rms_epsilon", "f32", ("rms_norm_eps",)),
    Setting("attention.layer_norm_epsilon", "f32", ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon")),
    Setting("expert_count", "u32", ("num_local_experts", "num_experts", "n_routed_experts")),
    Setting("expert_used_count", "u32", ("num_experts_per_tok", "num_experts_per_token", "moe_topk")),
    Setting("vocab_size", "u32", ("vocab_size",)),
)

_HEADS, _GROUPS = ("num_attention_heads",), ("num_key_value_heads",)
_ROPE = (
    RowEdit(r".*\.q_proj\.(weight|bias)$", "rope", _HEADS),
    RowEdit(r".*\.k_proj\.(weight|bias)$", "rope", _GROUPS),
)
_HEAD_ROTATED = Setting("rope.dimension_count", "u32", ("head_dim",))
_WINDOW = Setting("attention.sliding_window", "u32", ("sliding_window",))
_EXPERT_WIDTH = Setting("expert_feed_forward_length", "u32", ("moe_intermediate_size",))

ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture("llama", rows=_ROPE, settings=(_HEAD_ROTATED,)),
    "mistral": Architecture("llama", rows=_ROPE, settings=(_HEAD_ROTATED,)),
    "mixtral": Architecture("llama", rows=_ROPE, settings=(_HEAD_ROTATED,)),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
}
"""``model_type`` in ``config.json`` → architecture."""
