"""Rounded inputs against compressed-tensors' own fake quantization, and what a scheme refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from compress_kernels.activations import (
    INT8_PER_TOKEN,
    ActivationScheme,
    fake_quantize,
    round_inputs,
    scale_of_range,
)
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import fake_quantize as theirs
from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp

X = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 2, 64)


def arguments(scheme: ActivationScheme, **others: Any) -> QuantizationArgs:
    return QuantizationArgs(
        num_bits=scheme.bits,
        type=scheme.type,
        symmetric=scheme.symmetric,
        strategy=scheme.strategy,
        group_size=scheme.group_size,
        dynamic=scheme.dynamic,
        **others,
    )


@pytest.mark.parametrize(
    "scheme",
    [
        ActivationScheme(8, "float"),
        ActivationScheme(8, "float", strategy="tensor"),
        ActivationScheme(8, "float", strategy="group", group_size=16),
        ActivationScheme(8, symmetric=False),
        ActivationScheme(8, symmetric=False, strategy="tensor"),
    ],
    ids=lambda scheme: scheme.label,
)
def test_dynamic_rounding_is_that_of_compressed_tensors(scheme: ActivationScheme) -> None:
    args = arguments(scheme)
    scale, zero = compute_dynamic_scales_and_zp(X, args, torch.nn.Module())
    assert torch.allclose(fake_quantize(X, scheme), theirs(X, scale, zero, args), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("bits", [4, 8])
def test_mx_rounding_is_that_of_compressed_tensors(bits: int) -> None:
    scheme = ActivationScheme(bits, "float", strategy="group", group_size=32, scale_type="e8m0")
    args = arguments(scheme, scale_dtype=torch.uint8, zp_dtype=torch.uint8)
    scale, zero = compute_dynamic_scales_and_zp(X, args, torch.nn.Module())
    assert torch.equal(fake_quantize(X, scheme), theirs(X, scale, zero, args))


def test_nvfp4_rounding_is_that_of_compressed_tensors() -> None:
    scheme = ActivationScheme(4, "float", strategy="tensor_group", group_size=16)
    args = QuantizationArgs(
        num_bits=4, type="float", symmetric=True, strategy="tensor_group", group_size=16, dynamic="local",
        scale_dtype=torch.float8_e4m3fn, zp_dtype=torch.float8_e4m3fn,
    )  # fmt: skip
    whole = torch.tensor([448.0 * 6.0 / float(X.abs().max())])
    scale, zero = compute_dynamic_scales_and_zp(X, args, torch.nn.Module(), global_scale=whole)
    expected = theirs(X, scale, zero, args, global_scale=whole)
    ours = fake_quantize(X, scheme, whole)
    # Groups whose scale falls below the smallest E4M3 number differ: theirs is then an epsilon, ours that number.
    normal = (X.unflatten(-1, (-1, 16)).abs().amax(-1) * whole / 6 > 2.0**-6).repeat_interleave(16, -1)
    assert bool(normal.any())
    assert torch.allclose(ours[normal], expected[normal], rtol=1e-6)


@pytest.mark.parametrize(
    ("scheme", "zero"),
    [
        (ActivationScheme(8, strategy="tensor", dynamic=False), 0),
        (ActivationScheme(8, symmetric=False, strategy="tensor", dynamic=False), -37),
        (ActivationScheme(4, strategy="tensor", dynamic=False), 0),
        (ActivationScheme(8, "float", strategy="tensor", dynamic=False), 0),
    ],
    ids=lambda value: getattr(value, "label", str(value)),
)
def test_static_rounding_is_that_of_compressed_tensors(scheme: ActivationScheme, zero: int) -> None:
    scale, offset = torch.tensor([0.31]), torch.tensor([zero], dtype=torch.int8)
    expected = theirs(X, scale, None if scheme.symmetric else offset, arguments(scheme))
    assert torch.allclose(fake_quantize(X, scheme, scale, offset), expected, rtol=1e-6, atol=1e-7)


def test_int8_by_token_has_the_scale_of_servers() -> None:
    """vLLM's dynamic int8: max|x| / 127 (compressed-tensors' own simulation divides by 127.5)."""
    rounded = round_inputs(X, INT8_PER_TOKEN)
    assert torch.allclose(rounded.scale, X.abs().amax(-1, keepdim=True) / 127)
    assert float(rounded.values.abs().max()) == 127
    slow = torch.round(X.double() / (X.double().abs().amax(-1, keepdim=True) / 127))
    assert float((rounded.values.double() - slow).abs().max()) <= 1  # a tie may go either way
    assert float((rounded.values.double() != slow).double().mean()) < 0.01


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("symmetric", [True, False])
def test_codes_are_exact_in_half_precision(dtype: torch.dtype, symmetric: bool) -> None:
    x = X.to(dtype)
    rounded = round_inputs(x, ActivationScheme(symmetric=symmetric))
    wide = round_inputs(x.float(), ActivationScheme(symmetric=symmetric))
    assert rounded.values.dtype == dtype
    assert torch.equal(rounded.values.float(), wide.values)


def test_zeros_stay_zeros() -> None:
    for scheme in (INT8_PER_TOKEN, ActivationScheme(8, "float"), ActivationScheme(symmetric=False)):
        assert not bool(fake_quantize(torch.zeros(3, 64), scheme).any())


def test_no_tokens() -> None:
    assert fake_quantize(torch.empty(0, 64), INT8_PER_TOKEN).shape == (0, 64)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"bits": 6, "type": "float"}, "float activations have 8 bits"),
        ({"type": "float", "symmetric": False}, "no zero point"),
        ({"strategy": "group"}, "'group_size' goes with"),
        ({"group_size": 32}, "'group_size' goes with"),
        ({"dynamic": False}, "strategy 'token' is dynamic"),
        ({"strategy": "attn_head"}, "static scales"),
        ({"strategy": "tensor_group", "group_size": 32}, "NVFP4"),
        ({"scale_type": "e8m0"}, "groups of 32"),
        ({"strategy": "row"}, "there is no strategy"),
        ({"bits": 9}, "2 to 8 bits"),
    ],
)
def test_what_no_server_computes_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ActivationScheme(**settings)


def test_a_range_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        scale_of_range(INT8_PER_TOKEN, torch.tensor([-1.0]), torch.tensor([float("inf")]))


def test_a_static_scheme_needs_its_scale() -> None:
    with pytest.raises(ValueError, match="calibrated scale"):
        round_inputs(X, ActivationScheme(strategy="tensor", dynamic=False))


@pytest.mark.parametrize(
    "scheme", [INT8_PER_TOKEN, ActivationScheme(8, "float", strategy="group", group_size=128)]
)
def test_json_gives_the_scheme_back(scheme: ActivationScheme) -> None:
    assert ActivationScheme.from_json(scheme.to_json()) == scheme


def test_ties_of_e2m1_go_to_the_even_code() -> None:
    scheme = ActivationScheme(4, "float", strategy="tensor", dynamic=False)
    halves = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, -0.75, -2.5])
    expected = torch.tensor([0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0, -1.0, -2.0])
    assert torch.equal(fake_quantize(halves, scheme, torch.ones(1)), expected)
    assert torch.equal(theirs(halves, torch.ones(1), None, arguments(scheme)), expected)
