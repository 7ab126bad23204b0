"""compressed-tensors: packed and plain integers, FP8, FP4 with scales of two levels (NVFP4) and the MX forms."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from compress_kernels.layouts.bits import unpack
from torch import Tensor

from compress.checkpoint.quantized.float8 import FLOAT8
from compress.checkpoint.quantized.overlay import DenseTensor, Reading
from compress.checkpoint.quantized.values import by_strips, e2m1, scale_values, scaled
from compress.checkpoint.source import Source
from compress.errors import UserError

_SCALE = ".weight_scale"
_OTHERS = ("weight_zero_point", "weight_g_idx", "weight_shape", "weight_global_scale")


def read_compressed_tensors(source: Source, config: Mapping[str, Any]) -> Reading:
    """Every module with a ``NAME.weight_scale`` as ``NAME.weight [out, in]``.

    Raises:
        UserError: a form that is not read here (sparse ones, online transforms), or tensors that do not fit it.
    """
    _refuse_unread(source, config)
    tensors, forms = {}, set()
    for tensor in source.headers:
        if tensor.endswith(_SCALE):
            name = tensor.removesuffix(_SCALE)
            group = _group_of(source, name, config)
            tensors[f"{name}.weight"] = _module(source, name, group.get("weights") or {})
            forms.add(str(group.get("format") or config.get("format")))
    return Reading(f"compressed-tensors {' and '.join(sorted(forms))}", tensors)


def _refuse_unread(source: Source, config: Mapping[str, Any]) -> None:
    sparse = (config.get("sparsity_config") or {}).get("format", "dense")
    if sparse != "dense" or any(name.endswith((".bitmask", ".compressed")) for name in source.headers):
        raise UserError(
            f"{source.path} is stored as '{sparse}' of compressed-tensors, which is not read here."
        )
    if (config.get("transform_config") or {}).get("config_groups"):
        raise UserError(
            f"{source.path} rotates activations while it runs (transform_config), which is not read here."
        )


def _group_of(source: Source, name: str, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config group of a module: by its exact name first, then by pattern, then by class."""
    groups = [group for group in (config.get("config_groups") or {}).values() if isinstance(group, dict)]

    def rank(group: Mapping[str, Any]) -> int:
        targets = [str(target) for target in group.get("targets", ())]
        if name in targets:
            return 0
        if any(target.startswith("re:") and re.match(target[3:], name) for target in targets):
            return 1
        return 2 if any(not target.startswith("re:") and "." not in target for target in targets) else 3

    ranked = sorted(groups, key=rank)
    if not ranked or rank(ranked[0]) == 3:
        raise UserError(f"{source.path / 'config.json'} has no config group for {name}, which is quantized.")
    return ranked[0]


def _module(source: Source, name: str, arguments: Mapping[str, Any]) -> DenseTensor:
    stored = next(
        (f"{name}.{s}" for s in ("weight_packed", "weight") if f"{name}.{s}" in source.headers), None
    )
    scale = f"{name}{_SCALE}"
    if stored is None:
        raise UserError(f"{source.path}: {scale} belongs to no weight.")
    others = {suffix: f"{name}.{suffix}" for suffix in _OTHERS if f"{name}.{suffix}" in source.headers}
    info, bits = source.headers[stored], int(arguments.get("num_bits", 8))
    if len(info.shape) != 2:
        raise UserError(f"{source.path}: {stored} of shape {list(info.shape)} is no matrix.")
    out, columns = info.shape
    if info.dtype == torch.int32:
        if "weight_shape" not in others:
            raise UserError(f"{source.path}: {stored} is packed, but there is no {name}.weight_shape.")
        out, columns = (int(size) for size in source.read(others["weight_shape"]))
    elif info.dtype == torch.uint8:
        columns = columns * 8 // bits
    if info.dtype == torch.uint8 and bits != 4:
        raise UserError(f"{source.path}: {stored} holds floats of {bits} bits, which are not read here.")
    if info.dtype not in (torch.int32, torch.uint8, torch.int8, *FLOAT8):
        raise UserError(f"{source.path}: {stored} is {info.dtype} beside a scale, which is not read here.")
    grid = (
        source.headers[scale].shape
        if len(source.headers[scale].shape) == 2
        else (source.headers[scale].numel, 1)
    )
    sizes = _block(source, scale, (out, columns), (grid[0], grid[1]), arguments)

    def decode(dtype: torch.dtype) -> Tensor:
        return _decode(source, stored, scale, others, (out, columns), (grid[0], grid[1]), sizes, bits, dtype)

    return DenseTensor((out, columns), (stored, scale, *others.values()), decode)


def _block(
    source: Source, scale: str, shape: tuple[int, int], grid: tuple[int, int], arguments: Mapping[str, Any]
) -> tuple[int, int]:
    """Rows and columns that share a scale."""
    declared = arguments.get("block_structure")
    if arguments.get("strategy") == "block" and isinstance(declared, list) and len(declared) == 2:
        rows, columns = int(declared[0]), int(declared[1])
        if (-(-shape[0] // rows), -(-shape[1] // columns)) == grid:
            return rows, columns
    if shape[0] % grid[0] == 0 and shape[1] % grid[1] == 0:
        return shape[0] // grid[0], shape[1] // grid[1]
    size = arguments.get("group_size")
    if isinstance(size, int) and size > 0 and grid == (shape[0], -(-shape[1] // size)):
        return 1, size
    raise UserError(
        f"{source.path}: {scale} of shape {list(grid)} does not fit a weight of shape {list(shape)}."
    )


def _decode(
    source: Source,
    stored: str,
    scale: str,
    others: Mapping[str, str],
    shape: tuple[int, int],
    grid: tuple[int, int],
    sizes: tuple[int, int],
    bits: int,
    dtype: torch.dtype,
) -> Tensor:
    packed, scales = source.read(stored), scale_values(source.read(scale)).reshape(grid)
    if "weight_global_scale" in others:
        scales = scales / source.read(others["weight_global_scale"]).to(torch.float32)
    zero = _zeros(source, others, grid, bits)
    order = source.read(others["weight_g_idx"]).long() if "weight_g_idx" in others else None
    if order is not None and bool((order < 0).any()):
        order = None  # as some writers leave it where columns were not reordered

    def part(first: int, last: int) -> Tensor:
        rows = slice(first // sizes[0], -(-last // sizes[0]))
        values = _values(packed[first:last], bits, shape[1])
        if order is not None:
            spread = zero[rows][:, order] if zero is not None else 0.0
            return (values - spread) * scales[rows][:, order]
        if zero is not None:
            values = values - scaled(torch.ones_like(values), zero[rows], sizes)
        return scaled(values, scales[rows], sizes)

    return by_strips(*shape, dtype, part, sizes[0] if grid[0] > 1 else 1)


def _values(packed: Tensor, bits: int, columns: int) -> Tensor:
    """The stored numbers of some rows in fp32; packed integers are stored with an offset of half their range."""
    if packed.dtype == torch.int32:
        return (unpack(packed, bits, columns) - (1 << (bits - 1))).to(torch.float32)
    return e2m1(packed) if packed.dtype == torch.uint8 else packed.to(torch.float32)


def _zeros(source: Source, others: Mapping[str, str], grid: tuple[int, int], bits: int) -> Tensor | None:
    if "weight_zero_point" not in others:
        return None
    zero = source.read(others["weight_zero_point"])
    if zero.dtype == torch.int32:
        zero = unpack(zero.T.contiguous(), bits, grid[0]).T - (1 << (bits - 1))
    return zero.to(torch.float32).reshape(grid)
