"""A quantized checkpoint presented as a dense one: the headers say what the weights are after decoding."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from compress.checkpoint.headers import TensorInfo
from compress.checkpoint.source import Source

_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
_QUANTIZATION = ("quantization_config", "compression_config", "quantization")
ACTIVATION_SCALES = (
    ".input_scale",
    ".activation_scale",
    ".output_scale",
    ".q_scale",
    ".k_scale",
    ".v_scale",
    ".input_global_scale",
    ".input_zero_point",
    ".output_zero_point",
    ".input_scale_ub",
    ".kv_scale",
)
"""Ends of the names of tensors that quantize activations or a cache: a dense model has no use for them."""


@dataclass(frozen=True)
class DenseTensor:
    """A dense tensor that is decoded from the stored tensors ``parts`` when it is read."""

    shape: tuple[int, ...]
    parts: tuple[str, ...]
    decode: Callable[[torch.dtype], Tensor]


@dataclass(frozen=True)
class Reading:
    """What a reader makes of a checkpoint.

    Attributes:
        form: the stored form in words, such as "GPTQ, 4 bits, groups of 128".
        tensors: name of the dense tensor → how it is decoded.
        dropped: stored tensors that are used by no dense tensor and mean nothing for the weights.
    """

    form: str
    tensors: Mapping[str, DenseTensor]
    dropped: frozenset[str] = frozenset()


def overlay(source: Source, reading: Reading, dtype: torch.dtype) -> Source:
    """``source`` with the dense tensors of ``reading`` in place of the stored ones, all of ``dtype``.

    A dense tensor stands where the first of its parts stood. ``config`` no longer tells of the quantization.
    """
    at = {tensor.parts[0]: name for name, tensor in reading.tensors.items()}
    parts = {part for tensor in reading.tensors.values() for part in tensor.parts}
    headers: dict[str, TensorInfo] = {}
    for name, info in source.headers.items():
        if name in at:
            headers[at[name]] = _dense_info(source, reading.tensors[at[name]], dtype)
        elif name not in parts and name not in reading.dropped and not name.endswith(ACTIVATION_SCALES):
            headers[name] = info
    return replace(
        source, headers=headers, config=without_quantization(source.config), stored_as=reading.form
    )


def _dense_info(source: Source, tensor: DenseTensor, dtype: torch.dtype) -> TensorInfo:
    def decode() -> Tensor:
        return tensor.decode(dtype)

    nbytes = torch.Size(tensor.shape).numel() * dtype.itemsize
    parts = tuple(source.headers[part] for part in tensor.parts)
    return TensorInfo(dtype, tensor.shape, nbytes, parts[0].file, parts[0].offset, decode, parts)


def without_quantization(config: Mapping[str, Any]) -> dict[str, Any]:
    """``config`` without what it says of quantization, at its top or in the configuration of a part."""
    left = {k: v for k, v in config.items() if k not in _QUANTIZATION}
    return {
        k: without_quantization(v) if isinstance(v, dict) and k.endswith("_config") else v
        for k, v in left.items()
    }


def dense_dtype(source: Source, scales: Sequence[str] = ()) -> torch.dtype:
    """The dtype of the weights before they were quantized: what ``config.json`` says, or else that of the scales."""
    parts = [
        value for key, value in source.config.items() if key.endswith("_config") and isinstance(value, dict)
    ]
    for config in (source.config, *parts):
        said = config.get("dtype") or config.get("torch_dtype")
        found = getattr(torch, said.removeprefix("torch."), None) if isinstance(said, str) else None
        if found in _DTYPES:
            return found  # type: ignore[no-any-return]
    kinds = [source.headers[name].dtype for name in scales]
    halves = [dtype for dtype in kinds if dtype in (torch.bfloat16, torch.float16)]
    return halves[0] if halves else torch.bfloat16
