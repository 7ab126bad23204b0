"""The parts of a model: the stack of blocks that reads text, and what stands beside it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

from torch import nn

from compress.errors import UserError


def find_blocks(model: nn.Module) -> list[str]:
    """The names of the blocks of the stack that reads text, in order.

    They are the members of the outermost `nn.ModuleList` with most parameters inside the module that the model calls its
    decoder, so that a tower for images, however large, is not taken for it.

    Raises: `UserError` if the model has no such list.
    """
    decoder = decoder_name(model)
    scope = model.get_submodule(decoder)
    candidates = list(_outermost_lists(scope, f"{decoder}." if decoder else ""))
    if not any(_size(module) for _, module in candidates):
        candidates = list(_outermost_lists(model, ""))
    name, blocks = max(candidates, key=lambda candidate: _size(candidate[1]), default=("", nn.ModuleList()))
    if not _size(blocks):
        raise UserError(
            f"{type(model).__name__} has no list of decoder blocks; it cannot be compressed block by block."
        )
    return [f"{name}.{index}" for index in range(len(blocks))]


def decoder_name(model: nn.Module) -> str:
    """The name of the module that reads text; empty for the model itself."""
    ask = getattr(model, "get_decoder", None)
    try:
        decoder = ask() if ask is not None else None
    except (AttributeError, NotImplementedError):
        return ""
    return next((name for name, module in model.named_modules() if module is decoder), "")


def beside_decoder(model: nn.Module) -> frozenset[str]:
    """The names of the modules outside the decoder, in a model that takes images as well as text; else none."""
    decoder = decoder_name(model)
    takes_images = "pixel_values" in inspect.signature(model.forward).parameters
    if not decoder or not takes_images:
        return frozenset()
    inside = f"{decoder}."
    return frozenset(
        name
        for name, _ in model.named_modules()
        if name and name != decoder and not name.startswith(inside) and not decoder.startswith(f"{name}.")
    )


def _outermost_lists(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.ModuleList]]:
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList):
            yield prefix + name, child
        else:
            yield from _outermost_lists(child, f"{prefix}{name}.")


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
