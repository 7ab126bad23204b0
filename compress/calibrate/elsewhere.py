"""What another rank can be given of a block: its modules, and the tensors of its arguments on a device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def is_known_elsewhere(module: nn.Module) -> bool:
    """Whether another process can make the block's modules: not where their code came with the checkpoint."""
    return not any(type(part).__module__.startswith("transformers_modules") for part in module.modules())


def moved(thing: Any, device: torch.device) -> Any:
    """The tensors of a nested argument on a device."""
    if isinstance(thing, Tensor):
        return thing.to(device)
    if isinstance(thing, dict):
        return {name: moved(value, device) for name, value in thing.items()}
    if type(thing) in (list, tuple):
        return type(thing)(moved(value, device) for value in thing)
    return thing
