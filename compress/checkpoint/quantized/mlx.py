"""MLX's checkpoints: codes in uint32 words, a scale and a bias by group (affine), or 4- and 8-bit floats with block scales."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from compress_kernels.layouts import AffineInteger
from torch import Tensor

from compress.checkpoint.quantized.overlay import DenseTensor, Reading
from compress.checkpoint.quantized.values import by_strips, e2m1, scale_values, scaled
from compress.checkpoint.source import Source
from compress.errors import UserError

_MODES = {"mxfp4": (4, 32), "nvfp4": (4, 16), "mxfp8": (8, 32)}
"""Floating-point modes: bits and group size, which have no other values."""


def read_mlx(source: Source, config: Mapping[str, Any]) -> Reading:
    """Every ``NAME.weight`` of uint32 words as ``NAME.weight [out, in]``.

    Raises:
        UserError: bits or a mode that is not read here, or shapes that do not fit.
    """
    tensors = {}
    for tensor in source.headers:
        name = tensor.removesuffix(".scales")
        if name == tensor or f"{name}.weight" not in source.headers:
            continue
        if f"{name}.biases" in source.headers:
            tensors[f"{name}.weight"] = _affine(source, name, config)
        else:
            tensors[f"{name}.weight"] = _floats(source, name, config)
    return Reading(f"MLX, {config.get('bits')} bits, groups of {config.get('group_size')}", tensors)


def affine_of(source: Source, name: str, config: Mapping[str, Any]) -> tuple[AffineInteger, tuple[int, int]]:
    """The layout of a weight and its shape ``[out, in]``, by what is stored; ``config`` has the bits of those it names.

    Raises:
        UserError: the shapes of its tensors do not fit what config.json says.
    """
    said = config.get(name)
    settings = said if isinstance(said, Mapping) else config
    parts = [source.headers[f"{name}.{suffix}"] for suffix in ("weight", "scales", "biases")]
    bits, group = settings.get("bits"), settings.get("group_size")
    if any(len(part.shape) != 2 for part in parts) or not isinstance(bits, int) or not isinstance(group, int):
        raise UserError(f"{source.path}: the tensors of {name} are not those of MLX's affine layout.")
    (out, words), groups, columns = parts[0].shape, parts[1].shape[1], parts[1].shape[1] * group
    if words * 32 != columns * bits:
        # What config.json does not name may differ from its default: the words then tell the bits.
        bits = words * 32 // max(columns, 1)
    try:
        layout = AffineInteger(bits, group, parts[1].dtype)
        specs = layout.specs((out, columns))
    except ValueError as error:
        raise UserError(f"{source.path}: {name}: {error}.") from error
    fits = all(part.shape == spec.shape for part, spec in zip(parts, specs.values(), strict=True))
    if not fits or groups * group != columns:
        raise UserError(
            f"{source.path}: the shapes of {name}'s weight, scales and biases do not fit each other."
        )
    return layout, (out, columns)


def _affine(source: Source, name: str, config: Mapping[str, Any]) -> DenseTensor:
    layout, shape = affine_of(source, name, config)
    parts = tuple(f"{name}.{suffix}" for suffix in ("weight", "scales", "biases"))

    def decode(dtype: torch.dtype) -> Tensor:
        weight, scales, biases = map(source.read, parts)

        def rows(first: int, last: int) -> Tensor:
            strip = {"weight": weight[first:last], "scales": scales[first:last], "biases": biases[first:last]}
            return layout.decode(strip, (last - first, shape[1]), torch.float32)

        return by_strips(*shape, dtype, rows)

    return DenseTensor(shape, parts, decode)


def floats_of(source: Source, name: str, config: Mapping[str, Any]) -> tuple[str, tuple[int, int]]:
    """The floating-point mode of a weight and its shape ``[out, in]``.

    Raises:
        UserError: a mode that is not read here, or shapes that do not fit.
    """
    said = config.get(name)
    settings = said if isinstance(said, Mapping) else config
    mode = settings.get("mode", "affine")
    weight, scale = (source.headers[f"{name}.{suffix}"] for suffix in ("weight", "scales"))
    if mode not in _MODES or f"{name}.global_scale" in source.headers:
        raise UserError(f"{source.path}: {name} is in MLX's mode '{mode}', which is not read here.")
    bits, group = _MODES[mode]
    if len(weight.shape) != 2 or weight.shape[1] * 32 // bits != scale.shape[-1] * group:
        raise UserError(f"{source.path}: the shapes of {name}'s weight and scales do not fit each other.")
    return mode, (weight.shape[0], weight.shape[1] * 32 // bits)


def _floats(source: Source, name: str, config: Mapping[str, Any]) -> DenseTensor:
    mode, (out, columns) = floats_of(source, name, config)
    parts, (bits, group) = (f"{name}.weight", f"{name}.scales"), _MODES[mode]

    def decode(dtype: torch.dtype) -> Tensor:
        words, scales = (source.read(part) for part in parts)

        def rows(first: int, last: int) -> Tensor:
            octets = words[first:last].contiguous().view(torch.uint8)
            values = e2m1(octets) if bits == 4 else octets.view(torch.float8_e4m3fn).float()
            stored = scales[first:last]
            block = stored.view(torch.float8_e4m3fn) if mode == "nvfp4" else stored
            return scaled(values, scale_values(block), (1, group))

        return by_strips(out, columns, dtype, rows)

    return DenseTensor((out, columns), parts, decode)
