"""The metadata of a GGUF file besides its tokenizer: the settings with which llama.cpp builds the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from compress.checkpoint.gguf import Value
from compress.errors import UserError

from .architectures import ARCHITECTURES, COMMON, Architecture, Setting

QUANTIZATION_VERSION = 2
"""Of ggml's block formats, since 2023."""


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """The architecture of a model's configuration.

    Raises:
        UserError: llama.cpp does not know the model, or this version has no table for it.
    """
    kind = str(config.get("model_type"))
    if kind not in ARCHITECTURES:
        raise UserError(
            f"GGUF has no architecture here for models of type '{kind}': {', '.join(sorted(ARCHITECTURES))} are written"
        )
    return ARCHITECTURES[kind]


def model_metadata(
    name: str, config: Mapping[str, Any], architecture: Architecture, file_type: int
) -> dict[str, Value]:
    """What a GGUF file says of the model.

    Args:
        name: of the model, for people.
        config: the model's configuration, defaults filled in.
        architecture: its table.
        file_type: llama.cpp's number for the mix of types (``LLAMA_FTYPE``).

    Raises:
        UserError: the configuration lacks a setting that llama.cpp needs.
    """
    found = {
        "general.architecture": Value("string", architecture.name),
        "general.type": Value("string", "model"),
        "general.name": Value("string", name),
        "general.file_type": Value("u32", file_type),
        "general.quantization_version": Value("u32", QUANTIZATION_VERSION),
    }
    settings = {setting.key: setting for setting in (*COMMON, *architecture.settings)}
    for setting in settings.values():
        value = _setting(setting, config)
        if value is None and setting.needed:
            raise UserError(
                f"config.json names none of {', '.join(setting.names)}, which a GGUF file needs ('{setting.key}')"
            )
        if value is not None:
            found[f"{architecture.name}.{setting.key}"] = Value(setting.kind, value)
    return found | _rope(config, architecture.name)


def _setting(setting: Setting, config: Mapping[str, Any]) -> Any:
    for key in setting.names:
        value = config.get(key)
        if value is not None:
            return int(value) if setting.kind == "u32" else value
    return setting.fixed


def _rope(config: Mapping[str, Any], prefix: str) -> dict[str, Value]:
    """The frequencies of the rotary embedding and how they are stretched."""
    rope = rope_parameters(config)
    found = {}
    if (base := rope.get("rope_theta")) is not None:
        found[f"{prefix}.rope.freq_base"] = Value("f32", float(base))
    kind = rope.get("rope_type", "default")
    if kind in ("default", "llama3"):
        return found
    if kind not in ("linear", "yarn"):
        raise UserError(f"GGUF cannot express rotary scaling of type '{kind}' for this architecture")
    found[f"{prefix}.rope.scaling.type"] = Value("string", kind)
    found[f"{prefix}.rope.scaling.factor"] = Value("f32", float(rope["factor"]))
    if (original := rope.get("original_max_position_embeddings")) is not None:
        found[f"{prefix}.rope.scaling.original_context_length"] = Value("u32", int(original))
    for key, name in (("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")):
        if kind == "yarn" and rope.get(key) is not None:
            found[f"{prefix}.rope.scaling.{name}"] = Value("f32", float(rope[key]))
    return found


def rope_parameters(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The rotary settings, of full attention where there are two kinds."""
    rope = config.get("rope_parameters") or {}
    if isinstance(rope.get("full_attention"), Mapping):
        rope = rope["full_attention"]
    return rope


def rope_factors(config: Mapping[str, Any]) -> Tensor | None:
    """llama.cpp's ``rope_freqs`` fp32 ``[head_dim/2]``: by what each frequency is divided under Llama 3's scaling."""
    rope = rope_parameters(config)
    if rope.get("rope_type") != "llama3":
        return None
    size = int(config["head_dim"])
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    factor, context = float(rope["factor"]), float(rope["original_max_position_embeddings"])
    frequencies = float(rope["rope_theta"]) ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
    turns = context * frequencies / (2 * torch.pi)
    smooth = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 / (smooth + (1 - smooth) / factor)).float()
