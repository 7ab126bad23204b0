"""What the operators' Triton backends share: when they can run, and their tiles."""

from __future__ import annotations

import functools
import importlib.util
import os

import torch

# Rows of x up to which the decode tuning is taken.
DECODE_ROWS = 32


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def unsupported_reason(device: torch.device) -> str | None:
    """Why Triton kernels cannot run on ``device``; the interpreter (``TRITON_INTERPRET=1``) stands in for a GPU."""
    if not _has_triton():
        return "triton is not installed"
    if device.type == "cuda" or (device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"):
        return None
    return "it needs a CUDA device, or TRITON_INTERPRET=1 on the CPU"
