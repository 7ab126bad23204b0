"""ModelOpt: FP8 by tensor, channel or block, MXFP8, and NVFP4 with scales of two levels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from compress.checkpoint.quantized.float8 import FLOAT8, scaled_tensor
from compress.checkpoint.quantized.overlay import DenseTensor, Reading
from compress.checkpoint.quantized.values import by_strips, e2m1, scale_values, scaled
from compress.checkpoint.source import Source
from compress.errors import UserError

_SCALE, _OUTER = ".weight_scale", ".weight_scale_2"
_BLOCK = (128, 128)


def read_modelopt(source: Source, config: Mapping[str, Any]) -> Reading:
    """Every ``NAME.weight`` with a ``NAME.weight_scale`` beside it as ``NAME.weight [out, in]``.

    Raises:
        UserError: a weight of another kind than FP8 and NVFP4, or shapes that do not fit.
    """
    tensors = {}
    for scale in source.headers:
        name = scale.removesuffix(_SCALE)
        if name == scale:
            continue
        info = source.headers.get(f"{name}.weight")
        if info is None:
            raise UserError(f"{source.path}: {scale} belongs to no weight.")
        if info.dtype == torch.uint8 and f"{name}{_OUTER}" in source.headers:
            tensors[f"{name}.weight"] = _four_bits(source, name)
        elif info.dtype in FLOAT8:
            tensors[f"{name}.weight"] = _eight_bits(source, name)
        else:
            raise UserError(
                f"{source.path}: {name}.weight is {info.dtype} of ModelOpt, which is not read here."
            )
    settings = config.get("quantization")
    said = settings if isinstance(settings, dict) else config
    return Reading(f"ModelOpt {said.get('quant_algo')}", tensors)


def _eight_bits(source: Source, name: str) -> DenseTensor:
    """FP8: scales of blocks are stored with two axes of length 1, which go."""
    scale = source.headers[f"{name}{_SCALE}"]
    squeezed = tuple(size for i, size in enumerate(scale.shape) if len(scale.shape) < 4 or i % 2 == 0)
    seen = replace(source, headers={**source.headers, f"{name}{_SCALE}": replace(scale, shape=squeezed)})
    block = _BLOCK if len(squeezed) == 2 and squeezed[1] > 1 and scale.dtype != torch.uint8 else None
    return scaled_tensor(seen, f"{name}.weight", f"{name}{_SCALE}", block)


def _four_bits(source: Source, name: str) -> DenseTensor:
    weight, scale = source.headers[f"{name}.weight"], source.headers[f"{name}{_SCALE}"]
    if len(weight.shape) != 2 or len(scale.shape) != 2 or scale.shape[0] != weight.shape[0]:
        raise UserError(f"{source.path}: the shapes of {name}'s weight and scales do not fit each other.")
    rows, columns = weight.shape[0], 2 * weight.shape[1]
    if not scale.shape[1] or columns % scale.shape[1]:
        raise UserError(f"{source.path}: the shapes of {name}'s weight and scales do not fit each other.")
    parts = tuple(f"{name}.{suffix}" for suffix in ("weight", "weight_scale", "weight_scale_2"))

    def decode(dtype: torch.dtype) -> Tensor:
        packed = source.read(parts[0])
        scales = scale_values(source.read(parts[1])) * source.read(parts[2]).to(torch.float32)

        def part(first: int, last: int) -> Tensor:
            return scaled(e2m1(packed[first:last]), scales[first:last], (1, columns // scale.shape[1]))

        return by_strips(rows, columns, dtype, part)

    return DenseTensor((rows, columns), parts, decode)
