"""Calibrated scales: what is stored of a static activation scheme, from histograms of the inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from compress_kernels.activations import (
    GLOBAL_SUFFIX,
    SCALE_SUFFIX,
    ZERO_SUFFIX,
    ActivationScheme,
    scale_of_range,
    zero_point,
)
from torch import Tensor

from compress.activations.observers import Observer
from compress.errors import UserError
from compress.score.histogram import Histogram

_E4M3_MAX = 448.0


def input_parameters(
    name: str, scheme: ActivationScheme, observer: Observer, histogram: Histogram, dtype: torch.dtype
) -> dict[str, Tensor]:
    """The tensors that a static scheme stores for a layer: suffix → ``[1]``.

    A layer that no calibration token reached (an expert) gets the range of [−1, 1].

    Args:
        name: of the weight, for messages.
        scheme: how inputs are rounded.
        observer: chooses the range.
        histogram: of the layer's calibration inputs.
        dtype: of the scale.

    Raises:
        UserError: the range is not finite.
    """
    if not scheme.stored:
        return {}
    low, high = _range(name, scheme, observer, histogram)
    if scheme.strategy == "tensor_group":
        largest = max(-low, high, torch.finfo(torch.float32).tiny)
        return {GLOBAL_SUFFIX: torch.tensor([_E4M3_MAX * scheme.top / largest])}
    lowest = torch.tensor([low]).clamp_max(0)
    scale, _ = scale_of_range(scheme, lowest, torch.tensor([high]))
    stored = _stored(scale, dtype)
    tensors = {SCALE_SUFFIX: stored}
    if not scheme.symmetric:
        tensors[ZERO_SUFFIX] = zero_point(scheme, lowest, stored.float()).to(torch.int8)
    return tensors


def cache_scale(
    name: str,
    scheme: ActivationScheme,
    observer: Observer,
    histograms: Sequence[Histogram],
    dtype: torch.dtype,
) -> Tensor:
    """The scale of a layer's keys or values: ``[1]``, or ``[heads, 1, 1]`` where each head has one.

    Args:
        name: of the tensor, for messages.
        scheme: how they are stored.
        observer: chooses the range.
        histograms: of each head.
        dtype: of the scale.

    Raises:
        UserError: the range is not finite.
    """
    by_head = scheme.strategy == "attn_head"
    ranges = [
        _range(name, scheme, observer, one)
        for one in (histograms if by_head else [Histogram.pooled(histograms)])
    ]
    low, high = (torch.tensor(ends) for ends in zip(*ranges, strict=True))
    scale, _ = scale_of_range(scheme, low, high)
    return _stored(scale.view(-1, 1, 1) if by_head else scale, dtype)


def _range(
    name: str, scheme: ActivationScheme, observer: Observer, histogram: Histogram
) -> tuple[float, float]:
    if math.isnan(histogram.low):
        raise UserError(
            f"{name}: the range of its calibration inputs is not finite; compute in bf16 or fp32 (--dtype), or leave it out"
        )
    return observer.range(histogram, scheme) if histogram.total else (-1.0, 1.0)


def _stored(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """A positive scale in its dtype on disk."""
    return scale.clamp_min(torch.finfo(dtype).tiny).to(dtype)
