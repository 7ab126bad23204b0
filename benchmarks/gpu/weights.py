"""Random weights of every layout that an operator reads, for the correctness matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from compress_kernels.layouts import (
    BLOCK_TYPES,
    FLOAT_TYPES,
    Columns,
    Dense,
    Layout,
    PackedInteger,
    PlainInteger,
    SumOf,
)
from compress_kernels.layouts.floats import FloatGroup
from torch import Tensor

from benchmarks.speed.cases import (
    Made,
    Shape,
    affine_weight,
    corrected_weight,
    float_weight,
    gguf_weight,
    grid_weight,
    int8_weight,
    low_rank_weight,
    nf4_weight,
    sparse_weight,
)

ODD, WIDE, LONG = (33, 96), (257, 384), (130, 1664)
"""Odd sizes; sizes that no tile divides; a row that is split over programs unevenly."""


@dataclass(frozen=True)
class Weight:
    """A kind of weight to multiply with; ``loose``: its inputs are rounded too."""

    name: str
    shape: Shape
    make: Callable[[], Made]
    loose: bool = False


def grouped_int8_weight(shape: Shape, group: int) -> Made:
    """int8 with a scale by group."""
    layout = PlainInteger(8, group)
    return layout, layout.encode(
        torch.randint(0, 256, shape), torch.rand(shape[0], shape[1] // group) * 0.02 + 0.001
    )


def column_weight(shape: Shape, count: int) -> Made:
    """A 4-bit base with some columns kept dense."""
    base, dense = grid_weight(shape, PackedInteger(4, 32)), Dense()
    some = Columns(count, dense)
    index = torch.randperm(shape[1])[:count].sort().values
    columns = some.encode(index, dense.encode(torch.randn(shape[0], count) * 0.1))
    layout = SumOf((base[0], some))
    return layout, layout.encode((base[1], columns))


def weights() -> Iterator[Weight]:
    """Every layout, width and grouping."""
    yield from _integers()
    yield from _sparse()
    for shape in (ODD, WIDE, LONG):
        yield _weight("int8 channel", shape, int8_weight, loose=True)
        yield _weight("low rank", shape, lambda s: low_rank_weight(s, 16))
        yield _weight("nf4", shape, lambda s: nf4_weight(s, 32))
    yield _weight("int8 groups of 32", WIDE, lambda s: grouped_int8_weight(s, 32), loose=True)
    for rank in (8, 21):
        yield _weight(f"w4 + rank {rank}", WIDE, lambda s, r=rank: corrected_weight(s, r))
    yield _weight("w4 + columns", WIDE, lambda s: column_weight(s, 7))
    for bits in (2, 3, 4, 5, 6, 8):
        yield _weight(f"affine {bits}", WIDE, lambda s, b=bits: affine_weight(s, b, 64))
    for name in BLOCK_TYPES:
        for shape in ((33, 256), (130, 1792)):
            yield _weight(f"gguf {name}", shape, lambda s, n=name: gguf_weight(n, s))
    for type in FLOAT_TYPES:
        groups: tuple[FloatGroup | None, ...] = (None,)
        if type == "fp8":
            groups = ("channel", "tensor", "block")
        for group in groups:
            for shape in (WIDE, LONG) if group == "block" else (ODD, WIDE, LONG):
                yield _weight(
                    f"{type} {group or ''}".strip(), shape, lambda s, t=type, g=group: float_weight(s, t, g)
                )


def _integers() -> Iterator[Weight]:
    for bits in range(2, 9):
        for symmetric in (True, False):
            for group, shape in ((32, ODD), (64, WIDE), (128, LONG), ("channel", WIDE), ("tensor", ODD)):
                if group in (64, "tensor") and bits not in (3, 4):
                    continue
                grid = PackedInteger(bits, group, symmetric)  # type: ignore[arg-type]
                name = f"w{bits} {group}{'' if symmetric else ' asymmetric'}"
                yield _weight(name, shape, lambda s, g=grid: grid_weight(s, g))


def _sparse() -> Iterator[Weight]:
    for pattern in ("bitmask", "2:4"):
        for shape in (ODD, WIDE, LONG):
            yield _weight(pattern, shape, lambda s, p=pattern: sparse_weight(s, p))
        for bits, symmetric in ((2, True), (3, False), (4, True), (8, False)):
            grid = PackedInteger(bits, 32, symmetric)
            yield _weight(f"{pattern} w{bits}", WIDE, lambda s, p=pattern, g=grid: sparse_weight(s, p, g))


def _weight(name: str, shape: Shape, make: Callable[[Shape], Made], *, loose: bool = False) -> Weight:
    return Weight(f"{name} {shape[0]}x{shape[1]}", shape, lambda: make(shape), loose)


def exact(layout: Layout, tensors: dict[str, Tensor], shape: Shape) -> Tensor:
    """The dense weight in float64, from tensors on the CPU."""
    return layout.decode(tensors, shape, torch.float64)
