"""Whether the sizes in a configuration can belong to a checkpoint, before a model of those sizes is built."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from compress.checkpoint.source import Source
from compress.errors import UserError

_FEW = 10_000
"""Modules that can be built in a moment whatever the checkpoint holds."""

_LISTS = ("layer", "block", "expert", "depth", "stage")
"""Words in the keys of numbers by which modules are repeated."""


def check_sizes(source: Source) -> None:
    """Raise unless the repeated modules that a configuration asks for can be those of the checkpoint.

    Every layer, block or expert has a tensor of its own or a place in one, so that there cannot be many more of them than
    the first dimensions of all tensors together; building them would take forever.

    Raises:
        UserError: a number that cannot be.
    """
    rows = sum(info.shape[0] if info.shape else 1 for info in source.headers.values())
    for key, number in _numbers(source.config):
        if number > max(_FEW, rows) and any(word in key.lower() for word in _LISTS):
            raise UserError(
                f"{source.path / 'config.json'} says '{key}': {str(number)[:30]}, but the checkpoint holds only "
                f"{len(source.headers)} tensors; the configuration is damaged or another model's."
            )


def _numbers(data: Any, key: str = "", depth: int = 0) -> Iterator[tuple[str, int]]:
    if type(data) is int:
        yield key, data
    elif isinstance(data, Mapping) and depth < 10:
        for name, inner in data.items():
            yield from _numbers(inner, str(name), depth + 1)
