"""Small floats in a model that is not of bf16, in compressed-tensors' loader."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from compress_kernels.layouts import PackedFloat

from .base import Facts, Planned


def needs_another_dtype(weights: Sequence[Planned], facts: Facts) -> bool:
    """Whether transformers has to decode the weights while it loads them, so that they take the model's dtype.

    compressed-tensors decodes floats with a scale for each group (MXFP8, MXFP4, NVFP4) to bf16 at the first forward, whatever
    the model is; a model of fp16 or fp32 then multiplies two dtypes and raises. Decoding at load drops the rounding of inputs
    without a word: models whose inputs are rounded are left as they are and open with ``dtype=torch.bfloat16``.
    """
    if facts.dtype == torch.bfloat16 or len({weight.layout for weight in weights}) != 1:
        return False
    return all(
        isinstance(weight.layout, PackedFloat)
        and weight.layout.kind.scale is not None
        and weight.activations is None
        and weight.view.kind != "expert"
        for weight in weights
    )
