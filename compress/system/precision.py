"""How exactly matrices are multiplied where noise of bf16's size changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from compress_kernels import native


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


def gradient_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """What gradients are computed in, for a model that is computed in ``dtype``: fp32, or bf16 for a bf16 model on a CPU that
    multiplies it two to three times as fast (AVX-512, where :func:`quick_products` gains nothing)."""
    quick = dtype == torch.bfloat16 and device.type == "cpu" and native.multiplies_bf16()
    return torch.bfloat16 if quick else torch.float32


def planned_gradient_dtype(dtype: torch.dtype, device: str) -> torch.dtype:
    """What :func:`gradient_dtype` will be once the kernels are built, without building them."""
    quick = dtype == torch.bfloat16 and device == "cpu" and native.may_multiply_bf16()
    return torch.bfloat16 if quick else torch.float32
