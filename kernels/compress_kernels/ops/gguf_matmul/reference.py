"""``x Wᵀ`` by writing W out and multiplying."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...decode import Rows
from ...layouts import GGUFBlocks
from ..autograd import product
from ..epilogue import finish


def _rows(packed: Tensor, type: str, columns: int, dtype: torch.dtype, rows: Rows) -> Tensor:
    part = packed[rows]
    return GGUFBlocks(type).decode({"weight_blocks": part}, (part.shape[0], columns), dtype)


@product("gguf_reference", _rows)
def gguf_reference(
    x: Tensor,
    packed: Tensor,
    type: str,
    columns: int,
    bias: Tensor | None,
    residual: Tensor | None,
    out: torch.dtype,
) -> Tensor:
    """The dense weight in the dtype of ``x``, then one product in that dtype."""
    weight = _rows(packed, type, columns, x.dtype, slice(0, packed.shape[0]))
    return finish(F.linear(x, weight), bias, residual, out)
