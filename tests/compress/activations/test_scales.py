"""What a static scheme stores: scales in their dtype on disk, zero points that fit them, and bad ranges."""

from __future__ import annotations

import pytest
import torch
from compress_kernels.activations import ActivationScheme, fake_quantize

from compress.activations.observers import MinMax
from compress.activations.scales import cache_scale, input_parameters
from compress.errors import UserError
from compress.score.histogram import Histogram

STATIC = ActivationScheme(strategy="tensor", dynamic=False)
SHIFTED = ActivationScheme(symmetric=False, strategy="tensor", dynamic=False)
VALUES = torch.linspace(-1.0, 3.0, 1001)


def seen(values: torch.Tensor) -> Histogram:
    histogram = Histogram()
    histogram.add(values)
    return histogram


def parameters(scheme: ActivationScheme, values: torch.Tensor = VALUES) -> dict[str, torch.Tensor]:
    return input_parameters("w", scheme, MinMax(), seen(values), torch.bfloat16)


def test_a_symmetric_scale() -> None:
    found = parameters(STATIC)
    assert set(found) == {"input_scale"}
    assert found["input_scale"].dtype == torch.bfloat16
    assert float(found["input_scale"]) == float(torch.tensor(3 / 127).bfloat16())


def test_a_zero_point_fits_the_stored_scale() -> None:
    found = parameters(SHIFTED)
    assert found["input_zero_point"].dtype == torch.int8
    rounded = fake_quantize(VALUES, SHIFTED, found["input_scale"], found["input_zero_point"])
    assert float((rounded - VALUES).abs().max()) <= 0.7 * float(found["input_scale"])


def test_nvfp4_stores_a_global_scale() -> None:
    scheme = ActivationScheme(4, "float", strategy="tensor_group", group_size=16)
    assert float(parameters(scheme)["input_global_scale"]) == pytest.approx(448 * 6 / 3)


def test_dynamic_schemes_store_nothing() -> None:
    assert parameters(ActivationScheme()) == {}


def test_an_expert_without_tokens_has_a_scale() -> None:
    found = input_parameters("w", STATIC, MinMax(), Histogram(), torch.float32)
    assert float(found["input_scale"]) == pytest.approx(1 / 127)


def test_a_range_that_is_not_finite_is_named() -> None:
    with pytest.raises(UserError, match=r"^layers.0: the range of its calibration inputs is not finite"):
        input_parameters("layers.0", STATIC, MinMax(), seen(torch.tensor([1.0, float("inf")])), torch.float32)


def test_scales_of_heads_and_of_a_layer() -> None:
    heads = [seen(torch.tensor([-1.0, 0.5])), seen(torch.tensor([4.0]))]
    by_head = ActivationScheme(8, "float", strategy="attn_head", dynamic=False)
    whole = ActivationScheme(8, "float", strategy="tensor", dynamic=False)
    found = cache_scale("k", by_head, MinMax(), heads, torch.float32)
    assert found.shape == (2, 1, 1)
    assert found.flatten().tolist() == pytest.approx([1 / 448, 4 / 448])
    assert cache_scale("k", whole, MinMax(), heads, torch.float32).tolist() == pytest.approx([4 / 448])
