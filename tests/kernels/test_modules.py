"""The layer that keeps its weight packed."""

from __future__ import annotations

import copy

import torch
from compress_kernels.layouts import PackedInteger, SparseNM
from compress_kernels.modules import DenseLinear, PackedLinear
from compress_kernels.ops.packed_matmul import triton_backend
from torch import nn

SHAPE = (33, 96)


def layer(bias: bool = True) -> PackedLinear:
    layout = PackedInteger(4, 32, scale_dtype=torch.float32)
    tensors = layout.encode(torch.randint(0, 16, SHAPE), torch.rand(33, 3) * 0.1)
    return PackedLinear(layout, SHAPE, tensors, torch.randn(33) if bias else None)


def test_like_the_dense_layer() -> None:
    packed = layer()
    dense = nn.functional.linear
    x = torch.randn(2, 5, 96)
    torch.testing.assert_close(packed(x), dense(x, packed.dequantize(torch.float32), packed.bias))


def test_state_dict_has_the_names_on_disk() -> None:
    packed = layer()
    assert set(packed.state_dict()) == {"weight_packed", "weight_scale", "weight_shape", "bias"}
    empty = PackedLinear(packed.layout, SHAPE, bias=torch.empty(33), device="meta")
    empty.load_state_dict(packed.state_dict(), assign=True)
    x = torch.randn(3, 96)
    torch.testing.assert_close(empty(x), packed(x))


def test_loading_replaces_what_was_prepared() -> None:
    first, second = layer(), layer()
    x = torch.randn(3, 96)
    first(x)
    first.load_state_dict(second.state_dict())
    torch.testing.assert_close(first(x), second(x))


def test_casts_leave_packed_tensors_alone() -> None:
    packed = nn.Sequential(layer())
    before = packed[0].weight_scale.clone()
    packed.to(torch.bfloat16).half()
    assert packed[0].weight_scale.dtype == torch.float32
    assert torch.equal(packed[0].weight_scale, before)
    assert packed[0].bias.dtype == torch.float16
    assert packed(torch.randn(1, 96, dtype=torch.float16)).dtype == torch.float16


def test_copies_and_repr() -> None:
    packed = layer(bias=False)
    packed(torch.randn(1, 96))
    again = copy.deepcopy(packed)
    torch.testing.assert_close(again(torch.ones(1, 96)), packed(torch.ones(1, 96)))
    assert "out=33" in repr(packed)


def test_dense_layers_share_their_weight_and_compute_the_same() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(96, 33, dtype=torch.bfloat16).requires_grad_(False)
    fast = DenseLinear.of(linear)
    assert fast.weight is linear.weight
    assert fast.bias is linear.bias
    for x in (torch.randn(1, 5, 96)[:, -1:], torch.randn(3, 96), torch.randn(20, 96), torch.empty(0, 96)):
        x = x.to(torch.bfloat16)
        torch.testing.assert_close(fast(x), linear(x), rtol=2e-2, atol=2e-2)
    assert fast.float()(torch.randn(2, 96)).dtype == torch.float32


def test_places_are_let_go_and_come_back() -> None:
    torch.manual_seed(0)
    shape, layout = (33, 96), SparseNM()
    chosen = torch.rand(33, 24, 4).argsort(-1)[..., :2]
    mask = torch.zeros(33, 24, 4, dtype=torch.bool).scatter_(2, chosen, True).view(shape)
    tensors = layout.encode(torch.randn(shape), mask)
    layer = PackedLinear(layout, shape, tensors)
    x = torch.randn(2, 96)
    y = layer(x)
    held = {name: buffer.nbytes for name, buffer in layer.named_buffers()}
    prepared = layer.prepare()
    assert layer._let_go == prepared.backend.repacked(prepared.operands)
    assert bool(held["weight_indices"]) != bool(layer._let_go)
    assert held["weight_values"] == tensors["weight_values"].nbytes
    for name, tensor in layer.state_dict().items():
        assert torch.equal(tensor, tensors[name])
    torch.testing.assert_close(layer(x), y)
    torch.testing.assert_close(layer.to("cpu")(x), y)
    torch.testing.assert_close(copy.deepcopy(layer)(x), y)
    assert torch.equal(layer.dequantize(torch.float32), layout.decode(tensors, shape, torch.float32))


def test_planes_give_the_codes_back() -> None:
    shape = (33, 96)
    for bits in (3, 5, 6, 7):
        layout = PackedInteger(bits, 32)
        tensors = layout.encode(torch.randint(0, 1 << bits, shape), torch.rand(33, 3))
        planes = triton_backend.prepare(layout, tensors, shape)
        assert torch.equal(
            triton_backend.restore(layout, planes, shape)["weight_packed"], tensors["weight_packed"]
        )


def test_weight_is_decoded_in_the_dtype_of_the_computation() -> None:
    layout = PackedInteger(4, 32, True, torch.bfloat16)
    codes = torch.randint(0, 16, (8, 64), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    scale, zero = torch.full((8, 2), 0.5), torch.full((8, 2), 8, dtype=torch.int32)
    linear = PackedLinear(layout, (8, 64), layout.encode(codes, scale, zero))
    expected = 0.5 * (codes - 8).float()
    assert linear.weight.dtype == torch.bfloat16
    assert torch.equal(linear.weight.float(), expected)
    linear.compute_dtype = torch.float16
    linear(torch.ones(1, 64, dtype=torch.float16))  # made ready, and perhaps repacked
    assert linear.weight.dtype == torch.float16
    assert torch.equal(linear.float().weight, expected)


def test_weight_on_meta_has_a_shape_and_no_values() -> None:
    linear = PackedLinear(PackedInteger(4, 32, True, torch.bfloat16), (8, 64), device="meta")
    assert linear.weight.is_meta
    assert linear.weight.shape == (8, 64)
    linear.stand_in = torch.empty(0)
    assert linear.weight is linear.stand_in
