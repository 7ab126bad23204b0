"""Small floats in a model that is not of bf16, in compressed-tensors' loader: decoded while it loads, or opened in bf16."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from compress_kernels.layouts import PackedFloat

from .base import Facts, Planned
from .weight_arguments import DECODED_TO_BF16


def needs_another_dtype(weights: Sequence[Planned], facts: Facts) -> bool:
    """Whether transformers has to decode the weights while it loads them, so that they take the model's dtype.

    compressed-tensors decodes floats with a scale for each group (MXFP8, MXFP4, NVFP4) to bf16 at the first forward, whatever
    the model is; a model of fp16 or fp32 then multiplies two dtypes and raises. Decoding at load drops the rounding of inputs
    without a word: models whose inputs are rounded are left as they are, and :func:`in_bf16` has them opened in bf16.
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


def in_bf16(config: Mapping[str, Any], quantization: Mapping[str, Any]) -> dict[str, Any]:
    """Entries of ``config.json`` that have loaders give the model the dtype of the decoded weights; none where they decode
    them while they load, or decode to the model's dtype.

    Args:
        config: of the source.
        quantization: the ``quantization_config`` of the output.
    """
    formats = {group["format"] for group in quantization["config_groups"].values()}
    if quantization.get("dequantize") or not formats & DECODED_TO_BF16:
        return {}
    text = config.get("text_config")
    nested = {"text_config": {**text, **_said_in_bf16(text)}} if isinstance(text, Mapping) else {}
    return {**(_said_in_bf16(config) or {"dtype": "bfloat16"}), **nested}


def _said_in_bf16(config: Mapping[str, Any]) -> dict[str, str]:
    """The names under which a configuration tells its dtype."""
    return {key: "bfloat16" for key in ("dtype", "torch_dtype") if key in config}


def another_dtype_notes(weights: Sequence[Planned], facts: Facts) -> tuple[str, ...]:
    """A sentence where :func:`in_bf16` has a model of another dtype opened in bf16."""
    rounded = any(
        isinstance(weight.layout, PackedFloat) and weight.layout.kind.scale is not None for weight in weights
    )
    if facts.dtype == torch.bfloat16 or not rounded or needs_another_dtype(weights, facts):
        return ()
    name = str(facts.dtype).removeprefix("torch.")
    return (
        f"the model is in {name} and config.json will say bfloat16, the one dtype in which transformers multiplies these small "
        f"floats: opened with dtype={name} it stops at the first forward pass",
    )
