"""What ``--device`` and ``--dtype`` mean on this machine."""

from __future__ import annotations

import torch

from compress.errors import UserError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def resolve_device(name: str | torch.device) -> torch.device:
    """``auto`` is the first GPU if there is one, else the CPU.

    Raises:
        UserError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"there is no device '{name}': take auto, cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device '{name}' was asked for, but this torch finds no GPU: take cpu or auto")
    return device


def resolve_dtype(name: str, own: torch.dtype, device_type: str) -> torch.dtype:
    """``auto`` is the model's own dtype, but bf16 for an fp16 model on a CPU, whose fp16 arithmetic is slow.

    Raises:
        UserError: a dtype that models are not computed in.
    """
    if name != "auto":
        if name not in DTYPES:
            raise UserError(f"there is no dtype '{name}': take auto, {', '.join(DTYPES)}")
        return DTYPES[name]
    return torch.bfloat16 if own == torch.float16 and device_type == "cpu" else own
