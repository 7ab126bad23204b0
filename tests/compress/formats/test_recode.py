"""Codes, scales and zero points in another layout: the same values, or a sentence."""

from __future__ import annotations

import pytest
import torch
from compress_kernels.layouts import AffineInteger, AWQInteger, GPTQInteger, Layout, PackedInteger

from compress.errors import UserError
from compress.formats.recode import recoded
from compress.structures.base import CompressedWeight

SHAPE = (32, 128)


def packed(
    bits: int = 4,
    symmetric: bool = False,
    *,
    zero: tuple[int, int] = (1, 15),
    codes: tuple[int, int] = (0, 16),
    scale: float = 0.01,
) -> CompressedWeight:
    generator = torch.Generator().manual_seed(bits)
    layout = PackedInteger(bits, 64, symmetric)
    drawn = torch.randint(*codes, SHAPE, generator=generator).clamp_max((1 << bits) - 1)
    zeros = torch.randint(zero[0], zero[1] + 1, (32, 2), generator=generator).clamp_max((1 << bits) - 1)
    scales = (torch.rand(32, 2, generator=generator) + 0.5) * scale
    return CompressedWeight(layout, SHAPE, layout.encode(drawn, scales, zeros))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(
    ("bits", "layout"), [(4, AWQInteger(64)), *((b, GPTQInteger(b, 64)) for b in (2, 3, 4, 8))], ids=str
)
def test_not_one_value_changes(bits: int, symmetric: bool, layout: Layout) -> None:
    before = packed(bits, symmetric)
    after = recoded("w", before, layout)
    assert after.layout == layout
    assert torch.equal(after.dense(torch.float32), before.dense(torch.float32))


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_a_bias_is_a_zero_point_times_its_scale(bits: int) -> None:
    symmetric = recoded("w", packed(bits, True), AffineInteger(bits, 32))
    assert torch.equal(symmetric.dense(torch.float32), packed(bits, True).dense(torch.float32))
    before = packed(bits)
    after = recoded("w", before, AffineInteger(bits, 64))
    codes, scale, zero = before.layout.codes(before.tensors, SHAPE)  # type: ignore[attr-defined]
    found = after.layout.codes(after.tensors, SHAPE)  # type: ignore[attr-defined]
    assert torch.equal(found[0], codes)
    assert torch.equal(found[1], scale)
    # One rounding to bf16, half of 2^-7 of the bias at most.
    assert bool(((found[2] + zero * scale.float()).abs() <= 2**-8 * zero * scale.float()).all())


def test_a_zero_point_of_0_moves_with_its_codes() -> None:
    before = packed(zero=(0, 1), codes=(0, 15))
    after = recoded("w", before, GPTQInteger(4, 64))
    assert int(after.layout.codes(after.tensors, SHAPE)[2].min()) == 1  # type: ignore[attr-defined]
    assert torch.equal(after.dense(torch.float32), before.dense(torch.float32))
    with pytest.raises(UserError, match=r"blocks\.0\.w has a zero point of 0"):
        recoded("blocks.0.w", packed(zero=(0, 1)), GPTQInteger(4, 64))
    assert torch.equal(
        recoded("w", packed(zero=(0, 1)), AWQInteger(64)).dense(torch.float32),
        packed(zero=(0, 1)).dense(torch.float32),
    )


@pytest.mark.parametrize("scale", [1e6, 1e-9, float("nan")])
def test_scales_that_fp16_does_not_hold(scale: float) -> None:
    with pytest.raises(UserError, match=r"blocks\.0\.w: a scale of .* does not fit fp16"):
        recoded("blocks.0.w", packed(scale=scale), AWQInteger(64))


def test_what_is_there_already_is_left() -> None:
    layout = AffineInteger(4, 32)
    one = CompressedWeight(
        layout, SHAPE, layout.encode(torch.zeros(SHAPE), torch.ones(32, 4), torch.ones(32, 4))
    )
    assert recoded("w", one, layout) is one
