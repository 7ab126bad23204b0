"""Words: the order of codes, what the kernels do not read, and products by decoded pieces."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from compress_kernels.layouts import PackedFloat
from compress_kernels.ops.float_matmul import triton_backend
from compress_kernels.ops.words import launch
from compress_kernels.ops.words.order import WORDS, chunk_columns, from_planes, plane_bits, to_planes


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("columns", [40, 64, 384, 1000])
def test_planes_give_the_codes_back(bits: int, columns: int) -> None:
    codes = torch.randint(0, 1 << bits, (5, columns), dtype=torch.uint8)
    planes = to_planes(codes, bits)
    assert torch.equal(from_planes(planes, bits, columns), codes)
    filled = -(-columns // chunk_columns(bits)) * chunk_columns(bits)
    assert sum(plane.nbytes for plane in planes) == 5 * filled * bits // 8


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_code_i_of_word_j_is_column_16_i_plus_j(bits: int) -> None:
    per = 32 // plane_bits(bits)[0]
    codes = torch.randint(0, 1 << bits, (1, 2 * chunk_columns(bits)), dtype=torch.uint8)
    first = to_planes(codes, bits)[0][0].to(torch.int64) & 0xFFFFFFFF
    width = plane_bits(bits)[0]
    for chunk, i, j in ((0, 0, 0), (0, per - 1, 3), (1, 1, 15)):
        code = int(first[chunk * WORDS + j] >> (i * width)) & ((1 << width) - 1)
        assert code == int(codes[0, chunk * chunk_columns(bits) + WORDS * i + j]) & ((1 << width) - 1)


def test_long_strips_are_brought_into_order_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = torch.randint(0, 8, (7, 300), dtype=torch.uint8)
    whole = to_planes(codes, 3)
    monkeypatch.setattr("compress_kernels.ops.words.order._STRIP", 600)
    assert all(torch.equal(a, b) for a, b in zip(to_planes(codes, 3), whole, strict=True))


def test_groups_that_do_not_fit_are_named() -> None:
    assert launch.unreadable(128) is None
    assert launch.unreadable(0) is None
    assert launch.unreadable("channel") is None
    assert "not 24" in str(launch.unreadable(24))


@pytest.mark.parametrize("extra", ["", "bias", "residual", "rank"])
def test_a_product_by_pieces_is_the_product(monkeypatch: pytest.MonkeyPatch, extra: str) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(4, 20), torch.randn(11, 20)
    bias = torch.randn(11) if extra == "bias" else None
    residual = torch.randn(4, 11) if extra == "residual" else None
    inner, left = (torch.randn(4, 3), torch.randn(11, 3)) if extra == "rank" else (None, None)
    asked: list[slice] = []

    def rows(part: slice) -> torch.Tensor:
        asked.append(part)
        return weight[part]

    monkeypatch.setattr(launch, "PIECE", 100)
    got = launch.dense_product(x, rows, 11, inner, left, bias, residual, torch.float32)
    expected = F.linear(x, weight)
    for added in (bias, residual, None if inner is None or left is None else inner @ left.T):
        expected = expected if added is None else expected + added
    torch.testing.assert_close(got, expected)
    assert [(part.start, part.stop) for part in asked] == [(0, 5), (5, 10), (10, 11)]


def test_codes_of_nan_take_the_kernel_that_knows_them() -> None:
    layout = PackedFloat("fp8", "channel")
    codes = torch.randint(0, 253, (4, 64))
    tensors = layout.encode(codes, torch.rand(4, 1))
    assert triton_backend.prepare(layout, tensors, (4, 64)).kind == launch.E4M3
    tensors["weight"].view(torch.uint8)[1, 2] = 0xFF
    operands = triton_backend.prepare(layout, tensors, (4, 64))
    assert operands.kind == launch.E4M3_OR_NAN
    back = triton_backend.restore(layout, operands, (4, 64))["weight"]
    assert torch.equal(back.view(torch.uint8), tensors["weight"].view(torch.uint8))


def test_nested_scales_are_read_as_octets() -> None:
    layout = PackedFloat("nvfp4", 16)
    scale = torch.ones(4, 2).to(torch.float8_e4m3fn).float()
    tensors = layout.encode(torch.randint(0, 15, (4, 32)), scale, torch.tensor([2.0]))
    operands = triton_backend.prepare(layout, tensors, (4, 32))
    assert operands.scale.dtype == torch.uint8
    assert operands.outer is not None
    assert (operands.group, operands.scale_kind) == (16, launch.NESTED)
    back = triton_backend.restore(layout, operands, (4, 32))["weight_packed"]
    assert torch.equal(back, tensors["weight_packed"])
