"""From the layouts of other structures to GGUF's blocks without a second rounding."""

from __future__ import annotations

import torch
from compress_kernels.layouts import Dense, GGUFBlocks, Layout, PackedFloat, PackedInteger
from compress_kernels.layouts.gguf import BlockFields
from compress_kernels.layouts.integer import group_count

from compress.errors import UserError
from compress.structures.base import CompressedWeight

_SYMMETRIC = {2: "q4_0", 3: "q4_0", 4: "q4_0", 5: "q5_0", 6: "q8_0", 7: "q8_0", 8: "q8_0"}
_ASYMMETRIC = {2: "q4_1", 3: "q4_1", 4: "q4_1", 5: "q5_1"}


def block_type_of(layout: Layout, shape: tuple[int, int]) -> str | None:
    """The GGUF type that holds every value of a layout, or ``None`` where a dense type has to."""
    if isinstance(layout, GGUFBlocks):
        return layout.type
    if isinstance(layout, PackedFloat) and layout.type == "mxfp4":
        return layout.type
    if not isinstance(layout, PackedInteger) or shape[1] % 32:
        return None
    if (shape[1] // group_count(layout.group_size, shape[1])) % 32:
        return None
    return (_SYMMETRIC if layout.symmetric else _ASYMMETRIC).get(layout.bits)


def carried(packed: CompressedWeight, layout: Layout) -> CompressedWeight:
    """``packed`` in GGUF's blocks or dense; its codes stay what they are.

    Raises:
        UserError: a scale is too large for the fp16 of a block.
    """
    if packed.layout == layout:
        return packed
    if isinstance(layout, Dense):
        return CompressedWeight(layout, packed.shape, layout.encode(packed.dense(layout.dtype)))
    assert isinstance(layout, GGUFBlocks)
    if isinstance(packed.layout, PackedFloat):
        return CompressedWeight(layout, packed.shape, layout.encode(_microscaled(packed)))
    assert isinstance(packed.layout, PackedInteger)
    source, kind = packed.layout, layout.kind
    codes, scale, zero = source.codes(packed.tensors, packed.shape)
    blocks = packed.shape[1] // kind.block
    scale = scale.float().expand(packed.shape[0], -1)
    zero = zero.to(torch.int32).expand(packed.shape[0], -1)
    each = blocks // scale.shape[1]
    scale, zero = scale.repeat_interleave(each, 1), zero.repeat_interleave(each, 1)
    if float(scale.abs().max()) > torch.finfo(torch.float16).max:
        raise UserError(
            f"a scale of {float(scale.max()):.3g} is too large for GGUF's fp16: quantize to a GGUF type"
        )
    if kind.minimum:
        fields = BlockFields(codes, scale, -(zero.float() * scale))
    else:
        fields = BlockFields(codes + (kind.zero - (1 << (source.bits - 1))), scale)
    return CompressedWeight(layout, packed.shape, layout.encode(fields))


def _microscaled(packed: CompressedWeight) -> BlockFields:
    """MXFP4 as ggml's blocks have it: the same codes of E2M1; its table is of twice the values, so that scales are halved."""
    assert isinstance(packed.layout, PackedFloat)
    codes = packed.layout.stored_codes(packed.tensors)
    return BlockFields(codes, packed.layout.scales(packed.tensors, packed.shape) / 2)
