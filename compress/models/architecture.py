"""Which class of transformers a checkpoint is of, and what it computes at its end."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)

from compress.checkpoint.source import Source
from compress.errors import UserError

_LANGUAGE_MODELS: tuple[Any, ...] = (AutoModelForCausalLM, AutoModelForImageTextToText)


def model_from_config(source: Source, config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """Build the class that ``architectures`` in ``config.json`` names, or what transformers would take for the configuration.

    Raises:
        UserError: an encoder-decoder model.
    """
    build = _builder(source, config)
    model: PreTrainedModel = build(config, dtype)
    if getattr(model.config, "is_encoder_decoder", False) and model.main_input_name == "input_ids":
        raise UserError(
            f"{source.path}: a {type(model).__name__} has an encoder and a decoder, which is not compressed here: models with "
            "one stack of blocks for text are."
        )
    _leave_out_pooler(model, source)
    return model


def predicts_next_token(model: nn.Module) -> bool:
    """Whether the model has a language-model head, so that there are logits of the next token and a loss to differentiate."""
    can_generate: Callable[[], bool] | None = getattr(model, "can_generate", None)
    return bool(can_generate and can_generate()) or type(model).__name__.endswith("ForCausalLM")


def require_next_token_loss(model: nn.Module, who: str) -> None:
    """Refuse a model without a loss of the next token.

    Args:
        model: any.
        who: what needs the loss, as the beginning of a sentence.

    Raises:
        UserError: the model predicts no tokens.
    """
    if not predicts_next_token(model):
        raise UserError(
            f"{who} the loss of the next token, and a {type(model).__name__} predicts no tokens; choose a recipe "
            "without gradients, such as w4-gptq."
        )


def _builder(
    source: Source, config: PreTrainedConfig
) -> Callable[[PreTrainedConfig, torch.dtype], PreTrainedModel]:
    trusted = source.trust_remote_code
    remote = getattr(config, "auto_map", None) or {}
    known = [auto for auto in _LANGUAGE_MODELS if type(config) in auto._model_mapping]

    def by_auto(auto: Any) -> Callable[[PreTrainedConfig, torch.dtype], PreTrainedModel]:
        return lambda config, dtype: auto.from_config(config, dtype=dtype, trust_remote_code=trusted)

    names = list(getattr(config, "architectures", None) or [])
    for auto in known:
        classes = auto._model_mapping[type(config)]
        classes = classes if isinstance(classes, tuple) else (classes,)
        if any(cls.__name__ in names for cls in classes):
            return by_auto(auto)
    if remote and trusted:
        autos = (*_LANGUAGE_MODELS, AutoModel)
        return by_auto(next((auto for auto in autos if auto.__name__ in remote), AutoModelForCausalLM))
    named: Any = getattr(transformers, names[0], None) if names else None
    if _is_model(named):
        build: Any = named._from_config
        return lambda config, dtype: build(config, dtype=dtype)
    return by_auto(known[0] if known else AutoModel if _has_base(config) else AutoModelForCausalLM)


def _is_model(found: Any) -> bool:
    return inspect.isclass(found) and issubclass(found, PreTrainedModel)


def _has_base(config: PreTrainedConfig) -> bool:
    mapping: Any = AutoModel._model_mapping  # type: ignore[attr-defined]
    return type(config) in mapping


def _leave_out_pooler(model: PreTrainedModel, source: Source) -> None:
    """A pooler that the checkpoint has no weights for is none of the model: its authors pool in another way."""
    base = model.base_model
    if isinstance(getattr(base, "pooler", None), nn.Module) and not any(
        "pooler" in name for name in source.headers
    ):
        base.pooler = None
