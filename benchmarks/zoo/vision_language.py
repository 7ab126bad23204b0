"""Tiny random models of vision-language classes of transformers, all from one set of small settings."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

IMAGE = 250
"""The token that stands for a piece of an image."""

TEXT: dict[str, Any] = {
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
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
_MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}}
_QWEN = {"depth": 3, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "patch_size": 8}
_QWEN3 = {
    "depth": 3,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 2,
    "patch_size": 8,
    "out_hidden_size": 64,
    "deepstack_visual_indexes": [0],
    "num_position_embeddings": 16,
}
_MOE = {"moe_intermediate_size": 96, "num_experts": 4, "num_experts_per_tok": 2}
_GLM = {
    "depth": 3,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 2,
    "patch_size": 8,
    "image_size": 32,
    "out_hidden_size": 64,
}
_MLA = {
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "n_group": 1,
    "topk_group": 1,
}

SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2_vl": ("qwen2_vl", {"text_config": {**TEXT, **_MROPE}, "vision_config": _QWEN}),
    "qwen2_5_vl": (
        "qwen2_5_vl",
        {"text_config": {**TEXT, **_MROPE}, "vision_config": {**_QWEN3, "fullatt_block_indexes": [1]}},
    ),
    "qwen3_vl": ("qwen3_vl", {"text_config": {**TEXT, **_MROPE}, "vision_config": _QWEN3}),
    "qwen3_vl_moe": ("qwen3_vl_moe", {"text_config": {**TEXT, **_MROPE, **_MOE}, "vision_config": _QWEN3}),
    "mistral3": (
        "mistral3",
        {
            "text_config": {"model_type": "mistral", **TEXT},
            "vision_config": {"model_type": "pixtral", **VISION, "head_dim": 16},
        },
    ),
    "mistral4": (
        "mistral3",
        {
            "text_config": {
                "model_type": "mistral4",
                **{k: v for k, v in TEXT.items() if k != "head_dim"},
                **_MLA,
                "num_key_value_heads": 4,
            },
            "vision_config": {"model_type": "pixtral", **VISION, "head_dim": 16},
        },
    ),
    "llava": (
        "llava",
        {
            "text_config": {"model_type": "llama", **TEXT},
            "vision_config": {"model_type": "clip_vision_model", **VISION},
        },
    ),
    "llava_next": (
        "llava_next",
        {
            "text_config": {"model_type": "llama", **TEXT},
            "vision_config": {"model_type": "clip_vision_model", **VISION},
            "image_grid_pinpoints": [[32, 64], [64, 32]],
        },
    ),
    "llava_onevision": (
        "llava_onevision",
        {
            "text_config": {"model_type": "qwen2", **TEXT},
            "vision_config": {"model_type": "siglip_vision_model", **VISION},
            "image_grid_pinpoints": [[32, 64], [64, 32]],
        },
    ),
    "internvl": (
        "internvl",
        {
            "text_config": {"model_type": "qwen2", **TEXT},
            "vision_config": {**VISION, "image_size": [32, 32], "patch_size": [8, 8]},
        },
    ),
    "idefics3": (
        "idefics3",
        {"text_config": {"model_type": "llama", **TEXT}, "vision_config": VISION, "scale_factor": 2},
    ),
    "smolvlm": (
        "smolvlm",
        {"text_config": {"model_type": "llama", **TEXT}, "vision_config": VISION, "scale_factor": 2},
    ),
    "glm4v": ("glm4v", {"text_config": {**TEXT, **_MROPE}, "vision_config": _GLM}),
    "paligemma": (
        "paligemma",
        {
            "text_config": {"model_type": "gemma", **TEXT},
            "vision_config": {"model_type": "siglip_vision_model", **VISION, "projection_dim": 64},
            "projection_dim": 64,
        },
    ),
    "aya_vision": (
        "aya_vision",
        {
            "text_config": {"model_type": "cohere2", **TEXT},
            "vision_config": {"model_type": "siglip_vision_model", **VISION},
        },
    ),
    "cohere2_vision": (
        "cohere2_vision",
        {
            "text_config": {"model_type": "cohere2", **TEXT},
            "vision_config": {"model_type": "siglip_vision_model", **VISION},
        },
    ),
    "lfm2_vl": (
        "lfm2_vl",
        {
            "text_config": {"model_type": "lfm2", **TEXT, "layer_types": ["conv", "full_attention"]},
            "vision_config": {"model_type": "siglip2_vision_model", **VISION, "num_patches": 16},
        },
    ),
}
"""Name → model type and settings."""

PREFIX = "vision-language/"
"""Before the names of these models, where they stand beside model types of the causal mapping."""


def vision_language_kinds() -> list[str]:
    """The models, by the names that :func:`benchmarks.zoo.models.build` takes."""
    return [PREFIX + name for name in SETTINGS]


def build_vision_language(name: str) -> PreTrainedModel:
    """A tiny random model of a class, the same at every call."""
    kind, settings = SETTINGS[name]
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **settings, image_token_id=IMAGE, image_token_index=IMAGE)
    model: PreTrainedModel = AutoModelForImageTextToText.from_config(config)
    return model.eval()
