"""Value types: what the formats of small floats and of GGUF blocks fix, as data. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

Element = Literal["e4m3", "e2m1"]

E2M1_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""The values of the codes 0 to 7 of E2M1; code ``8 + k`` is the negative of code k."""
E2M1_DOUBLED = tuple(int(2 * sign * value) for sign in (1, -1) for value in E2M1_MAGNITUDES)
"""E2M1's sixteen values times two, by code."""
IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""The sixteen values of IQ4_NL and IQ4_XS, by code."""


@dataclass(frozen=True)
class FloatType:
    """A format of small floats.

    Attributes:
        element: the format of an element.
        group: columns that share a scale; ``None`` where ``group_size`` of the layout says what does.
        scale: the format of the scales: E8M0 (a power of two), E4M3 (divided by a scale of the whole weight), or ``None`` for
            an ordinary dtype.
    """

    element: Element
    group: int | None = None
    scale: Literal["e8m0", "e4m3"] | None = None

    @property
    def bits(self) -> int:
        """Bits of an element."""
        return 4 if self.element == "e2m1" else 8


FLOAT_TYPES: dict[str, FloatType] = {
    "fp8": FloatType("e4m3"),
    "mxfp8": FloatType("e4m3", 32, "e8m0"),
    "mxfp4": FloatType("e2m1", 32, "e8m0"),
    "nvfp4": FloatType("e2m1", 16, "e4m3"),
}


TABLE_BITS: dict[str, tuple[int, ...]] = {"shift": (2, 3, 4, 5), "rf8": (8,)}
"""Kind of value table → the bits of a code that it has."""


@cache
def table_values(kind: str, bits: int) -> tuple[float, ...]:
    """The values of a table in rising order, the largest 1.

    ``shift`` has ``±2^−k``, k from 0 to ``2^(bits−1) − 1``, and no zero (DenseShift, arXiv:2208.09708). ``rf8`` is a sign,
    three bits of exponent and four of mantissa, all codes finite, zero once: 255 values. The paper on generalized Gaussian
    priors that names RF8 gives no layout in its abstract; this one is our choice: the scale of the group stands for the
    exponent's range.
    """
    if kind == "shift":
        positive = [2.0**-k for k in range(1 << (bits - 1))][::-1]
        return (*(-value for value in reversed(positive)), *positive)
    small = [mantissa / 16 for mantissa in range(1, 16)]
    normal = [(1 + mantissa / 16) * 2.0**exponent for exponent in range(7) for mantissa in range(16)]
    positive = [value / normal[-1] for value in (*small, *normal)]
    return (*(-value for value in reversed(positive)), 0.0, *positive)


@dataclass(frozen=True)
class BlockType:
    """A block-quantized type of ggml.

    Attributes:
        code: its number in a GGUF file (``enum ggml_type``).
        block: columns of a block, which a row has to be a multiple of.
        nbytes: bytes of a block.
        group: columns that share a step.
        top: the highest code.
        bottom: the lowest code that is written.
        zero: the code that stands for zero, in types without a minimum.
        minimum: whether there is a minimum besides the step.
        scales: lowest and highest integer scale of a sub-block; ``None`` where each group has an fp16 scale of its own.
        minima: highest integer minimum of a sub-block.
        table: value by code, where the codes are not evenly spaced.
        power: the scale is a power of two (E8M0).
        fallback: the type that llama.cpp takes for a row that is no multiple of ``block``.
    """

    code: int
    block: int
    nbytes: int
    group: int
    top: int
    zero: int = 0
    bottom: int = 0
    minimum: bool = False
    scales: tuple[int, int] | None = None
    minima: int = 0
    table: tuple[int, ...] = ()
    power: bool = False
    fallback: str | None = None

    @property
    def bits_per_weight(self) -> float:
        """Bits of a block over its columns."""
        return 8 * self.nbytes / self.block


BLOCK_TYPES: dict[str, BlockType] = {
    "q4_0": BlockType(2, 32, 18, 32, 15, zero=8),
    "q4_1": BlockType(3, 32, 20, 32, 15, minimum=True),
    "q5_0": BlockType(6, 32, 22, 32, 31, zero=16),
    "q5_1": BlockType(7, 32, 24, 32, 31, minimum=True),
    "q8_0": BlockType(8, 32, 34, 32, 255, zero=128, bottom=1),
    "q2_k": BlockType(10, 256, 84, 16, 3, minimum=True, scales=(0, 15), minima=15, fallback="q4_0"),
    "q3_k": BlockType(11, 256, 110, 16, 7, zero=4, scales=(-32, 31), fallback="q4_0"),
    "q4_k": BlockType(12, 256, 144, 32, 15, minimum=True, scales=(0, 63), minima=63, fallback="q5_0"),
    "q5_k": BlockType(13, 256, 176, 32, 31, minimum=True, scales=(0, 63), minima=63, fallback="q5_1"),
    "q6_k": BlockType(14, 256, 210, 16, 63, zero=32, scales=(-128, 127), fallback="q8_0"),
    "iq4_nl": BlockType(20, 32, 18, 32, 15, table=IQ4_VALUES),
    "iq4_xs": BlockType(23, 256, 136, 32, 15, scales=(-32, 31), table=IQ4_VALUES, fallback="iq4_nl"),
    "mxfp4": BlockType(39, 32, 17, 32, 15, table=E2M1_DOUBLED, power=True),
}
