"""Inputs that are rotated before they are rounded: the rotation, its inverse, and the layer that multiplies the result."""

from __future__ import annotations

import pytest
import torch
from compress_kernels.activations import (
    INT8_PER_TOKEN,
    ActivationScheme,
    fake_quantize,
    hadamard_blocks,
    rotate_inputs,
    round_inputs,
)
from compress_kernels.layouts import PackedInteger, PlainInteger
from compress_kernels.modules import PackedLinear

ROTATED = ActivationScheme(4, hadamard=8)


def _sylvester(order: int) -> torch.Tensor:
    matrix = torch.ones(1, 1)
    while len(matrix) < order:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix


@pytest.mark.parametrize("order", [2, 4, 8, 32, 128, 512])
def test_blocks_are_multiplied_by_sylvesters_matrix(order: int) -> None:
    x = torch.randn(3, 2 * order)
    matrix = _sylvester(order) / order**0.5
    expected = (x.view(3, 2, order) @ matrix).view(3, -1)
    torch.testing.assert_close(hadamard_blocks(x, order), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(hadamard_blocks(hadamard_blocks(x, order), order), x, rtol=1e-4, atol=1e-5)


def test_a_block_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="blocks of 16 do not divide 24"):
        hadamard_blocks(torch.zeros(1, 24), 16)


def test_values_are_rounded_in_the_other_basis() -> None:
    x = torch.randn(5, 16)
    rotated = hadamard_blocks(x, 8)
    codes = round_inputs(x, ROTATED)
    plain = round_inputs(rotated, ROTATED.unrotated)
    assert torch.equal(codes.values, plain.values)
    assert torch.equal(codes.scale, plain.scale)
    expected = hadamard_blocks(fake_quantize(rotated, ROTATED.unrotated), 8)
    torch.testing.assert_close(fake_quantize(x, ROTATED), expected)
    assert torch.equal(rotate_inputs(x, ROTATED.unrotated), x)


def test_an_outlier_costs_the_others_less() -> None:
    x = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    x[:, 3] = 40
    plain, rotated = ActivationScheme(4), ActivationScheme(4, hadamard=128)
    errors = [float((fake_quantize(x, scheme) - x).square().mean()) for scheme in (plain, rotated)]
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize("bits", [4, 8])
def test_a_layer_multiplies_rotated_codes_by_its_rotated_weight(bits: int) -> None:
    generator = torch.Generator().manual_seed(1)
    weight, x = torch.randn(8, 32, generator=generator), torch.randn(4, 32, generator=generator)
    scheme = ActivationScheme(bits, hadamard=32)
    layout = PlainInteger(8, "channel", torch.float32)
    rotated = hadamard_blocks(weight, 32)
    scale = rotated.abs().amax(1, keepdim=True) / 127
    codes = (rotated / scale).round().to(torch.int8)
    module = PackedLinear(
        layout, (8, 32), {"weight": codes, "weight_scale": scale}, activations=scheme, bias=torch.zeros(8)
    )
    found = module(x)
    expected = fake_quantize(x, scheme) @ hadamard_blocks(codes.float() * scale, 32).T
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert module._multiplies_integers == (bits == 8)
    # Straight through: the gradient is that of the weight in the inputs' own basis.
    given = x.clone().requires_grad_(True)
    module(given).sum().backward()
    assert given.grad is not None
    torch.testing.assert_close(
        given.grad, hadamard_blocks(codes.float() * scale, 32).sum(0).expand(4, -1), rtol=1e-2, atol=1e-2
    )


def test_schemes_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="power of two, not 12"):
        ActivationScheme(hadamard=12)
    with pytest.raises(ValueError, match="rotated inputs have dynamic scales"):
        ActivationScheme(strategy="tensor", dynamic=False, hadamard=8)


def test_plain_data_of_a_scheme() -> None:
    assert "hadamard" not in INT8_PER_TOKEN.to_json()
    assert ActivationScheme.from_json(ROTATED.to_json()) == ROTATED
    assert ActivationScheme.from_json(INT8_PER_TOKEN.to_json()) == INT8_PER_TOKEN
    assert ROTATED.label == "int4 per token, rotated in blocks of 8"


def test_packed_words_take_rotated_inputs_too() -> None:
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(2))
    layout = PackedInteger(8, 16, True, torch.float32)
    rotated = hadamard_blocks(weight, 16)
    scale = rotated.view(8, 2, 16).abs().amax(-1) / 127
    codes = ((rotated.view(8, 2, 16) / scale.unsqueeze(-1)).round() + 128).view(8, 32).to(torch.int32)
    tensors = layout.encode(codes, scale, torch.full_like(scale, 128, dtype=torch.int32))
    x = torch.randn(4, 32)
    module = PackedLinear(layout, (8, 32), tensors, activations=ActivationScheme(8, hadamard=16))
    module.compute_dtype = torch.float32
    torch.testing.assert_close(module(x), x @ weight.T, rtol=0.05, atol=0.1)
