"""GGUF blocks: bytes as the package `gguf` reads them, and back."""

from __future__ import annotations

import pytest
import torch
from compress_kernels.layouts import GGUFBlocks, layout_from_json, nbytes
from compress_kernels.layouts.gguf import BLOCK_TYPES, BlockFields, block_values, group_steps
from compress_kernels.ops.table import prepare
from torch import Tensor

gguf = pytest.importorskip("gguf")
ROWS, BLOCKS = 5, 3


def fields(name: str) -> tuple[BlockFields, tuple[int, int]]:
    """Random fields of every value that a block can hold."""
    kind = BLOCK_TYPES[name]
    torch.manual_seed(kind.code)
    shape = (ROWS, BLOCKS * kind.block)
    groups = shape[1] // kind.group
    codes = torch.randint(0, kind.top + 1, shape, dtype=torch.int32)
    scale = torch.randn(ROWS, BLOCKS).half().float()
    if kind.power:
        scale = torch.ldexp(torch.ones(ROWS, BLOCKS), torch.randint(-20, 3, (ROWS, BLOCKS)))
    if not kind.scales:
        return BlockFields(
            codes, scale, torch.randn(ROWS, BLOCKS).half().float() if kind.minimum else None
        ), shape
    low, high = kind.scales
    scales = torch.randint(low, high + 1, (ROWS, groups), dtype=torch.int32)
    if not kind.minimum:
        return BlockFields(codes, scale, scales=scales), shape
    minima = torch.randint(0, kind.minima + 1, (ROWS, groups), dtype=torch.int32)
    return BlockFields(codes, scale, torch.rand(ROWS, BLOCKS).half().float(), scales, minima), shape


def dequantized(packed: Tensor, name: str, shape: tuple[int, int]) -> Tensor:
    kind = gguf.GGMLQuantizationType[name.upper()]
    return torch.from_numpy(gguf.quants.dequantize(packed.numpy(), kind)).view(shape)


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_blocks_are_read_by_the_package_gguf_to_the_last_bit(name: str) -> None:
    values, shape = fields(name)
    layout = GGUFBlocks(name)
    tensors = layout.encode(values)
    assert tensors["weight_blocks"].shape == layout.specs(shape)["weight_blocks"].shape
    dense = layout.decode(tensors, shape, torch.float32)
    assert torch.equal(dense, dequantized(tensors["weight_blocks"], name, shape))
    step, low = group_steps(layout.kind, values)
    assert torch.equal(dense, block_values(layout.kind, values.codes, step, low))


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_the_number_and_the_size_of_a_type_are_those_of_the_package_gguf(name: str) -> None:
    kind, code = BLOCK_TYPES[name], gguf.GGMLQuantizationType[name.upper()]
    assert (kind.code, (kind.block, kind.nbytes)) == (code.value, gguf.GGML_QUANT_SIZES[code])
    assert nbytes(GGUFBlocks(name), (3, 512)) == 3 * 512 * kind.bits_per_weight / 8


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_fields_come_back(name: str) -> None:
    values, shape = fields(name)
    layout = GGUFBlocks(name)
    found = layout.fields(layout.encode(values)["weight_blocks"], shape)
    for field in ("codes", "scale", "minimum", "scales", "minima"):
        first, second = getattr(values, field), getattr(found, field)
        assert (first is None and second is None) or torch.equal(first, second), field


def test_a_width_that_a_type_does_not_fit_is_named_with_the_type_that_llama_cpp_takes() -> None:
    with pytest.raises(
        ValueError, match=r"a row of 576 is no multiple of the 256 .* q4_k .*llama.cpp takes q5_0"
    ):
        GGUFBlocks("q4_k").specs((4, 576))
    with pytest.raises(ValueError, match="unknown GGUF type 'q9_k'"):
        GGUFBlocks("q9_k")


def test_the_description_of_a_layout_comes_back() -> None:
    layout = GGUFBlocks("q5_k")
    assert layout_from_json(layout.to_json()) == layout


@pytest.mark.parametrize("name", ["q4_0", "q2_k"])
def test_the_product_is_that_of_the_dense_weight(name: str) -> None:
    values, shape = fields(name)
    layout = GGUFBlocks(name)
    tensors = layout.encode(values)
    x, bias = torch.randn(2, 3, shape[1]), torch.randn(shape[0])
    found = prepare(layout, tensors, shape)(x, bias)
    expected = x.double() @ dequantized(tensors["weight_blocks"], name, shape).double().T + bias
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-3)
    with pytest.raises(ValueError, match="should be"):
        prepare(layout, {"weight_blocks": tensors["weight_blocks"][:, 1:]}, shape)
