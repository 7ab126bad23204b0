"""Products of bf16 matrices by way of fp32, on a CPU without instructions for bf16.

There torch multiplies bf16 at a fifth of the speed of fp32 (30 against 155 GFLOP/s on one core of an Intel Xeon with AVX-512).
Factors are widened, which is exact, products are summed in fp32, and the result is rounded once: what the other road does, too.
A product of two matrices is made in pieces, so that neither is held in fp32 as a whole; batches of products are not.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from . import native

_PRODUCTS = frozenset(
    {
        torch.ops.aten.mm.default,
        torch.ops.aten.addmm.default,
        torch.ops.aten.bmm.default,
        torch.ops.aten.baddbmm.default,
    }
)
_ROWS = 32
"""Rows of the left factor from which on widening the right one costs less than it saves."""
_PIECE = 1 << 20
"""Elements of a piece of each factor and of the result in fp32: 4 MB."""
_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "avx_ne_convert"})


def bf16_is_slow() -> bool:
    """Whether this CPU multiplies bf16 without instructions of its own: x86-64 without AVX-512's or AMX's."""
    flags = native.cpu_flags()
    return platform.machine() in ("x86_64", "AMD64") and bool(flags) and not flags & _BF16_FLAGS


@contextmanager
def wide_products() -> Iterator[None]:
    """Matrix products of bf16 tensors on the CPU are computed in fp32 meanwhile and rounded to bf16, where that is faster."""
    if not bf16_is_slow():
        yield
        return
    with _WideProducts():
        yield


class _WideProducts(TorchDispatchMode):
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _PRODUCTS and _fits([each for each in args if isinstance(each, Tensor)]):
            *added, left, right = args
            if left.dim() == 2:
                return _in_pieces(func, added, left, right, kwargs or {})
            return func(*(each.float() for each in args), **(kwargs or {})).to(torch.bfloat16)
        return func(*args, **(kwargs or {}))


def _in_pieces(
    func: Any, added: list[Tensor], left: Tensor, right: Tensor, options: dict[str, Any]
) -> Tensor:
    """``mm`` or ``addmm`` of ``left`` ``[m, k]`` and ``right`` ``[k, n]``; bf16 ``[m, n]``.

    Pieces lie in memory in one way, whatever the factors do: equal products are then equal to the last bit.
    """
    (m, k), n = left.shape, right.shape[1]
    columns = min(max(1, _PIECE // max(k, 1)), max(n, 1))
    rows = max(_ROWS, _PIECE // max(k, columns, 1))
    out = left.new_empty(m, n)
    whole = [each.expand(m, n) for each in added]
    for r in range(0, m, rows):
        wide = _widened(left[r : r + rows])
        for c in range(0, n, columns):
            place = (slice(r, r + rows), slice(c, c + columns))
            more = (each[place].float() for each in whole)
            out[place] = func(*more, wide, _widened(right[:, c : c + columns].t()).t(), **options)
    return out


def _widened(matrix: Tensor) -> Tensor:
    """``matrix`` in fp32, row by row."""
    return matrix.to(torch.float32, memory_format=torch.contiguous_format)


def _fits(factors: list[Tensor]) -> bool:
    """Whether these are plain bf16 matrices on the CPU, with rows enough."""
    return all(
        type(each) in (Tensor, torch.nn.Parameter)
        and each.dtype == torch.bfloat16
        and each.device.type == "cpu"
        for each in factors
    ) and (factors[-2].shape[-2] >= _ROWS)
