"""When the C++ kernels can run."""

from __future__ import annotations

import torch

from .. import native


def unsupported_reason(device: torch.device) -> str | None:
    """Why the C++ kernels cannot run on a device: another one than the CPU, or no library that loads; else None."""
    if device.type != "cpu":
        return "it runs on the CPU only"
    loaded = native.load()
    return None if loaded.loaded else loaded.note
