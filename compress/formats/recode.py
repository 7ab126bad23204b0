"""From the layout of an integer grid to that of another program: codes stay what they are, nothing is rounded again."""

from __future__ import annotations

import torch
from compress_kernels.layouts import (
    AffineInteger,
    AWQInteger,
    GPTQInteger,
    Layout,
    MLXFloat,
    PackedInteger,
    ServedFloat,
)
from torch import Tensor

from compress.errors import UserError
from compress.structures.base import CompressedWeight

_LOSS = 1e-3
"""Relative error that fp16 may add to a scale: twice its own rounding."""


def recoded(name: str, packed: CompressedWeight, layout: Layout) -> CompressedWeight:
    """The weight with the same codes in another layout.

    Args:
        name: of the weight, for messages.
        packed: a weight in packed integers or small floats, or in ``layout`` already.
        layout: of another program, of as many bits.

    Raises:
        UserError: a scale that fp16 cannot hold, a zero point that GPTQ's first version does not have, or a scale of the whole
            weight that MLX's nvfp4 does not have.
    """
    if packed.layout == layout:
        return packed
    if isinstance(layout, MLXFloat | ServedFloat):
        return _floats(name, packed, layout)
    assert isinstance(packed.layout, PackedInteger)
    codes, scale, zero = packed.layout.codes(packed.tensors, packed.shape)
    if isinstance(layout, AffineInteger):
        bias = -(zero.float() * scale.float())
        return CompressedWeight(layout, packed.shape, layout.encode(codes, scale, bias))
    assert isinstance(layout, GPTQInteger | AWQInteger)
    _check_scales(name, scale, layout.scale_dtype)
    if isinstance(layout, GPTQInteger) and layout.less_one:
        codes, zero = _without_zero(name, codes, zero, layout.bits)
    return CompressedWeight(layout, packed.shape, layout.encode(codes, scale, zero))


def _floats(name: str, packed: CompressedWeight, layout: MLXFloat | ServedFloat) -> CompressedWeight:
    try:
        return CompressedWeight(layout, packed.shape, layout.of_plain(packed.tensors))
    except ValueError as error:
        raise UserError(f"{name} {error}: run the recipe again with --format mlx") from error


def _check_scales(name: str, scale: Tensor, dtype: torch.dtype) -> None:
    wide, stored = scale.float(), scale.to(dtype).float()
    # Written so that a NaN or an infinity fails, too.
    wrong = ~((stored - wide).abs() <= _LOSS * wide.abs())
    if bool(wrong.any()):
        raise UserError(
            f"{name}: a scale of {float(wide[wrong][0]):.3g} does not fit fp16, which the format has: run the recipe again "
            "with this --format, which takes scales that do"
        )


def _without_zero(name: str, codes: Tensor, zero: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Groups whose zero point is 0 with every code, and the zero point, one higher: the values are the same.

    Raises:
        UserError: such a group uses the highest code.
    """
    lowest = zero == 0
    if not bool(lowest.any()):
        return codes, zero
    lowest = lowest.expand(codes.shape[0], -1)
    grouped = codes.unflatten(-1, (lowest.shape[1], -1))
    if bool((lowest & (grouped.amax(-1) == (1 << bits) - 1)).any()):
        raise UserError(
            f"{name} has a zero point of 0, which the first version of GPTQ's format does not have: run the recipe again with "
            "--format gptq"
        )
    raised = grouped + lowest.unsqueeze(-1).to(codes.dtype)
    return raised.flatten(-2), zero.expand(codes.shape[0], -1) + lowest.to(zero.dtype)
