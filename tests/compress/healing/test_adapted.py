"""Adapters: they begin where the checkpoint stands, what they compute is what is stored, and each is its formula."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compress_kernels.layouts import Dense, LowRank, PackedInteger, SumOf, check
from torch import Tensor

from compress.errors import UserError
from compress.healing.adapted import (
    AdaptedWeight,
    apart_from_adapters,
    change_parameter,
    units_of_factors,
    with_adapters,
)
from compress.healing.student import set_all_units
from compress.healing.trainables.loldu import triangles
from compress.healing.trained import TrainedWeight
from compress.healing.weights import trained_weight
from compress.recipe import registry

from .test_loop import models
from .test_registries import entry
from .test_trained import SHAPE, drawn, generator, grid

RANK = 4
ADAPTERS = [name for name in registry.TRAINABLES if hasattr(registry.find("trainable", name), "change")]
BASE = PackedInteger(2, 32, False)


def factors(layout: LowRank, left: Tensor, right: Tensor) -> dict[str, Tensor]:
    return layout.encode(
        *(_stored(one, values) for one, values in ((layout.left, left), (layout.right, right)))
    )


def _stored(layout: Any, values: Tensor) -> dict[str, Tensor]:
    if isinstance(layout, Dense):
        return {"weight": values.bfloat16()}
    scale = values.abs().amax(1, keepdim=True).clamp(min=1e-3) / 7
    return layout.encode(((values / scale).round() + 8).to(torch.int32), scale.to(layout.scale_dtype), None)


def parts(kind: str, *, zero: bool) -> tuple[Any, dict[str, Tensor]]:
    inner = Dense() if kind == "numbers" else PackedInteger(4, "channel")
    low = LowRank(RANK, inner, inner)
    left = torch.zeros(SHAPE[0], RANK) if zero else drawn(SHAPE[0], RANK, seed=2)
    layout = SumOf((low, BASE))
    return layout, layout.encode((factors(low, left, drawn(RANK, SHAPE[1], seed=3)), grid(BASE)))


def adapted(name: str, kind: str = "numbers", *, zero: bool = False, **options: Any) -> TrainedWeight:
    layout, tensors = parts(kind, zero=zero)
    one = entry("trainable", name, **options)
    kinds = apart_from_adapters(dict.fromkeys(one.suffixes(layout, SHAPE), name), layout, SHAPE, [one])
    return with_adapters(trained_weight("w", layout, SHAPE, tensors, kinds), [one])


CASES = [
    *((name, kind, True) for name in ADAPTERS for kind in ("numbers", "grid")),
    *((name, "numbers", False) for name in ADAPTERS if name != "bone"),
    *((name, "grid", zero) for name in ("factors", "nested") for zero in (False, True)),
    ("nested", "numbers", False),
]


@pytest.mark.parametrize(("name", "kind", "zero"), CASES)
def test_an_adapter_begins_at_the_checkpoint(name: str, kind: str, zero: bool) -> None:
    layout, tensors = parts(kind, zero=zero)
    weight = adapted(name, kind, zero=zero)
    assert isinstance(weight, AdaptedWeight)
    start = layout.decode(tensors, SHAPE, torch.float32)
    torch.testing.assert_close(weight.dense().detach(), start, atol=0.05, rtol=0.02)
    one = entry("trainable", name)
    assert one.numbers(layout, SHAPE) == sum(
        int((t.unit.expand_as(t.master) > 0).sum()) for t in weight.trained.values()
    )


@pytest.mark.parametrize(("name", "kind", "zero"), CASES)
def test_what_is_stored_is_what_was_computed(name: str, kind: str, zero: bool) -> None:
    weight = adapted(name, kind, zero=zero)
    before = weight.dense().detach()
    with torch.no_grad():
        for one in weight.trained.values():
            one.master.add_(0.3 * torch.randn(one.master.shape, generator=generator(3)) * one.unit)
    stored = weight.tensors()
    check(weight.layout, stored, SHAPE)
    found = weight.dense()
    torch.testing.assert_close(
        weight.layout.decode(stored, SHAPE, torch.float32), found.detach(), atol=1e-5, rtol=1e-4
    )
    assert not torch.allclose(found.detach(), before, atol=1e-3)
    found.square().sum().backward()
    assert all(
        float(one.master.grad.norm()) > 0 for one in weight.trained.values() if one.master.grad is not None
    )


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_change_of_a_dense_weight_begins_at_nothing(name: str) -> None:
    made = entry("trainable", name).change("w", drawn(*SHAPE))
    assert float(made.make().detach().abs().max()) == 0
    made.make().square().sum().backward()
    assert all(float(one.master.grad.norm()) == 0 for one in made.masters.values())  # type: ignore[union-attr]
    with torch.no_grad():
        for one in made.masters.values():
            one.master.add_(one.unit)
    made.make().square().sum().backward()
    assert all(float(one.master.grad.norm()) > 0 for one in made.masters.values())  # type: ignore[union-attr]


def test_svft_moves_coefficients_between_singular_vectors() -> None:
    weight = drawn(*SHAPE).double()
    made = entry("trainable", "svft", band=1).change("w", weight)
    core = made.masters["svft"]
    near = (torch.arange(16)[:, None] - torch.arange(16)).abs() <= 1
    assert torch.equal(core.unit > 0, near)
    with torch.no_grad():
        core.master.copy_(torch.diag(torch.linspace(1, 2, 16)))
    u, _, v = torch.linalg.svd(weight, full_matrices=False)
    wanted = u @ torch.diag(torch.linspace(1, 2, 16, dtype=torch.float64)) @ v
    made_double = made.masters["svft"].master.double()
    torch.testing.assert_close(u @ made_double @ v, wanted, atol=1e-6, rtol=1e-6)


def test_sorsa_moves_the_leading_triples_and_nothing_beside_them() -> None:
    weight = drawn(*SHAPE)
    made = entry("trainable", "sorsa", rank=3).change("w", weight)
    u, values, v = torch.linalg.svd(weight, full_matrices=False)
    with torch.no_grad():
        made.masters["values"].master.mul_(2)
    wanted = u[:, :3] * values[:3] @ v[:3]
    torch.testing.assert_close(made.make().detach(), wanted, atol=1e-4, rtol=1e-4)
    penalty = entry("penalty", "orthonormal", weight=1.0)
    masters = {one.name: one for one in made.masters.values()}
    assert float(penalty(masters).detach()) < 1e-6
    with torch.no_grad():
        made.masters["left"].master[:, 1] = made.masters["left"].master[:, 0]
    assert float(penalty(masters).detach()) == pytest.approx(
        2 / 3 / 2, rel=1e-4
    )  # one pair of three; two factors


def test_lora_adds_a_product_of_its_rank() -> None:
    weight = drawn(*SHAPE)
    made, again = (entry("trainable", "lora", rank=2).change("w", weight) for _ in range(2))
    left, right = (made.masters[side].master for side in ("left", "right"))
    assert torch.equal(right, again.masters["right"].master)
    with torch.no_grad():
        left.add_(made.masters["left"].unit * drawn(SHAPE[0], 2, seed=5).sign())
    assert int(torch.linalg.matrix_rank(made.make().detach())) == 2
    # A rate of 1 stands for a change as large as the weight.
    assert float(made.make().detach().norm() / weight.norm()) == pytest.approx(1, abs=0.3)


def test_a_factor_of_zeros_moves_as_the_weight_beside_it_is_large() -> None:
    rest, right = drawn(*SHAPE), 7 * drawn(RANK, SHAPE[1], seed=1)
    left_unit, right_unit = units_of_factors(torch.zeros(SHAPE[0], RANK), right, rest)
    assert float(right_unit) == pytest.approx(float(right.square().mean().sqrt()))
    product = left_unit * drawn(SHAPE[0], RANK, seed=2).sign() @ right
    assert float(product.norm() / rest.norm()) == pytest.approx(1, abs=0.2)
    left_unit, right_unit = units_of_factors(right.T, torch.zeros_like(right), rest)
    assert float(left_unit) == pytest.approx(float(right.square().mean().sqrt()))
    assert float(right_unit) < 1


def test_stored_factors_of_zeros_have_that_unit_too() -> None:
    layout, tensors = parts("numbers", zero=True)
    one = entry("trainable", "factors", rate=0.5)
    kinds = dict.fromkeys(one.suffixes(layout, SHAPE), "factors")
    weight = trained_weight("w", layout, SHAPE, tensors, kinds)
    set_all_units(weight, [one])
    base = BASE.decode(grid(BASE), SHAPE, torch.float32)
    left, right = (weight.trained[f"part0_{side}_weight"] for side in ("left", "right"))
    wanted = units_of_factors(left.start, right.start, base)
    assert float(left.unit) == pytest.approx(0.5 * float(wanted[0]))
    assert float(right.unit) == pytest.approx(0.5 * float(wanted[1]))


def test_nested_dropout_keeps_the_first_ranks_of_a_step_and_all_when_judged() -> None:
    weight = adapted("nested", least=0.5, whole=0.5)
    base = BASE.decode(grid(BASE), SHAPE, torch.float32)
    plain = weight.dense().detach()
    ranks = []
    for noise in range(40):
        weight.noise = noise
        now = weight.dense().detach() - base
        ranks.append(int(torch.linalg.matrix_rank(now, rtol=1e-3)))
        left, right = (factor.detach() for factor in weight.parts["part0_"].made.make())
        stored = left[:, : ranks[-1]].bfloat16().float() @ right[: ranks[-1]].bfloat16().float()
        torch.testing.assert_close(now, stored, atol=1e-4, rtol=1e-3)
        assert torch.equal(weight.dense().detach() - base, now)
    weight.noise = None
    assert torch.equal(weight.dense().detach(), plain)
    assert set(ranks) == {2, 3, RANK}
    assert 15 <= ranks.count(RANK) <= 34


def test_loldu_is_a_decomposition() -> None:
    low = drawn(16, 4, seed=1) @ drawn(4, 64, seed=2)
    lower, diagonal, upper = triangles(low, 4)
    torch.testing.assert_close(lower * diagonal @ upper, low, atol=1e-4, rtol=1e-4)
    whole = triangles(drawn(*SHAPE), 16)
    torch.testing.assert_close(whole[0] * whole[1] @ whole[2], drawn(*SHAPE), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(whole[2].diagonal(), torch.ones(16))


def test_bone_adds_the_same_block_to_every_group_of_inputs() -> None:
    weight = adapted("bone", zero=True)
    before = weight.dense().detach()
    block = drawn(16, RANK, seed=7).bfloat16().float()
    with torch.no_grad():
        next(iter(weight.trained.values())).master.copy_(block)
    torch.testing.assert_close(
        weight.dense().detach() - before, block.repeat(1, 64 // RANK), atol=1e-5, rtol=1e-5
    )
    with pytest.raises(UserError, match="'bone' begins at a low-rank part of 0"):
        adapted("bone")


def test_bone_guides_the_change_of_a_block_by_the_block() -> None:
    weight = drawn(*SHAPE)
    made = entry("trainable", "bone", size=8).change("w", weight)
    block = made.masters["bone"].master
    with torch.no_grad():
        block.copy_(drawn(2, 8, 8, seed=4))
    found = made.make().detach()
    for i in range(2):
        for j in range(8):
            rows, columns = slice(8 * i, 8 * i + 8), slice(8 * j, 8 * j + 8)
            wanted = weight[rows, columns] @ block[i] + block[i]
            torch.testing.assert_close(found[rows, columns], wanted.detach(), atol=1e-5, rtol=1e-5)
    assert entry("trainable", "bone", size=7).change("w", weight).masters["bone"].master.shape == (4, 4, 4)


def test_dropout_leaves_the_same_numbers_out_within_a_step_and_none_when_judged() -> None:
    weight = adapted("factors", dropout=0.5)
    plain = weight.dense().detach()
    draws = []
    for noise in (1, 1, 2):
        weight.noise = noise
        draws.append(weight.dense().detach())
    weight.noise = None
    assert torch.equal(weight.dense().detach(), plain)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    rest = weight.layout.decode(weight.fixed, SHAPE, torch.float32) - plain  # of rounding alone
    assert float(rest.abs().max()) < 0.05
    base = BASE.decode(grid(BASE), SHAPE, torch.float32)
    thinned = draws[0] - base
    left_out = (thinned.abs().amax(1) < 1e-6).sum() + (thinned.abs().amax(0) < 1e-6).sum()
    assert 0 < int(left_out) < sum(SHAPE)


def test_a_dense_parameter_is_read_with_its_change(tiny_model: Callable[..., Path]) -> None:
    student, _ = models(tiny_model("llama"))
    name = next(n for n, p in student.model.named_parameters() if n.endswith("q_proj.weight"))
    start = student.model.get_parameter(name).detach().clone()
    made = entry("trainable", "loldu").change(name, start)
    stored = change_parameter(student.model, name, start.bfloat16(), made)
    with torch.no_grad():
        made.masters["loldu"].master.add_(0.5)
    owner, _, leaf = name.rpartition(".")
    read = getattr(student.model.get_submodule(owner), leaf)
    assert torch.equal(read.detach(), stored().float())
    assert not torch.allclose(read.detach(), start, atol=1e-2)
