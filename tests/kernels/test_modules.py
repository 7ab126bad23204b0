"""The layer that keeps its weight packed."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from compress_kernels.layouts import Dense, LowRank, NormalFloat4, PackedInteger, PlainInteger, SparseNM
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


@pytest.mark.parametrize("slow", [False, True])
def test_dense_layers_share_their_weight_and_compute_the_same(
    slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of few tokens and of many; where bf16 is slow of more by the kernel."""
    monkeypatch.setattr("compress_kernels.modules.bf16_is_slow", lambda: slow)
    torch.manual_seed(0)
    linear = nn.Linear(96, 33, dtype=torch.bfloat16).requires_grad_(False)
    fast = DenseLinear.of(linear)
    assert fast.weight is linear.weight
    assert fast.bias is linear.bias
    for x in (torch.randn(1, 5, 96)[:, -1:], torch.randn(3, 96), torch.randn(2, 10, 96), torch.empty(0, 96)):
        x = x.to(torch.bfloat16)
        torch.testing.assert_close(fast(x), linear(x), rtol=2e-2, atol=2e-2)
    assert fast.float()(torch.randn(2, 96)).dtype == torch.float32


def test_places_are_released_and_come_back() -> None:
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
    assert layer._released == prepared.backend.repacked(prepared.operands)
    assert bool(held["weight_indices"]) != bool(layer._released)
    assert held["weight_values"] == tensors["weight_values"].nbytes
    for name, tensor in layer.state_dict().items():
        assert torch.equal(tensor, tensors[name])
    torch.testing.assert_close(layer(x), y)
    torch.testing.assert_close(layer.to("cpu")(x), y)
    torch.testing.assert_close(copy.deepcopy(layer)(x), y)
    assert torch.equal(layer.dequantize(torch.float32), layout.decode(tensors, shape, torch.float32))


def test_words_give_the_codes_back() -> None:
    shape = (33, 96)
    for bits in (3, 5, 6, 7):
        layout = PackedInteger(bits, 32)
        tensors = layout.encode(torch.randint(0, 1 << bits, shape), torch.rand(33, 3))
        planes = triton_backend.prepare(layout, tensors, shape)
        assert torch.equal(
            triton_backend.restore(layout, planes, shape)["weight_packed"], tensors["weight_packed"]
        )


def int8_layer() -> PackedLinear:
    layout = PlainInteger(8, "channel")
    tensors = layout.encode(torch.randint(0, 256, SHAPE), torch.rand(33, 1) * 0.01)
    return PackedLinear(layout, SHAPE, tensors)


def nf4_layer() -> PackedLinear:
    layout = NormalFloat4(32)
    return PackedLinear(layout, SHAPE, layout.encode(torch.randint(0, 16, SHAPE), torch.rand(33, 3)))


def low_rank_layer() -> PackedLinear:
    layout, dense = LowRank(4), Dense()
    tensors = layout.encode(dense.encode(torch.randn(33, 4)), dense.encode(torch.randn(4, 96)))
    return PackedLinear(layout, SHAPE, tensors)


def dense_layer() -> PackedLinear:
    return PackedLinear(Dense(), SHAPE, Dense().encode(torch.randn(SHAPE)))


MAKERS = [layer, int8_layer, nf4_layer, low_rank_layer, dense_layer]


@pytest.mark.parametrize("make", MAKERS)
def test_weight_is_the_decoded_one_in_the_layers_dtype(make: Callable[[], PackedLinear]) -> None:
    torch.manual_seed(0)
    packed = make()
    packed(torch.randn(1, 96))
    expected = packed.layout.decode(packed.tensors(), SHAPE, packed.compute_dtype)
    assert packed.weight.dtype == packed.compute_dtype
    assert packed.weight.shape == SHAPE
    assert packed.weight.device == packed.device
    assert torch.equal(packed.weight.clone(), expected)
    half = packed.half()
    assert half.weight.dtype == torch.float16
    assert torch.equal(half.weight.clone(), packed.layout.decode(packed.tensors(), SHAPE, torch.float16))


@pytest.mark.parametrize("make", MAKERS)
def test_weight_is_neither_parameter_nor_state(make: Callable[[], PackedLinear]) -> None:
    torch.manual_seed(0)
    packed = make()
    assert "weight" not in dict(packed.named_parameters())
    assert set(packed.state_dict()) - {"bias"} == set(packed.layout.specs(SHAPE))
    again = make()
    again.load_state_dict(packed.state_dict())
    x = torch.randn(2, 96)
    torch.testing.assert_close(again(x), packed(x))
    torch.testing.assert_close(pickle.loads(pickle.dumps(packed))(x), packed(x))  # noqa: S301 (our own)
    with pytest.raises(TypeError, match="cannot be changed"):
        packed.weight.data += 1
    with pytest.raises(TypeError, match="not initialised"):
        packed.reset_parameters()


def test_the_dtype_of_weight_is_the_one_set_or_the_biases_or_the_scales() -> None:
    layout = PackedInteger(4, 32)
    bias = torch.zeros(33, dtype=torch.float16)
    assert PackedLinear(layout, SHAPE, device="meta").weight.dtype == torch.bfloat16
    packed = PackedLinear(layout, SHAPE, bias=bias, device="meta")
    assert packed.weight.dtype == torch.float16
    packed.compute_dtype = torch.float32
    assert packed.weight.dtype == torch.float32
    assert packed.weight.is_meta
    assert packed.weight.shape == SHAPE
    packed.stand_in = torch.empty(0)
    assert packed.weight is packed.stand_in


def test_reading_the_weight_keeps_what_was_prepared() -> None:
    torch.manual_seed(0)
    layout = SparseNM()
    mask = torch.tensor([True, False, True, False]).repeat(33, 24)
    packed = PackedLinear(layout, SHAPE, layout.encode(torch.randn(SHAPE), mask))
    prepared = packed.prepare()
    assert not packed.weight[~mask].any()
    assert packed.prepare() is prepared


def test_a_compiled_model_may_ask_for_the_weights_dtype() -> None:
    packed = nn.Sequential(layer())

    def cast(x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = packed(x.to(packed[0].weight.dtype))
        return y

    x = torch.randn(2, 96, dtype=torch.float64)
    packed(x.float())
    compiled = torch.compile(cast, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), cast(x))


def test_two_layers_train_what_lies_before_them() -> None:
    """An embedding before packed layers follows the same curve as before decoded ones."""
    torch.manual_seed(0)
    layout, square = PackedInteger(4, 32), (64, 64)
    layers = [
        PackedLinear(layout, square, layout.encode(torch.randint(0, 16, square), torch.rand(64, 2) * 0.1))
        for _ in range(2)
    ]
    start = torch.randn(16, 64)
    curves = []
    for packed in (True, False):
        embedding = nn.Parameter(start.clone())
        optimiser = torch.optim.SGD([embedding], lr=0.5)
        curve = []
        for _ in range(5):
            hidden: torch.Tensor = embedding
            for linear in layers:
                product = (
                    linear(hidden)
                    if packed
                    else nn.functional.linear(hidden, linear.dequantize(torch.float32))
                )
                hidden = torch.tanh(product)
            loss = hidden.square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            curve.append(loss.item())
        curves.append(curve)
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)
    assert curves[0][-1] < curves[0][0]


def test_a_layer_whose_weight_is_changed_in_place_becomes_dense() -> None:
    packed = layer()
    x, dense = torch.randn(2, 96), packed.dequantize(torch.float32)
    packed(x)
    with torch.no_grad(), pytest.warns(UserWarning, match="dense from here on"):
        packed.weight.div_(2)
    assert type(packed) is nn.Linear
    assert set(packed.state_dict()) == {"weight", "bias"}
    torch.testing.assert_close(packed(x), nn.functional.linear(x, dense / 2, packed.bias))
    packed.weight.mul_(4)
    torch.testing.assert_close(packed(x), nn.functional.linear(x, dense * 2, packed.bias))
