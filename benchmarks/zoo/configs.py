"""A tiny configuration of every model type that `AutoModelForCausalLM` knows.

The settings of a type are those of its own default configuration; the known sizes among them are made small. What a type needs
besides is in `OVERRIDES`.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY = 256
LAYERS = 2

_HIDDEN = 64
_INNER = 128
_HEADS = 4
_HEAD = 16
_EXPERTS = 4

SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "emb_dim", "embedding_dim", "dim_model"), _HIDDEN),
    **dict.fromkeys(("word_embed_proj_dim", "embedding_size", "attention_hidden_size", "lru_width"), _HIDDEN),
    **dict.fromkeys(("input_embedding_size", "output_embedding_size", "encoder_hidden_size"), _HIDDEN),
    **dict.fromkeys(("intermediate_size", "moe_intermediate_size", "ffn_dim", "dff", "dim_ff"), _INNER),
    **dict.fromkeys(
        ("decoder_ffn_dim", "encoder_ffn_dim", "ffn_hidden_size", "expert_ffn_hidden_size"), _INNER
    ),
    **dict.fromkeys(("shared_expert_intermediate_size", "shared_intermediate_size", "d_inner"), _INNER),
    **dict.fromkeys(("intermediate_size_mlp", "dense_intermediate_size", "feed_forward_size"), _INNER),
    **dict.fromkeys(("moe_shared_expert_intermediate_size", "shared_experts_intermediate_size"), _INNER),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_blocks"), LAYERS),
    **dict.fromkeys(("decoder_layers", "encoder_layers", "num_encoder_layers", "num_decoder_layers"), LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"), _HEADS),
    **dict.fromkeys(
        ("decoder_attention_heads", "encoder_attention_heads", "swa_num_attention_heads"), _HEADS
    ),
    **dict.fromkeys(("num_decoder_attention_heads", "num_encoder_attention_heads", "index_n_heads"), _HEADS),
    **dict.fromkeys(("linear_num_heads", "linear_num_value_heads", "mamba_num_heads"), _HEADS),
    **dict.fromkeys(
        ("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads", "num_query_groups"), 2
    ),
    **dict.fromkeys(("linear_num_key_heads",), 2),
    **dict.fromkeys(("head_dim", "dim_head", "d_head", "swa_head_dim", "linear_head_dim"), _HEAD),
    **dict.fromkeys(("attention_head_size", "kv_channels"), _HEAD),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "index_head_dim"), _HEAD),
    **dict.fromkeys(("v_head_dim", "qk_nope_head_dim", "qk_rope_head_dim"), _HEAD),
    "qk_head_dim": 2 * _HEAD,
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "o_lora_rank"), 32),
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"), _EXPERTS),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k"), 2),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "moe_num_shared_experts"), 1),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group", "first_k_dense_replace"), 1),
    **dict.fromkeys(("num_dense_layers", "moe_layer_start_index"), 1),
    "moe_layer_end_index": LAYERS - 1,
    **dict.fromkeys(("vocab_size", "decoder_vocab_size", "vocab_size_per_layer_input"), VOCABULARY),
    "unpadded_vocab_size": VOCABULARY,
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), 128),
    **dict.fromkeys(("model_max_length", "max_target_positions", "context_length"), 128),
    **dict.fromkeys(
        ("sliding_window", "sliding_window_size", "attention_window_size", "local_attention"), 16
    ),
    **dict.fromkeys(("attention_chunk_size", "window_size"), 16),
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size", "mamba_d_head", "mamba_head_dim"), 16),
    **dict.fromkeys(("time_step_rank", "mamba_dt_rank"), 32),
    **dict.fromkeys(("mamba_n_heads",), 8),
    **dict.fromkeys(("mamba_n_groups", "n_groups", "mamba_ngroups"), 1),
    **dict.fromkeys(("mamba_chunk_size", "chunk_size"), 16),
    "mamba_d_ssm": 128,
    "rotary_dim": 8,
    "query_pre_attn_scalar": 16,
    "hidden_size_per_layer_input": 32,
    "index_topk": 8,
    "initializer_range": 0.08,
    "init_std": 0.08,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
"""Setting → its value in every tiny configuration that has it. Hidden size 64, two blocks, four experts, 256 tokens."""

_BY_BLOCK = (
    "layer_types",
    "mlp_layer_types",
    "layers_block_type",
    "indexer_types",
    "layer_rope_theta",
    "no_rope_layers",
)
"""Lists with one entry for each block."""

_DOTS3: dict[str, Any] = {
    "num_key_value_heads": _HEADS,
    **{
        f"swa_{name}": value
        for name, value in {
            "num_attention_heads": _HEADS,
            "num_key_value_heads": _HEADS,
            "q_lora_rank": 32,
            "kv_lora_rank": 32,
            "head_dim": 2 * _HEAD,
            "qk_nope_head_dim": _HEAD,
            "v_head_dim": _HEAD,
        }.items()
    },
}
_ZAMBA: dict[str, Any] = {
    "num_hidden_layers": 4,
    "layers_block_type": ["linear_attention", "hybrid"] * 2,
    "attention_hidden_size": 2 * _HIDDEN,
    "attention_head_dim": 2 * _HIDDEN // _HEADS,
    "num_key_value_heads": _HEADS,
}
OVERRIDES: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "big_bird": {"attention_type": "original_full"},
    "blt": {
        "encoder_hash_byte_group_vocab": 128,
        "encoder_hash_byte_group_size": [3, 4],
        **{
            f"{part}_config": {
                "vocab_size": 260,
                "hidden_size": _HIDDEN,
                "intermediate_size": _INNER,
                "num_hidden_layers": 1,
                "num_attention_heads": _HEADS,
                "num_key_value_heads": _HEADS,
                "max_position_embeddings": 128,
                "hidden_size_global": _HIDDEN,
            }
            for part in ("patcher", "encoder", "decoder", "global")
        },
    },
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": _INNER, "moe_num_experts": _EXPERTS, "moe_top_k": 2},
    },
    "dots3_note_text": _DOTS3,
    "gemma3n_text": {
        "num_hidden_layers": 3,
        "intermediate_size": [_INNER] * 3,
        "layer_types": ["sliding_attention", "full_attention", "full_attention"],
        "num_kv_shared_layers": 1,
        "activation_sparsity_pattern": [0.5, 0.0, 0.0],
        "laurel_rank": 32,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "longcat_flash": {"zero_expert_num": 2, "head_dim": _HEAD},
    "qwen4_exp_text": {
        "indexer_n_heads": _HEADS,
        "indexer_kv_heads": 1,
        "indexer_head_dim": _HEAD,
        "indexer_budget": 8,
        "indexer_compress_ratio": 4,
        "ple_embed_dim": _HIDDEN,
        "hc_lowrank": 32,
        "ngram_vocab_size_base": 64,
    },
    "llama4_text": {"moe_layers": [1], "no_rope_layers": [1, 0]},
    "mamba2": {"num_heads": 8},
    "reformer": {"axial_pos_shape": [8, 16], "axial_pos_embds_dim": [16, 48]},
    "roc_bert": {
        "pronunciation_embed_dim": _HIDDEN,
        "pronunciation_vocab_size": 32,
        "shape_embed_dim": _HIDDEN,
        "shape_vocab_size": 32,
    },
    "xmod": {"default_language": "en_XX"},
    "zamba": _ZAMBA,
    "zaya": {"num_experts_per_tok": 1},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "zamba2": _ZAMBA,
}
"""Model type → what its tiny configuration needs besides."""

_TOWERS = "has towers for images or sound: it belongs to the image-text models"
_PART = (
    "its configuration is a part of another model's, which AutoModelForCausalLM does not read from a folder"
)
SKIPPED: dict[str, str] = {
    **dict.fromkeys(("fuyu", "git", "phi4_multimodal"), _TOWERS),
    **dict.fromkeys(("emu3", "mllama", "musicgen", "musicgen_melody"), _PART),
    **dict.fromkeys(
        ("gemma4_assistant", "gemma4_unified_assistant"),
        "drafts for another model, whose hidden states it is given",
    ),
}
"""Model type → why it is left out."""


def kinds() -> list[str]:
    """The model types, one for each class: among those of one class, the first whose configuration is its own text model's."""
    by_class: dict[str, list[str]] = {}
    for kind, name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items():
        by_class.setdefault(name, []).append(kind)
    return sorted(min(found, key=_is_composite) for found in by_class.values())


def skipped(kind: str) -> str | None:
    """Why a model type is left out, or None."""
    if MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind].endswith("ForConditionalGeneration"):
        return _TOWERS
    return SKIPPED.get(kind)


def tiny_config(kind: str) -> PreTrainedConfig:
    """A configuration of model type `kind` with a few hundred thousand parameters."""
    cls, overrides = CONFIG_MAPPING[kind], OVERRIDES.get(kind, {})
    known = vars(cls())
    settings = {
        key: value for key, value in SIZES.items() if key in known and not isinstance(known[key], list)
    }
    if (
        "qk_rope_head_dim" in known
    ):  # latent attention: the configuration works the head size out, and heads have no groups
        settings = {**settings, "num_key_value_heads": _HEADS}
        settings.pop("head_dim", None)
    if "is_decoder" in known:
        settings["is_decoder"] = True
    if known.get("is_encoder_decoder"):
        settings["is_encoder_decoder"] = False
    settings |= _by_block(known, overrides)
    return cls(**{**settings, **overrides})


def _by_block(known: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """Each different entry of the lists by block once, and a depth that has room for them."""
    different = {
        key: list(dict.fromkeys(known[key])) for key in _BY_BLOCK if isinstance(known.get(key), list)
    }
    depth = next((key for key in _DEPTHS if key in known), None)
    blocks = max([LAYERS, *(len(found) for found in different.values())])
    blocks = overrides.get(depth, blocks) if depth else blocks
    lists = {key: (found * blocks)[:blocks] for key, found in different.items()}
    return {**lists, **({depth: blocks} if depth else {})}


_DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


def _is_composite(kind: str) -> bool:
    return bool(CONFIG_MAPPING[kind].sub_configs)
