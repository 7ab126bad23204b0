"""Weights for the kernels' correctness matrix and timings: one maker for each operator and layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from compress_kernels.layouts import (
    BLOCK_TYPES,
    AffineInteger,
    Dense,
    GGUFBlocks,
    Layout,
    LowRank,
    NormalFloat4,
    PackedFloat,
    PackedInteger,
    PlainInteger,
    SparseBitmask,
    SparseNM,
    SumOf,
)
from compress_kernels.layouts.floats import FloatGroup, rising_values
from compress_kernels.layouts.gguf import BlockFields
from torch import Tensor

Shape = tuple[int, int]
Made = tuple[Layout, dict[str, Tensor]]

TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}
"""Relative error (2-norm) allowed against the layer that holds the dequantized weight."""


def grid_weight(shape: Shape, grid: PackedInteger) -> Made:
    codes, scale, zero = grid_values(shape, grid)
    return grid, grid.encode(codes, scale, zero)


def grid_values(shape: Shape, grid: PackedInteger) -> tuple[Tensor, Tensor, Tensor | None]:
    """Random codes, scales and zeros for a grid; the scales of a symmetric one take either sign, as those of a solver do."""
    groups = 1 if isinstance(grid.group_size, str) else shape[1] // grid.group_size
    rows = 1 if grid.group_size == "tensor" else shape[0]
    codes = torch.randint(0, 1 << grid.bits, shape, dtype=torch.int32)
    zero = None if grid.symmetric else torch.randint(0, 1 << grid.bits, (rows, groups))
    scale = torch.rand(rows, groups) * 0.02 + 0.001
    if grid.symmetric:
        scale = torch.where(torch.rand(rows, groups) < 0.5, -scale, scale)
    return codes, scale, zero


def sparse_weight(
    shape: Shape, pattern: str, grid: PackedInteger | None = None, density: float = 0.5
) -> Made:
    """``pattern``: "bitmask" or "2:4"."""
    layout: SparseBitmask | SparseNM
    if pattern == "bitmask":
        mask = torch.rand(shape) < density
        layout = SparseBitmask(int(mask.sum()), grid)
    else:
        chosen = torch.rand(shape[0], shape[1] // 4, 4).argsort(-1)[..., :2]
        mask = torch.zeros(shape[0], shape[1] // 4, 4, dtype=torch.bool).scatter_(2, chosen, True).view(shape)
        layout = SparseNM(2, 4, grid)
    if grid is None:
        return layout, layout.encode(torch.randn(shape) * 0.02, mask)
    return layout, layout.encode_codes(*grid_values(shape, grid), mask)


def low_rank_weight(shape: Shape, rank: int) -> Made:
    layout, dense = LowRank(rank), Dense()
    left, right = torch.randn(shape[0], rank) * 0.1, torch.randn(rank, shape[1]) * 0.1
    return layout, layout.encode(dense.encode(left), dense.encode(right))


def int8_weight(shape: Shape) -> Made:
    layout = PlainInteger(8, "channel")
    return layout, layout.encode(torch.randint(0, 256, shape), torch.rand(shape[0], 1) * 0.02 + 0.001)


def nf4_weight(shape: Shape, block: int = 64) -> Made:
    layout = NormalFloat4(block)
    return layout, layout.encode(
        torch.randint(0, 16, shape), torch.rand(shape[0], shape[1] // block) * 0.1 + 0.01
    )


def gguf_weight(name: str, shape: Shape) -> Made:
    """Random blocks of a ggml type, such as ``q4_k``."""
    layout = GGUFBlocks(name)
    kind = layout.kind
    blocks, groups = shape[1] // kind.block, shape[1] // kind.group
    powers = torch.ldexp(torch.ones(shape[0], blocks), torch.randint(-8, -3, (shape[0], blocks)))
    scale = powers if kind.power else torch.rand(shape[0], blocks) * 0.02 + 0.001
    low, high = kind.scales or (0, 0)
    fields = BlockFields(
        torch.randint(kind.bottom, kind.top + 1, shape, dtype=torch.int32),
        scale,
        torch.rand(shape[0], blocks) * 0.1 - 0.05 if kind.minimum else None,
        torch.randint(low, high + 1, (shape[0], groups)) if kind.scales else None,
        torch.randint(0, kind.minima + 1, (shape[0], groups)) if kind.minima else None,
    )
    return layout, layout.encode(fields)


def float_weight(shape: Shape, type: str, group: FloatGroup | None = None) -> Made:
    """Random codes and scales of a small-float type."""
    layout = PackedFloat.of(type, group)
    codes = torch.randint(0, len(rising_values(layout.kind.element)), shape)
    grid = layout.scale_grid(shape)
    if layout.kind.scale == "e8m0":
        return layout, layout.encode(codes, torch.exp2(torch.randint(-9, -4, grid).float()))
    if layout.kind.scale == "e4m3":
        scale = (torch.rand(grid) * 400 + 10).to(torch.float8_e4m3fn).float()
        return layout, layout.encode(codes, scale, torch.tensor([4000.0], device=scale.device))
    scale = (torch.rand(grid) * 0.002 + 0.0001).to(layout.scale_dtype).float()
    return layout, layout.encode(codes, scale)


def affine_weight(shape: Shape, bits: int, group: int) -> Made:
    """Random codes, scales and biases of MLX's layout."""
    layout = AffineInteger(bits, group)
    codes = torch.randint(0, 1 << bits, shape, dtype=torch.int32)
    scale = torch.rand(shape[0], shape[1] // group) * 0.02 + 0.001
    return layout, layout.encode(codes, scale, -scale * (1 << (bits - 1)) + torch.randn(scale.shape) * 0.01)


def corrected_weight(shape: Shape, rank: int) -> Made:
    base, low = grid_weight(shape, PackedInteger(4, 32)), low_rank_weight(shape, rank)
    layout = SumOf((base[0], low[0]))
    return layout, layout.encode((base[1], low[1]))


@dataclass(frozen=True)
class Case:
    name: str
    make: Callable[[], Made]
    shape: Shape
    triton: bool = True  # there is a Triton kernel
    loose: bool = False  # activations are rounded too: compared with the reference, not with the dense layer


def matrix() -> Iterator[Case]:
    """Every operator over widths, groupings and odd shapes, small enough for the interpreter."""
    for shape in ((33, 96), (64, 256)):
        for bits in (2, 3, 4, 8):
            for group in (32, 64, 128, "channel", "tensor"):
                # One shape has the odd sizes, the other the groups that need a longer row.
                if (isinstance(group, int) and shape[1] % group) or (shape[1] == 256) != (group in (64, 128)):
                    continue
                for symmetric in (True, False):
                    grid = PackedInteger(bits, group, symmetric)  # type: ignore[arg-type]
                    yield Case(
                        f"{grid.name} {bits} {group} {symmetric}",
                        lambda g=grid, s=shape: grid_weight(s, g),
                        shape,
                    )
        for pattern in ("bitmask", "2:4"):
            yield Case(pattern, lambda p=pattern, s=shape: sparse_weight(s, p), shape)
            for bits, symmetric in ((4, True), (3, False)):
                grid = PackedInteger(bits, 32, symmetric)
                yield Case(
                    f"{pattern} {bits}", lambda p=pattern, s=shape, g=grid: sparse_weight(s, p, g), shape
                )
        yield Case("low rank", lambda s=shape: low_rank_weight(s, 16), shape)
        for rank in (8, 21):
            yield Case("w4 + low rank", lambda s=shape, r=rank: corrected_weight(s, r), shape)
        yield Case("nf4", lambda s=shape: nf4_weight(s, 32), shape, triton=False)
        for name, kind in BLOCK_TYPES.items():
            if shape[1] % kind.block == 0:
                yield Case(f"gguf {name}", lambda n=name, s=shape: gguf_weight(n, s), shape, triton=False)
        yield Case("int8", lambda s=shape: int8_weight(s), shape, loose=True)
    for type in ("mxfp4", "nvfp4", "mxfp8", "fp8"):
        yield Case(f"float {type}", lambda t=type: float_weight((33, 96), t), (33, 96))
    yield Case("float fp8 block", lambda: float_weight((130, 256), "fp8", "block"), (130, 256))
    for bits in (3, 4):
        yield Case(f"affine {bits}", lambda b=bits: affine_weight((33, 96), b, 32), (33, 96))
