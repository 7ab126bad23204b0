"""How exactly products of fp32 matrices are computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def quick_products() -> Iterator[None]:
    """Within, products of fp32 matrices may take their factors in bf16 and sum in fp32, where the hardware is faster so (AMX,
    tensor cores): single products 2 to 4 times on a core with AMX, with a relative error of about .002.

    For values that noise of that size does not change, such as gradients that are averaged; not for what is inverted.
    """
    with products_of("medium"):
        yield


@contextmanager
def products_of(precision: str) -> Iterator[None]:
    """Within, products of fp32 matrices are as exact as torch's name for it says: as in another process, for its bits."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
