"""The metadata of a GGUF file besides its tokenizer: the settings with which llama.cpp builds the model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from compress.checkpoint.gguf import Value
from compress.errors import UserError

from .architectures import ARCHITECTURES, COMMON, Architecture, Setting
from .derived import DERIVED_HEAD

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
    found = ARCHITECTURES[kind]
    for key, values in found.expects.items():
        if config.get(key) is not None and config[key] not in values:
            raise UserError(
                f"llama.cpp runs models of type '{kind}' with {_words(key)} {' or '.join(map(str, values))}, and this one has "
                f"{config[key]}: GGUF cannot express it"
            )
    return found


def _words(key: str) -> str:
    return f"the setting '{key.removeprefix('derived.')}'"


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
    if kind == "longrope":
        return found | {f"{prefix}.rope.scaling.attn_factor": Value("f32", _long_attention(rope, config))}
    if kind not in ("linear", "yarn"):
        raise UserError(f"GGUF cannot express rotary scaling of type '{kind}' for this architecture")
    found[f"{prefix}.rope.scaling.type"] = Value("string", kind)
    found[f"{prefix}.rope.scaling.factor"] = Value("f32", float(rope["factor"]))
    if (original := rope.get("original_max_position_embeddings")) is not None:
        found[f"{prefix}.rope.scaling.original_context_length"] = Value("u32", int(original))
    if kind == "yarn":
        found |= _yarn_attention(rope, prefix)
    for key, name in (("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")):
        if kind == "yarn" and rope.get(key) is not None:
            found[f"{prefix}.rope.scaling.{name}"] = Value("f32", float(rope[key]))
    return found


def _yarn_attention(rope: Mapping[str, Any], prefix: str) -> dict[str, Value]:
    """By what YaRN multiplies attention: llama.cpp takes ``0.1 ln(factor) + 1``, or that of DeepSeek's ``mscale_all_dim``.

    Raises:
        UserError: another one.
    """
    of_all = float(rope.get("mscale_all_dim") or 0)
    usual = 0.1 * math.log(float(rope["factor"])) + 1
    given = rope.get("attention_factor")
    if of_all and float(rope.get("mscale") or 0) == of_all and given is None:
        return {f"{prefix}.rope.scaling.yarn_log_multiplier": Value("f32", 0.1 * of_all)}
    if of_all or rope.get("mscale") or (given is not None and abs(float(given) - usual) > 1e-4):
        shown = {
            key: rope[key]
            for key in ("attention_factor", "mscale", "mscale_all_dim")
            if rope.get(key) is not None
        }
        raise UserError(
            f"llama.cpp multiplies YaRN's attention by {usual:.4g}, and this model has {shown}: GGUF cannot express it"
        )
    return {}


def rope_parameters(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The rotary settings, of full attention where there are two kinds."""
    rope = config.get("rope_parameters") or {}
    if isinstance(rope.get("full_attention"), Mapping):
        rope = rope["full_attention"]
    return rope


def _long_attention(rope: Mapping[str, Any], config: Mapping[str, Any]) -> float:
    if (given := rope.get("attention_factor")) is not None:
        return float(given)
    original = _original_context(rope, config)
    scale = float(config["max_position_embeddings"]) / original
    return math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0


def _original_context(rope: Mapping[str, Any], config: Mapping[str, Any]) -> float:
    given = rope.get("original_max_position_embeddings") or config.get("original_max_position_embeddings")
    return float(given or config["max_position_embeddings"])


def rope_tensors(config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors fp32 ``[rotated/2]`` that follow from the rotary settings: by what each frequency is divided."""
    rope = rope_parameters(config)
    if rope.get("rope_type") == "longrope":
        return {
            f"rope_factors_{name}.weight": torch.tensor(rope[f"{name}_factor"], dtype=torch.float32)
            for name in ("long", "short")
        }
    if rope.get("rope_type") != "llama3":
        return {}
    return {"rope_freqs.weight": _llama3_factors(rope, int(config[DERIVED_HEAD]))}


def _llama3_factors(rope: Mapping[str, Any], size: int) -> Tensor:
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    factor, context = float(rope["factor"]), float(rope["original_max_position_embeddings"])
    frequencies = float(rope["rope_theta"]) ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
    turns = context * frequencies / (2 * torch.pi)
    smooth = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 / (smooth + (1 - smooth) / factor)).float()
