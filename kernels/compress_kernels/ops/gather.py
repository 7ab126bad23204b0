"""Row gather: some rows of a packed weight ``[out, in]``, decoded; what an embedding is.

Shapes: ``ids`` int32 or int64 ``[…]`` → ``[…, in]``; any leading dimensions, empty ones too.
Dtypes: the result is bf16, fp16 or fp32, the one that is asked for; values are those of the decoded weight in that dtype.
Memory: that of the rows asked for. Their packed bytes are read, no others.
Raises ``IndexError`` on a CPU where an id is outside ``0 … out − 1``; on a GPU such an id ends in a device-side assertion.

Every operator of :mod:`compress_kernels.ops` gathers from the operands that it multiplies with, so that a head and an embedding
that are tied share one prepared weight. ``compress_kernels::{name}_gather`` is the operator of backend ``{name}``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def register(name: str, operands: Sequence[str], rows: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Register ``compress_kernels::{name}_gather(ids, *operands, width, dtype)`` with its fake.

    Args:
        name: of the product whose operands it reads.
        operands: their schemas, such as ``"Tensor codes"``.
        rows: ``(*operands, dtype, ids)``: the rows ``[ids, in]`` for ids int64 ``[ids]``.
    """
    schema = f"({', '.join(['Tensor ids', *operands, 'int width', 'ScalarType dtype'])}) -> Tensor"

    def compute(ids: Tensor, *arguments: Any) -> Tensor:
        *values, width, dtype = arguments
        first = _first(values)
        flat = checked(ids, first.shape[0])
        if flat.numel() == 0:
            return first.new_empty((*ids.shape, width), dtype=dtype)
        return rows(*values, dtype, flat).view(*ids.shape, width)

    operator = torch.library.custom_op(
        f"compress_kernels::{name}_gather", compute, mutates_args=(), schema=schema
    )

    @operator.register_fake
    def _(ids: Tensor, *arguments: Any) -> Tensor:
        return _first(arguments).new_empty((*ids.shape, arguments[-2]), dtype=arguments[-1])

    return operator


def checked(ids: Tensor, count: int) -> Tensor:
    """``ids`` as int64 ``[ids]``; raises ``IndexError`` on a CPU where one is outside ``0 … count − 1``."""
    if ids.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"ids of rows are int32 or int64, not {ids.dtype}")
    flat = ids.reshape(-1).long()
    if flat.device.type == "cpu" and flat.numel() and (int(flat.min()) < 0 or int(flat.max()) >= count):
        wrong = int(flat[(flat < 0) | (flat >= count)][0])
        raise IndexError(f"row {wrong} is asked for where the weight has {count} rows")
    return flat


def _first(operands: Sequence[Any]) -> Tensor:
    """The tensor that has a row for every row of the weight."""
    first = operands[0]
    tensor: Tensor = first[0] if isinstance(first, list | tuple) else first
    return tensor
