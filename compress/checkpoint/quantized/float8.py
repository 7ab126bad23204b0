"""FP8 with scales of blocks, rows or whole tensors (DeepSeek, Qwen, FBGEMM), and FP4 experts beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from compress.checkpoint.headers import TensorInfo
from compress.checkpoint.quantized.overlay import DenseTensor, Reading
from compress.checkpoint.quantized.values import by_strips, e2m1, scale_values, scaled
from compress.checkpoint.source import Source
from compress.errors import UserError

FLOAT8 = tuple(
    getattr(torch, name) for name in ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
)
_FLOAT4 = getattr(torch, "float4_e2m1fn_x2", None)
_ENDS = ("_scale_inv", "_scale")  # behind the whole name: NAME.weight_scale_inv, gate_up_proj_scale_inv
_INSTEAD = (".scale", ".qscale_weight")  # in place of .weight


def read_float8(source: Source, config: Mapping[str, Any]) -> Reading:
    """Every FP8 tensor times its scale.

    Raises:
        UserError: an FP8 tensor without a scale, or a scale whose shape does not fit.
    """
    tensors = {}
    for name, info in source.headers.items():
        scale = scale_name(source, name)
        if info.dtype in FLOAT8 and scale is None and len(info.shape) > 1:
            raise UserError(
                f"{source.path}: tensor {name} is {_short(info.dtype)} but has no scale beside it."
            )
        if scale is not None and _quantized(info):
            tensors[name] = scaled_tensor(source, name, scale, _block_of(config))
    return Reading(f"FP8 ({config.get('quant_method')})", tensors)


def scale_name(source: Source, name: str) -> str | None:
    """The stored scale of tensor ``name``, or ``None``."""
    stem = name.removesuffix(".weight")
    candidates = [f"{name}{end}" for end in _ENDS]
    candidates += [f"{stem}{end}" for end in _INSTEAD] if stem != name else []
    return next((candidate for candidate in candidates if candidate in source.headers), None)


def scaled_tensor(source: Source, name: str, scale: str, block: tuple[int, int] | None) -> DenseTensor:
    """A tensor ``[…, out, in]`` of FP8, or of FP4 with two numbers in a byte, times its scale.

    Args:
        source: the checkpoint as stored.
        name, scale: the two stored tensors.
        block: rows and columns of a block; worked out from the shapes if ``None`` or where it does not fit.

    Raises:
        UserError: the shapes do not fit.
    """
    info = source.headers[name]
    four = info.dtype not in FLOAT8
    shape = (*info.shape[:-1], 2 * info.shape[-1]) if four else info.shape
    if len(shape) < 2:
        raise UserError(
            f"{source.path}: tensor {name} of shape {list(shape)} is quantized, but is no matrix."
        )
    rows, columns = shape[-2:]
    grid = _grid(source.headers[scale].shape, shape)
    sizes = None if grid is None else _sizes((rows, columns), grid, block)
    if grid is None or sizes is None:
        found = list(source.headers[scale].shape)
        raise UserError(
            f"{source.path}: {scale} of shape {found} does not fit {name} of shape {list(shape)}."
        )

    def decode(dtype: torch.dtype) -> Tensor:
        stored = source.read(name).reshape(-1, rows, info.shape[-1])
        scales = scale_values(source.read(scale)).reshape(-1, *grid).expand(stored.shape[0], *grid)
        result = torch.empty(stored.shape[0], rows, columns, dtype=dtype)
        for index in range(stored.shape[0]):
            result[index] = _matrix(stored[index], scales[index], sizes, dtype, four)
        return result.view(shape)

    return DenseTensor(shape, (name, scale), decode)


def _matrix(stored: Tensor, scales: Tensor, sizes: tuple[int, int], dtype: torch.dtype, four: bool) -> Tensor:
    def part(first: int, last: int) -> Tensor:
        values = e2m1(stored[first:last]) if four else stored[first:last].to(torch.float32)
        return scaled(values, scales[first // sizes[0] : -(-last // sizes[0])], sizes)

    return by_strips(
        stored.shape[0], stored.shape[1] * (2 if four else 1), dtype, part, sizes[0] if len(scales) > 1 else 1
    )


def _quantized(info: TensorInfo) -> bool:
    return info.dtype in FLOAT8 or info.dtype == torch.int8 or (_FLOAT4 is not None and info.dtype == _FLOAT4)


def _grid(scale: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, int] | None:
    """Rows and columns of the scales of one matrix of a tensor of ``shape``, or ``None`` if they do not fit."""
    count, total = torch.Size(shape[:-2]).numel(), torch.Size(scale).numel()
    if total in (1, count) and (total == 1 or len(scale) <= len(shape)):
        return 1, 1
    if total == count * shape[-2] and (len(scale) < len(shape) or scale[-1] == 1):
        return shape[-2], 1
    if len(scale) == len(shape) and scale[:-2] == shape[:-2]:
        return scale[-2], scale[-1]
    return None


def _sizes(
    matrix: tuple[int, int], grid: tuple[int, int], block: tuple[int, int] | None
) -> tuple[int, int] | None:
    if block is not None and all(-(-m // b) == g for m, b, g in zip(matrix, block, grid, strict=True)):
        return block
    if any(m % g for m, g in zip(matrix, grid, strict=True)):
        return None
    return matrix[0] // grid[0], matrix[1] // grid[1]


def _block_of(config: Mapping[str, Any]) -> tuple[int, int] | None:
    said = config.get("weight_block_size")
    if (
        isinstance(said, list | tuple)
        and len(said) == 2
        and all(isinstance(size, int) and size > 0 for size in said)
    ):
        return said[0], said[1]
    return None


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
