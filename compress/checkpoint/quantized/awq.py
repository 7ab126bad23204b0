"""AWQ in the GEMM layout of AutoAWQ: ``qweight``, ``qzeros`` and ``scales``, codes interleaved in every word."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from compress_kernels.layouts.awq import unpack_interleaved
from torch import Tensor

from compress.checkpoint.quantized.overlay import DenseTensor, Reading
from compress.checkpoint.source import Source
from compress.errors import UserError

_LAYOUTS = ("gemm",)


def read_awq(source: Source, config: Mapping[str, Any]) -> Reading:
    """Every ``NAME.qweight [in, out/8]`` as ``NAME.weight [out, in]``.

    Raises:
        UserError: another layout, other bits than 4, or shapes that do not fit.
    """
    layout = str(config.get("version") or config.get("checkpoint_format") or "gemm").lower()
    bits = config.get("bits", config.get("w_bit", 4))
    if layout not in _LAYOUTS or bits != 4:
        raise UserError(
            f"{source.path} is AWQ of {bits} bits in the layout '{layout}', which is not read here: 4 bits in 'gemm' are."
        )
    tensors = {
        f"{tensor.removesuffix('.qweight')}.weight": _linear(source, tensor.removesuffix(".qweight"))
        for tensor in source.headers
        if tensor.endswith(".qweight")
    }
    return Reading(f"AWQ, 4 bits, groups of {config.get('group_size', config.get('q_group_size'))}", tensors)


def _linear(source: Source, name: str) -> DenseTensor:
    parts = tuple(f"{name}.{suffix}" for suffix in ("qweight", "scales", "qzeros"))
    if missing := [part for part in parts if part not in source.headers]:
        raise UserError(f"{source.path}: {name} is of AWQ, but there is no {missing[0]}.")
    weight, scales, zeros = (source.headers[part].shape for part in parts)
    fits = len(weight) == len(scales) == len(zeros) == 2 and 8 * weight[1] == scales[1] == 8 * zeros[1]
    if not fits or scales[0] != zeros[0] or weight[0] % scales[0]:
        raise UserError(
            f"{source.path}: the shapes of {name}'s qweight, scales and qzeros do not fit each other."
        )
    columns, out, group = weight[0], scales[1], weight[0] // scales[0]

    def decode(dtype: torch.dtype) -> Tensor:
        packed, scale = source.read(parts[0]), source.read(parts[1])
        zero = unpack_interleaved(source.read(parts[2])).float()
        result = torch.empty(out, columns, dtype=dtype)
        for index in range(scale.shape[0]):
            rows = slice(index * group, (index + 1) * group)
            values = (unpack_interleaved(packed[rows]) - zero[index]) * scale[index].to(torch.float32)
            result[:, rows] = values.T
        return result

    return DenseTensor((out, columns), parts, decode)
