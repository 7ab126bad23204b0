"""Names of devices and dtypes, as ``--device`` and ``--dtype`` take them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from compress.errors import UserError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
COMPUTED_IN = frozenset({*DTYPES.values(), torch.float64})
"""What a model can compute in; a configuration that names another dtype (FP8) says how its weights are stored."""


def dtype_name(dtype: str | torch.dtype | None) -> str:
    """The name in :data:`DTYPES` of a dtype, or ``auto`` for ``None`` and ``auto``.

    Args:
        dtype: torch's, or a name: ``bf16``, ``bfloat16`` or ``torch.bfloat16``, and so on.

    Raises:
        UserError: models are not computed in it.
    """
    if dtype is None:
        return "auto"
    text = str(dtype).removeprefix("torch.")
    same = {str(kind).removeprefix("torch."): name for name, kind in DTYPES.items()} | {
        "half": "fp16",
        "float": "fp32",
        "auto": "auto",
    }
    name = same.get(text, text)
    if not isinstance(dtype, str | torch.dtype) or (name not in DTYPES and name != "auto"):
        raise UserError(f"there is no dtype '{text[:40]}': take auto, {', '.join(DTYPES)} or torch's")
    return name


def resolve_device(name: str | torch.device) -> torch.device:
    """``auto`` is the first GPU if there is one, else the CPU.

    Raises:
        UserError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise UserError(f"there is no device '{name}': take auto, cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device '{name}' was asked for, but this torch finds no GPU: take cpu or auto")
    if device.type == "meta":
        raise UserError("device 'meta' holds no values: take auto, cpu or cuda")
    try:
        torch.ones(1, device=device).add_(1).item()
    except Exception as error:  # what torch raises differs from device to device
        raise UserError(f"device '{name}' cannot be used here: take auto, cpu or cuda") from error
    return device


def device_of_rank(name: str, here: int) -> torch.device:
    """:func:`resolve_device` for one of several processes on a machine: of several GPUs each takes its own.

    Args:
        name: as the command names it.
        here: the process's number on its machine.

    Raises:
        UserError: no such device here.
    """
    device = resolve_device(name)
    if device.type != "cuda" or ":" in name:
        return device
    return torch.device("cuda", here % torch.cuda.device_count())


def resolve_dtype(name: str, model: torch.dtype, device_type: str) -> torch.dtype:
    """``auto`` is the dtype of the ``model``, but bf16 for an fp16 model on a CPU, whose fp16 arithmetic is slow, and for fp8.

    Raises:
        UserError: a dtype that models are not computed in.
    """
    if name != "auto":
        if name not in DTYPES:
            raise UserError(f"there is no dtype '{name}': take auto, {', '.join(DTYPES)}")
        return DTYPES[name]
    if model.is_floating_point and model.itemsize == 1:  # stored so; nothing but products is computed in it
        return torch.bfloat16
    return torch.bfloat16 if model == torch.float16 and device_type == "cpu" else model


def wanted_dtype(name: str, config: Mapping[str, Any], device_type: str) -> torch.dtype | None:
    """As :func:`resolve_dtype` for a raw ``config.json``; ``None`` where it does not say its dtype and none was asked for."""
    texts = [part for part in (config, config.get("text_config") or {}) if isinstance(part, Mapping)]
    stated = next((part[key] for part in texts for key in ("dtype", "torch_dtype") if part.get(key)), None)
    dtype = getattr(torch, str(stated).removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype) or dtype not in COMPUTED_IN:
        return None if name == "auto" else resolve_dtype(name, torch.float32, device_type)
    return resolve_dtype(name, dtype, device_type)
