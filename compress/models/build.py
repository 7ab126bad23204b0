"""The model without its weights: built on the meta device from the configuration alone."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from copy import deepcopy

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, initialization
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from compress.checkpoint.source import Source
from compress.errors import UserError
from compress.models.architecture import model_from_config
from compress.models.lost_linear import LOST, put_lost_layers
from compress.models.resize import SHAPES, resize
from compress.models.sizes import check_sizes

FOLLOWS = torch.float16
"""Stands in for the dtype of the run while the model is built: what is of this dtype afterwards follows the run's,
what is not was given a dtype of its own by the model's code (rotary frequencies, for example, are always fp32). Of
the narrow kinds, so that what is computed from it together with fp32 comes out in fp32, as in any run."""


def build_on_meta(source: Source) -> PreTrainedModel:
    """The model of `config.json`, every parameter and buffer on meta, nothing tied, in evaluation mode.

    Raises: `UserError` for a model that transformers does not know, or that needs remote code where it is
    not allowed.
    """
    kind = source.config.get("model_type")
    if source.config.get("auto_map") and kind not in CONFIG_MAPPING and not source.trust_remote_code:
        raise UserError(
            f"{source.path} needs code of its own to run (auto_map in config.json); "
            "read that code, and if you trust it, allow it with --trust-remote-code."
        )
    check_sizes(source)
    try:
        config = _config_of(source)
        if "quantization_config" not in source.config and hasattr(config, "quantization_config"):
            del config.quantization_config  # the source decodes what the file says is quantized
        dtype = config.dtype
        safely = getattr(initialization, "meta_device_safe_creation_ops", nullcontext)
        with (
            torch.device("meta"),
            safely(),
            initialization.no_init_weights(),
            initialization.no_tie_weights(),
        ):
            model = model_from_config(source, config, FOLLOWS)
            put_lost_layers(model, source.config.get(LOST, {}))
            resize(model, source.config.get(SHAPES, {}))
    except UserError:
        raise
    except Exception as error:  # a damaged configuration makes the models' code fail in any way
        # A setting that fails its validation is told by what the validator has raised.
        text = str(error.__cause__ if isinstance(error, StrictDataclassError) else error).strip()
        reason = text.splitlines()[0] if text else type(error).__name__
        raise UserError(
            f"transformers cannot build the model of {source.path / 'config.json'}: {reason[:300]}"
        ) from None
    set_dtype(model, dtype)
    return model.eval()


def _config_of(source: Source) -> PreTrainedConfig:
    """The configuration of a source; where its settings differ from the file's, as if ``config.json`` held them."""
    config = AutoConfig.from_pretrained(source.path, trust_remote_code=source.trust_remote_code)
    if not source.changes:
        return config
    changed = type(config).from_dict(deepcopy(source.config))
    changed._name_or_path = config._name_or_path  # where code that comes with the checkpoint is found
    return changed


def set_dtype(model: PreTrainedModel, dtype: torch.dtype | str | None) -> None:
    """Writes the dtype of the run into the model's configurations, where some models' code reads it."""
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            module.config.dtype = dtype


def own_buffers(module: nn.Module) -> list[str]:
    """The module's own buffers that are never on disk: they are computed when the model is built."""
    return [
        name
        for name, buffer in module._buffers.items()
        if name in module._non_persistent_buffers_set and buffer is not None
    ]


def compute_buffers(
    model: PreTrainedModel,
    names: list[str],
    meta: Mapping[str, torch.Tensor],
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Gives the named modules real buffers, by transformers' own way of making what a checkpoint does not
    hold.

    meta: every buffer as it was built. Parameters of those modules must be marked as loaded
    (`_is_hf_initialized`), so that they stay as they are.
    Raises: `UserError` if the model's code leaves a buffer unset (it would be computed from rubbish).
    """
    for name in names:
        module = model.get_submodule(name)
        for buffer_name in own_buffers(module):
            old = meta[f"{name}.{buffer_name}" if name else buffer_name]
            kind = dtype if old.dtype == FOLLOWS else old.dtype
            module._buffers[buffer_name] = _poisoned(tuple(old.shape), device, kind)
        _initialize(model, name)
        for buffer_name in own_buffers(module):
            if _is_poisoned(module._buffers[buffer_name]):
                raise UserError(
                    f"{type(model).__name__} does not say how its buffer {name}.{buffer_name} is computed."
                )


def _initialize(model: PreTrainedModel, name: str) -> None:
    """Run the rule for a module; where it leaves a buffer unset, those of the modules around it, from the inside out.

    Whatever else such a rule sets is loaded and marked, or on meta, and so stays as it is.
    """
    module = model.get_submodule(name)
    parts = name.split(".") if name else []
    for length in range(len(parts), -1, -1):
        around = ".".join(parts[:length])
        with torch.no_grad(), initialization.guard_torch_init_functions():
            _owner(model, around)._init_weights(model.get_submodule(around))
        if not any(_is_poisoned(module._buffers[own]) for own in own_buffers(module)):
            return


def _owner(model: PreTrainedModel, name: str) -> PreTrainedModel:
    """The innermost (sub)model around a module: the one whose rules set up its buffers."""
    parts = name.split(".") if name else []
    for length in range(len(parts), 0, -1):
        module = model.get_submodule(".".join(parts[:length]))
        if isinstance(module, PreTrainedModel):
            return module
    return model


def _poisoned(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    if dtype.is_floating_point:
        return torch.full(shape, float("nan"), device=device, dtype=dtype)
    if dtype == torch.bool:
        return torch.zeros(shape, device=device, dtype=dtype)
    return torch.full(shape, torch.iinfo(dtype).min, device=device, dtype=dtype)


def _is_poisoned(buffer: torch.Tensor | None) -> bool:
    if buffer is None or buffer.numel() == 0 or buffer.dtype == torch.bool:
        return False
    if buffer.dtype.is_floating_point:
        return bool(torch.isnan(buffer).all())
    return buffer.dtype != torch.uint8 and bool((buffer == torch.iinfo(buffer.dtype).min).all())
