"""Names of torch dtypes in plain data (JSON)."""

from __future__ import annotations

import torch

_BY_NAME = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


def dtype_name(dtype: torch.dtype) -> str:
    """``torch.bfloat16`` → ``"bfloat16"``."""
    return str(dtype).removeprefix("torch.")


def dtype_from_name(name: str) -> torch.dtype:
    """``"bfloat16"`` → ``torch.bfloat16``; raises ``ValueError`` for anything but a floating dtype."""
    if name not in _BY_NAME:
        raise ValueError(f"{name!r} is not one of {', '.join(_BY_NAME)}")
    return _BY_NAME[name]
