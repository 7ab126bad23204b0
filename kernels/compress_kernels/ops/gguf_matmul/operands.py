"""What the GGUF backends read: the tensor of the file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ...layouts import GGUFBlocks, check


@dataclass(frozen=True)
class GGUFOperands:
    """``packed`` uint8 ``[out, bytes]``: the tensor of the file; ``type`` as in :class:`GGUFBlocks`; ``code``: its number."""

    packed: Tensor
    type: str
    code: int
    columns: int


def operands(layout: GGUFBlocks, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> GGUFOperands:
    """Check ``tensors`` against ``layout`` and ``shape`` ``[out, in]``; raises ``ValueError`` where they differ."""
    check(layout, tensors, shape)
    return GGUFOperands(tensors["weight_blocks"].contiguous(), layout.type, layout.kind.code, shape[1])
