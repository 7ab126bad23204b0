"""Trained weights: what they decode to is what they store, and their gradients are those of the dense weight."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from compress_kernels.activations import ActivationScheme
from compress_kernels.layouts import (
    AffineInteger,
    Dense,
    Layout,
    LowRank,
    NormalFloat4,
    PackedInteger,
    PlainInteger,
    SparseBitmask,
    SparseNM,
    SumOf,
    check,
)
from compress_kernels.modules import PackedLinear
from torch import Tensor

from compress.healing.bitwise import TrainedBits
from compress.healing.modules import TrainedLinear
from compress.healing.sparse import TrainedSparse
from compress.healing.trainables.bits import Bits
from compress.healing.trainables.codes import Codes
from compress.healing.trainables.factors import Factors
from compress.healing.trainables.scales import Scales
from compress.healing.trainables.values import Values
from compress.healing.trained import (
    TrainedWeight,
    rounded_to,
    rounded_to_grid,
    trained_tensor,
)
from compress.healing.weights import trained_weight

SHAPE = (16, 64)
ENTRIES = (Scales(), Values(), Factors())


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed))


def grid(layout: PackedInteger) -> dict[str, Tensor]:
    codes = torch.randint(1 << layout.bits, SHAPE, generator=generator(), dtype=torch.int32)
    scale = drawn(16, 2).abs() + 0.5
    zero = (
        None if layout.symmetric else torch.randint(1, 3, (16, 2), generator=generator(1), dtype=torch.int32)
    )
    return layout.encode(codes, scale, zero)


def cases() -> dict[str, tuple[Layout, dict[str, Tensor]]]:
    mask = torch.rand(SHAPE, generator=generator()) > 0.6
    pattern = torch.tensor([True, False, True, False]).repeat(16, 16)
    asymmetric, symmetric = PackedInteger(2, 32, False), PackedInteger(3, 32)
    factors = LowRank(4, Dense(), Dense())
    low = factors.encode({"weight": drawn(16, 4).bfloat16()}, {"weight": drawn(4, 64, seed=1).bfloat16()})
    nm, sparse = SparseNM(2, 4), SparseBitmask(int(mask.sum()))
    nf4, plain, affine = NormalFloat4(64), PlainInteger(8), AffineInteger(4, 32)
    codes = torch.randint(16, SHAPE, generator=generator(), dtype=torch.int32)
    both = SumOf((factors, asymmetric))
    return {
        "asymmetric": (asymmetric, grid(asymmetric)),
        "symmetric": (symmetric, grid(symmetric)),
        "plain": (plain, plain.encode(codes, drawn(16, 1).abs())),
        "affine": (affine, affine.encode(codes, drawn(16, 2).abs(), drawn(16, 2))),
        "nf4": (nf4, nf4.encode(codes, drawn(16, 1).abs())),
        "bitmask": (sparse, sparse.encode(drawn(*SHAPE), mask)),
        "n:m": (nm, nm.encode(drawn(*SHAPE), pattern)),
        "low rank": (factors, low),
        "sum": (both, both.encode((low, grid(asymmetric)))),
    }


def trained(name: str, *entries: Any) -> TrainedWeight:
    layout, tensors = cases()[name]
    kinds = {s: e.name for e in entries or ENTRIES for s in e.suffixes(layout, SHAPE)}
    return trained_weight("w", layout, SHAPE, tensors, kinds)


@pytest.mark.parametrize("name", cases())
def test_the_start_is_what_is_stored(name: str) -> None:
    layout, tensors = cases()[name]
    weight = trained(name)
    assert weight.trained
    torch.testing.assert_close(weight.dense().detach(), layout.decode(tensors, SHAPE, torch.float32))
    for suffix, tensor in weight.tensors().items():
        assert torch.equal(tensor, tensors[suffix]), suffix


@pytest.mark.parametrize("name", cases())
def test_what_is_stored_is_what_was_computed(name: str) -> None:
    """After a change of the masters, the stored tensors decode to the forward's weight, in the layout's dtypes and shapes."""
    weight = trained(name)
    with torch.no_grad():
        for one in weight.trained.values():
            one.master.add_(0.37 * torch.randn(one.master.shape, generator=generator(3)) * one.unit)
    stored = weight.tensors()
    check(weight.layout, stored, SHAPE)
    torch.testing.assert_close(weight.layout.decode(stored, SHAPE, torch.float32), weight.dense().detach())


@pytest.mark.parametrize("name", cases())
def test_gradients_are_those_of_the_formula(name: str) -> None:
    """A step along the gradient changes a linear function as the gradient says, but for what rounding and clipping take."""
    weight = trained(name)
    target = drawn(*SHAPE, seed=5)
    masters = [one.master for one in weight.trained.values()]
    loss = (weight.dense() * target).sum()
    gradients = torch.autograd.grad(loss, masters)
    assert all(float(gradient.norm()) > 0 for gradient in gradients)
    for one, gradient in zip(weight.trained.values(), gradients, strict=True):
        wanted = _numeric(weight, one.master, gradient, target)
        torch.testing.assert_close(float(gradient.double().square().sum()), wanted, rtol=0.2, atol=1e-3)


def _numeric(weight: TrainedWeight, master: Tensor, direction: Tensor, target: Tensor) -> float:
    """The change of the function along ``direction``, by a step so large that rounding averages out."""
    values, size = [], 1.0 * float(master.detach().abs().max()) / float(direction.abs().max())
    start = master.detach().clone()
    for sign in (1, -1):
        with torch.no_grad():
            master.copy_(start + sign * size * direction)
        values.append(float((weight.dense().detach().double() * target).sum()))
    with torch.no_grad():
        master.copy_(start)
    return (values[0] - values[1]) / (2 * size)


def test_zero_points_stay_whole_and_in_range() -> None:
    weight = trained("asymmetric")
    with torch.no_grad():
        weight.trained["weight_zero_point"].master.add_(100.0)
    layout = weight.layout
    assert isinstance(layout, PackedInteger)
    assert int(layout.parameters(weight.tensors(), SHAPE)[1].max()) == 3


def test_a_form_without_a_zero_point_of_0_gets_none() -> None:
    layout, tensors = cases()["asymmetric"]
    kinds = dict.fromkeys(Scales().suffixes(layout, SHAPE), "scales")
    weight = trained_weight("w", layout, SHAPE, tensors, kinds, lowest_zero=1)
    with torch.no_grad():
        weight.trained["weight_zero_point"].master.sub_(100.0)
    assert isinstance(layout, PackedInteger)
    assert int(layout.parameters(weight.tensors(), SHAPE)[1].min()) == 1


@pytest.mark.parametrize("name", ["asymmetric", "symmetric"])
def test_codes_move_with_their_weights(name: str) -> None:
    weight = trained(name, Codes(), Scales())
    layout, tensors = cases()[name]
    assert isinstance(layout, PackedInteger)
    before = layout.codes(tensors, SHAPE)[0]
    assert torch.equal(weight.tensors()["weight_packed"], tensors["weight_packed"])
    with torch.no_grad():
        scale = layout.parameters(tensors, SHAPE)[0].float().repeat_interleave(32, 1)
        weight.trained["weight_packed"].master.add_(scale)
    after = layout.codes(weight.tensors(), SHAPE)[0]
    assert torch.equal(after, (before + 1).clamp(max=(1 << layout.bits) - 1))
    torch.testing.assert_close(layout.decode(weight.tensors(), SHAPE, torch.float32), weight.dense().detach())


def test_codes_begin_at_the_dense_weight_within_their_cells() -> None:
    layout, tensors = cases()["asymmetric"]
    assert isinstance(layout, PackedInteger)
    stored = layout.decode(tensors, SHAPE, torch.float32)
    step = layout.parameters(tensors, SHAPE)[0].float().repeat_interleave(32, 1)
    dense = stored + step * torch.linspace(-2, 2, stored.numel()).view(SHAPE)
    kinds = dict.fromkeys(Codes().suffixes(layout, SHAPE), "codes")
    weight = trained_weight("w", layout, SHAPE, tensors, kinds, before=dense)
    assert torch.equal(weight.tensors()["weight_packed"], tensors["weight_packed"])
    one = weight.trained["weight_packed"]
    near = (dense - stored).abs() < 0.44 * step
    torch.testing.assert_close(one.master.detach()[near], dense[near])
    torch.testing.assert_close(
        (one.master.detach() - stored).abs()[~near], 0.45 * step[~near], rtol=0.05, atol=0
    )
    assert torch.equal(one.unit, step)


@pytest.mark.parametrize("rows", [16, 1])
def test_gradients_of_a_rounded_weight_are_those_of_lsq_plus(rows: int) -> None:
    scale = drawn(rows, 2).abs() + 0.5
    zero = torch.randint(4, (rows, 2), generator=generator(1)).float()
    latent, weights = 3 * drawn(*SHAPE, seed=2), drawn(*SHAPE, seed=3)
    for one in (latent, scale, zero):
        one.requires_grad_()
    (rounded_to_grid(latent, scale, zero, 3) * weights).sum().backward()
    with torch.no_grad():
        step, centre = (one.expand(16, 2).repeat_interleave(32, 1) for one in (scale, zero))
        place = latent / step + centre
        inside = (place >= 0) & (place <= 3)
        of_scale = weights * (place.round().clamp(0, 3) - centre - torch.where(inside, latent / step, 0))
        of_zero = torch.where(inside, 0, -step * weights)
        by_group = [one.view(16, 2, 32).sum(-1).sum_to_size(rows, 2) for one in (of_scale, of_zero)]
    assert inside.any()
    assert not inside.all()
    torch.testing.assert_close(latent.grad, weights)
    torch.testing.assert_close(scale.grad, by_group[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(zero.grad, by_group[1], rtol=1e-4, atol=1e-4)


def test_nothing_is_trained_of_what_has_nothing() -> None:
    layout, _ = cases()["bitmask"]
    assert not Scales().suffixes(layout, SHAPE)
    assert not Factors().suffixes(layout, SHAPE)
    assert not Codes().suffixes(layout, SHAPE)


def test_rounding_passes_gradients_through() -> None:
    values = torch.tensor([1.003, -0.7], requires_grad=True)
    rounded = rounded_to(values, torch.bfloat16)
    assert torch.equal(rounded.detach(), values.detach().bfloat16().float())
    rounded.sum().backward()
    assert torch.equal(values.grad, torch.ones(2))  # type: ignore[arg-type]


def test_units() -> None:
    scales = trained_tensor("s", "scales", torch.tensor([0.5, -2.0, 0.0]), elementwise=True)
    size = (4.25 / 3) ** 0.5
    assert scales.unit.tolist() == pytest.approx([0.5, 2.0, size])
    assert float(trained_tensor("v", "values", torch.zeros(3)).unit) == 1.0
    assert float(trained_tensor("v", "values", torch.tensor([3.0, 4.0])).unit) == pytest.approx(12.5**0.5)


@pytest.mark.parametrize("name", ["asymmetric", "bitmask", "sum"])
def test_a_trained_layer_is_a_linear_layer_with_that_weight(name: str) -> None:
    layout, tensors = cases()[name]
    bias = drawn(16, seed=7)
    packed = PackedLinear(layout, SHAPE, dict(tensors), bias, backend="reference")
    packed.compute_dtype = torch.float32
    weight = trained(name)
    layer = TrainedLinear(packed, weight)
    masters = [one.master for one in weight.trained.values()]
    x = drawn(2, 5, 64, seed=8).requires_grad_()
    ours = torch.autograd.grad(layer(x).square().sum(), [x, *masters])
    plain = torch.nn.functional.linear(x, weight.dense(), bias)
    theirs = torch.autograd.grad(plain.square().sum(), [x, *masters])
    torch.testing.assert_close(layer(x), plain)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer.weight, weight.dense().detach())


@pytest.mark.parametrize("static", [False, True])
def test_a_trained_layer_rounds_its_inputs_as_the_packed_one_does(static: bool) -> None:
    """With the gradient passed straight through, to the input and to the masters."""
    layout, tensors = cases()["symmetric"]
    scheme = ActivationScheme(8, "int", True, "tensor" if static else "token", dynamic=not static)
    stored = {"input_scale": torch.full((1,), 0.05)} if static else {}
    packed = PackedLinear(layout, SHAPE, {**tensors, **stored}, None, backend="reference", activations=scheme)
    packed.compute_dtype = torch.float32
    layer = TrainedLinear(packed, trained("symmetric"))
    x = drawn(5, 64, seed=8).requires_grad_()
    torch.testing.assert_close(layer(x), packed(x), rtol=1e-4, atol=1e-4)
    (ours,), (theirs,) = (torch.autograd.grad(one(x).sum(), x) for one in (layer, packed))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    layer(x).square().sum().backward()
    assert all(float(master.grad.norm()) > 0 for master in layer.masters)


def options(**chosen: Any) -> TrainedWeight:
    layout, tensors = cases()["asymmetric"]
    return trained_weight("w", layout, SHAPE, tensors, {"weight_packed": "codes"}, codes=Codes(**chosen))


def test_scales_follow_the_magnitude_of_their_group() -> None:
    weight = options(statsq=True)
    layout, tensors = cases()["asymmetric"]
    torch.testing.assert_close(weight.dense().detach(), layout.decode(tensors, SHAPE, torch.float32))
    with torch.no_grad():
        weight.trained["weight_packed"].master[:, :32].mul_(2)
    stored = weight.tensors()
    torch.testing.assert_close(layout.decode(stored, SHAPE, torch.float32), weight.dense().detach())
    scales = [layout.parameters(one, SHAPE)[0].float() for one in (stored, tensors)]
    torch.testing.assert_close(scales[0][:, 0], 2 * scales[1][:, 0], rtol=1e-2, atol=0)
    assert torch.equal(scales[0][:, 1], scales[1][:, 1])


def test_codes_far_from_a_boundary_are_held_towards_the_end() -> None:
    weight = options(freeze=0.2, calm=0.5)
    master, scale = weight.trained["weight_packed"].master, weight.layout.parameters(weight.fixed, SHAPE)[0]  # type: ignore[attr-defined]
    shift = torch.linspace(-0.45, 0.45, SHAPE[1]).repeat(SHAPE[0], 1)
    with torch.no_grad():
        master.add_(shift * scale.float().repeat_interleave(32, 1))
    for done, held in ((0.4, False), (0.6, True)):
        weight.done = done
        (gradient,) = torch.autograd.grad(weight.dense().sum(), master)
        assert bool((gradient[shift.abs() < 0.29] == 0).all()) == held
        assert float(gradient[shift.abs() > 0.31].abs().max()) > 0


def test_bits_are_codes_and_move_one_by_one() -> None:
    layout, tensors = cases()["asymmetric"]
    assert isinstance(layout, PackedInteger)
    kinds = {"weight_packed": "bits", "weight_scale": "scales"}
    weight = TrainedBits("w", layout, SHAPE, tensors, kinds, bits=Bits(margin=0.1, top=1))
    before = layout.decode(tensors, SHAPE, torch.float32)
    torch.testing.assert_close(weight.dense().detach(), before)
    assert torch.equal(weight.tensors()["weight_packed"], tensors["weight_packed"])
    one, scale = weight.trained["weight_packed"], layout.parameters(tensors, SHAPE)[0].float()
    assert one.unit[..., 0].any().item() is False
    assert bool((one.unit[..., 1] == 1).all())
    (gradient,) = torch.autograd.grad(weight.dense().sum(), one.master)
    torch.testing.assert_close(gradient[..., 1], 2 * scale.repeat_interleave(32, 1))
    torch.testing.assert_close(gradient[..., 0], scale.repeat_interleave(32, 1))
    with torch.no_grad():
        one.master[..., 1] *= -1  # every highest bit turns
    after = layout.codes(weight.tensors(), SHAPE)[0]
    assert torch.equal(after, layout.codes(tensors, SHAPE)[0] ^ 2)
    torch.testing.assert_close(layout.decode(weight.tensors(), SHAPE, torch.float32), weight.dense().detach())


def test_elastic_codes_take_turns_on_coarser_grids_and_are_stored_on_their_own() -> None:
    layout, tensors = cases()["symmetric"]  # 3 bits
    assert isinstance(layout, PackedInteger)
    kinds = dict.fromkeys(Codes().suffixes(layout, SHAPE), "codes")
    weight = trained_weight("w", layout, SHAPE, tensors, kinds, codes=Codes(elastic=(2, 1, 4)))
    own = weight.dense().detach()
    torch.testing.assert_close(own, layout.decode(tensors, SHAPE, torch.float32))
    values = []
    for step in range(6):
        weight.noise = step
        dense = weight.dense().detach().view(16, 2, 32)
        values.append(max(len(group.unique()) for group in dense.flatten(0, 1)))
    assert values == [8, 4, 2, 8, 4, 2]  # 4 bits are more than it has
    weight.noise = 1
    scale = layout.parameters(tensors, SHAPE)[0].float().repeat_interleave(32, 1)
    assert float(((weight.dense().detach() - own).abs() / scale).max()) <= 7 / 3 + 1e-4
    weight.noise = None
    assert torch.equal(weight.dense().detach(), own)


@pytest.mark.parametrize("pattern", ["bitmask", "2:4", "2:4 with fewer"])
def test_kept_values_are_what_the_layout_decodes_and_get_its_gradient(pattern: str) -> None:
    weight, away = drawn(*SHAPE), drawn(*SHAPE, seed=1)
    if pattern == "bitmask":
        mask = drawn(*SHAPE, seed=2) < 0.3
        layout: SparseBitmask | SparseNM = SparseBitmask(int(mask.sum()), dtype=torch.float32)
    else:
        mask = torch.zeros(SHAPE, dtype=torch.bool)
        mask[:, 1::4] = True
        if pattern == "2:4":
            mask[::2, 2::4] = True
        layout = SparseNM(dtype=torch.float32)
    tensors = layout.encode(weight, mask)
    made = trained_weight("w", layout, SHAPE, tensors, {"weight_values": "values"})
    assert isinstance(made, TrainedSparse)
    assert torch.equal(made.dense().detach(), layout.decode(tensors, SHAPE, torch.float32))
    (made.dense() * away).sum().backward()
    values = tensors["weight_values"].clone().requires_grad_()
    (layout.decode({**tensors, "weight_values": values}, SHAPE, torch.float32) * away).sum().backward()
    assert torch.equal(made.trained["weight_values"].master.grad, values.grad)
