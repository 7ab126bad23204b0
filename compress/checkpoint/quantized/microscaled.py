"""MXFP4 experts as gpt-oss ships them: ``NAME_blocks`` and ``NAME_scales``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from compress.checkpoint.quantized.overlay import DenseTensor, Reading
from compress.checkpoint.quantized.values import e2m1, scale_values
from compress.checkpoint.source import Source
from compress.errors import UserError

_BLOCK = 32


def read_mxfp4(source: Source, config: Mapping[str, Any]) -> Reading:
    """Every ``NAME_blocks [E, out, in/32, 16]`` with ``NAME_scales [E, out, in/32]`` as ``NAME [E, in, out]``, as transformers
    has the parameter.

    Raises:
        UserError: blocks without scales, or shapes that do not fit.
    """
    tensors = {}
    for blocks, info in source.headers.items():
        if not blocks.endswith("_blocks"):
            continue
        name = blocks.removesuffix("_blocks")
        scales = f"{name}_scales"
        there = source.headers.get(scales)
        fits = len(info.shape) == 4 and info.dtype == torch.uint8 and 2 * info.shape[-1] == _BLOCK
        if there is None or not fits or there.shape != info.shape[:-1]:
            raise UserError(
                f"{source.path}: {blocks} of shape {list(info.shape)} and {scales} are not MXFP4."
            )
        tensors[name] = _experts(source, blocks, scales)
    return Reading("MXFP4, blocks of 32", tensors)


def _experts(source: Source, blocks: str, scales: str) -> DenseTensor:
    experts, rows, groups, half = source.headers[blocks].shape
    shape = (experts, groups * 2 * half, rows)

    def decode(dtype: torch.dtype) -> Tensor:
        packed, exponents = source.read(blocks), source.read(scales)
        result = torch.empty(shape, dtype=dtype)
        for index in range(experts):
            values = e2m1(packed[index]) * scale_values(exponents[index]).unsqueeze(-1)
            result[index] = values.view(rows, -1).T
        return result

    return DenseTensor(shape, (blocks, scales), decode)
