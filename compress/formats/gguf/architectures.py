"""The architectures that llama.cpp knows, as data: names, orders of rows, settings beside the common ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from compress.checkpoint.gguf import Kind
from compress.checkpoint.tensor_edits import RowOrder

from .derived import (
    DERIVED_FFN,
    DERIVED_GROUPS,
    DERIVED_HEAD,
    DERIVED_LOCAL_BASE,
    DERIVED_QUERIES,
    DERIVED_QUERY_SCALE,
    DERIVED_ROTATED,
    DERIVED_WINDOWS,
    DERIVED_WITHIN_WINDOW,
)


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
    """Tensors whose rows are in another order: a regular expression on the disk name, the order, and the keys of the
    configuration that hold its counts."""

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
        expects: key of the configuration → the values that llama.cpp's code has built in; an absent key is one of them.
        ignored: a regular expression on the disk names of tensors that follow from the configuration.
        halves: a regular expression on the disk names of vectors of which every other element belongs to another tensor,
            with the names of both as the package ``gguf`` finds them.
    """

    name: str
    rows: tuple[RowEdit, ...] = ()
    plus_one: str | None = None
    settings: tuple[Setting, ...] = ()
    expects: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    ignored: str | None = None
    halves: tuple[str, str, str] | None = None


COMMON = (
    Setting("block_count", "u32", ("num_hidden_layers", "n_layer", "num_layers"), needed=True),
    Setting("context_length", "u32", ("max_position_embeddings", "n_positions", "n_ctx"), needed=True),
    Setting("embedding_length", "u32", ("hidden_size", "n_embd"), needed=True),
    Setting("feed_forward_length", "u32", (DERIVED_FFN,), needed=True),
    Setting("attention.head_count", "u32", ("num_attention_heads", "n_head"), needed=True),
    Setting("attention.head_count_kv", "u32", (DERIVED_GROUPS,)),
    Setting("attention.key_length", "u32", (DERIVED_HEAD,)),
    Setting("attention.value_length", "u32", (DERIVED_HEAD,)),
    Setting("attention.layer_norm_rms_epsilon", "f32", ("rms_norm_eps",)),
    Setting("attention.layer_norm_epsilon", "f32", ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon")),
    Setting("expert_count", "u32", ("num_local_experts", "num_experts", "n_routed_experts")),
    Setting("expert_used_count", "u32", ("num_experts_per_tok", "num_experts_per_token", "moe_topk")),
    Setting("vocab_size", "u32", ("vocab_size",)),
)

_ROPE = (
    RowEdit(r".*\.q_proj\.(weight|bias)$", "rope", ("num_attention_heads",)),
    RowEdit(r".*\.k_proj\.(weight|bias)$", "rope", (DERIVED_GROUPS,)),
)
_ROTATED = Setting("rope.dimension_count", "u32", (DERIVED_ROTATED,))
_WINDOW = Setting("attention.sliding_window", "u32", ("sliding_window",))
_EXPERT_WIDTH = Setting("expert_feed_forward_length", "u32", ("moe_intermediate_size",), needed=True)
_SHARED_WIDTH = Setting("expert_shared_feed_forward_length", "u32", ("shared_expert_intermediate_size",))
_SILU = {"hidden_act": ("silu",), "mlp_only_layers": ([],), "decoder_sparse_step": (1,)}
_NO_WINDOW = {"use_sliding_window": (False,)}
_NORMS = r".*norm\.weight$"
_SOFT_CAPS = (
    Setting("attn_logit_softcapping", "f32", ("attn_logit_softcapping",)),
    Setting("final_logit_softcapping", "f32", ("final_logit_softcapping",)),
)
_GEMMA = {"hidden_act": ("gelu_pytorch_tanh",), "hidden_activation": ("gelu_pytorch_tanh",)}
_WITHIN_WINDOW = Setting("context_length", "u32", (DERIVED_WITHIN_WINDOW,), needed=True)
"""For architectures that llama.cpp gives no sliding window: the context ends where the window would begin to matter."""
_SOFTMAX, _SIGMOID = 1, 2
"""llama.cpp's numbers for what makes a router's scores into weights."""
_LATENT = (
    Setting("attention.key_length", "u32", ("qk_head_dim",), needed=True),
    Setting("attention.value_length", "u32", ("v_head_dim",), needed=True),
    Setting("attention.q_lora_rank", "u32", ("q_lora_rank",)),
    Setting("attention.kv_lora_rank", "u32", ("kv_lora_rank",), needed=True),
    Setting("rope.dimension_count", "u32", ("qk_rope_head_dim",), needed=True),
    Setting("leading_dense_block_count", "u32", ("first_k_dense_replace",), fixed=0),
    Setting("expert_shared_count", "u32", ("n_shared_experts",), needed=True),
    Setting("expert_weights_scale", "f32", ("routed_scaling_factor",), fixed=1.0),
    Setting("expert_weights_norm", "bool", ("norm_topk_prob",), fixed=False),
    _EXPERT_WIDTH,
)
"""Multi-head latent attention with keys and values that are written out (``kv_b_proj`` as it is), and its experts."""
_LATENT_EXPECTS = {
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "moe_layer_freq": (1,),
}
_LLAMA = Architecture("llama", rows=_ROPE, settings=(_ROTATED, _WITHIN_WINDOW), expects=_SILU)

ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "mixtral": _LLAMA,
    "smollm3": Architecture(
        "smollm3",
        rows=_ROPE,
        settings=(_ROTATED,),
        expects={**_SILU, **_NO_WINDOW, "no_rope_layer_interval": (4,)},
    ),
    "granite": Architecture(
        "granite",
        rows=_ROPE,
        settings=(
            _ROTATED,
            Setting("attention.scale", "f32", ("attention_multiplier",)),
            Setting("embedding_scale", "f32", ("embedding_multiplier",)),
            Setting("residual_scale", "f32", ("residual_multiplier",)),
            Setting("logit_scale", "f32", ("logits_scaling",)),
        ),
        expects=_SILU,
    ),
    "qwen2": Architecture("qwen2", expects={**_SILU, **_NO_WINDOW}),
    "qwen3": Architecture("qwen3", expects={**_SILU, **_NO_WINDOW}),
    "qwen2_moe": Architecture(
        "qwen2moe",
        settings=(_EXPERT_WIDTH, _SHARED_WIDTH),
        expects={**_SILU, **_NO_WINDOW, "norm_topk_prob": (False,)},
    ),
    "qwen3_moe": Architecture(
        "qwen3moe",
        settings=(_EXPERT_WIDTH,),
        expects={**_SILU, **_NO_WINDOW, "norm_topk_prob": (True,)},
    ),
    "gemma": Architecture("gemma", plus_one=_NORMS, expects=_GEMMA),
    "gemma2": Architecture(
        "gemma2",
        plus_one=_NORMS,
        settings=(*_SOFT_CAPS, _WINDOW),
        expects={**_GEMMA, DERIVED_QUERY_SCALE: (True,), DERIVED_WINDOWS: (2,)},
    ),
    "gemma3_text": Architecture(
        "gemma3",
        plus_one=_NORMS,
        settings=(_SOFT_CAPS[1], _WINDOW, Setting("rope.freq_base_swa", "f32", (DERIVED_LOCAL_BASE,))),
        expects={**_GEMMA, DERIVED_QUERY_SCALE: (True,), DERIVED_WINDOWS: (6,)},
    ),
    "phi3": Architecture(
        "phi3",
        settings=(
            _ROTATED,
            _WITHIN_WINDOW,
            Setting("rope.scaling.original_context_length", "u32", ("original_max_position_embeddings",)),
            # llama.cpp reads the window of this architecture and does not use it.
            Setting("attention.sliding_window", "u32", ("sliding_window",), fixed=0),
        ),
        expects=_SILU,
    ),
    "olmo2": Architecture("olmo2", expects=_SILU),
    "gpt2": Architecture(
        "gpt2",
        expects={
            "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
            "scale_attn_by_inverse_layer_idx": (False,),
            "scale_attn_weights": (True,),
        },
        ignored=r".*\.attn\.bias$",
    ),
    "gpt_neox": Architecture(
        "gptneox",
        rows=(RowEdit(r".*\.query_key_value\.(weight|bias)$", "qkv_by_head", ("num_attention_heads",)),),
        settings=(_ROTATED, Setting("use_parallel_residual", "bool", ("use_parallel_residual",), fixed=True)),
        expects={"hidden_act": ("gelu", "gelu_new", "gelu_fast")},
        ignored=r".*\.attention\.bias$",
    ),
    "falcon": Architecture(
        "falcon",
        rows=(
            RowEdit(
                r".*\.query_key_value\.(weight|bias)$", "qkv_by_group", (DERIVED_GROUPS, DERIVED_QUERIES)
            ),
        ),
        settings=(Setting("tensor_data_layout", "string", (), fixed="jploski"),),
        expects={"alibi": (False,), "parallel_attn": (True,), "activation": ("gelu",), "bias": (False,)},
    ),
    "starcoder2": Architecture(
        "starcoder2", settings=(_WITHIN_WINDOW,), expects={"hidden_act": ("gelu_pytorch_tanh",)}
    ),
    "deepseek_v2": Architecture(
        "deepseek2",
        settings=(*_LATENT, Setting("expert_gating_func", "u32", (), fixed=_SOFTMAX)),
        expects={**_LATENT_EXPECTS, "topk_method": ("greedy",), "norm_topk_prob": (False,)},
    ),
    "deepseek_v3": Architecture(
        "deepseek2",
        settings=(
            *_LATENT,
            Setting("expert_gating_func", "u32", (), fixed=_SIGMOID),
            Setting("expert_group_count", "u32", ("n_group",)),
            Setting("expert_group_used_count", "u32", ("topk_group",)),
        ),
        expects={**_LATENT_EXPECTS, "rope_interleave": (True,)},
    ),
    "gpt_oss": Architecture(
        "gpt-oss",
        settings=(
            _WINDOW,
            Setting("expert_feed_forward_length", "u32", ("intermediate_size",), needed=True),
        ),
        expects={DERIVED_WINDOWS: (2,)},
        halves=(r"(.*\.experts\.)gate_up_proj_bias$", r"\1gate_proj.bias", r"\1up_proj.bias"),
    ),
}
"""``model_type`` in ``config.json`` → architecture."""
