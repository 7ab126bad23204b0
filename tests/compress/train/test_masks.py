"""Rules of masks: every entry keeps its contract, and each is its formula."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import compress
from compress.errors import UserError
from compress.linalg.generalized_gaussian import exponent, scale_of
from compress.planning.methods import build
from compress.recipe import registry
from compress.recipe.section import Method
from compress.train.masks.auto import Thresholded
from compress.train.masks.base import largest
from compress.train.masks.gg import slope
from compress.train.masks.groups import block_of
from compress.train.masks.hyper import pull
from compress.train.masks.lq import half_thresholded
from compress.train.masks.random import densities
from compress.train.pretrain import TrainSettings, train
from compress.train.sparse import SparseTraining, linear_layers

SPARSITY, STEPS = 0.5, 8


def entry(name: str, **options: Any) -> Any:
    return build("masks", Method(name=name, options=options))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.SiLU(), nn.Linear(16, 8))


def trained(name: str, **options: Any) -> tuple[SparseTraining, nn.Module, list[dict[str, Tensor]]]:
    """A short training, and the weights behind every step."""
    model, seen = network(), []
    sparse = SparseTraining(model, entry(name, **options), SPARSITY, STEPS, seed=0)
    x = torch.randn(32, 12, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        (model(x) - x[:, :8]).square().mean().backward()
        optimizer.step()
        if sparse.after_step(step, 0.1):
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        seen.append({key: weight.clone() for key, weight in sparse.weights.items()})
    return sparse, model, seen


@pytest.mark.parametrize("name", registry.MASKS)
def test_a_rule_ends_at_the_share_of_zeros_and_does_so_again(name: str) -> None:
    sparse, model, seen = trained(name)
    total = sum(weight.numel() for weight in seen[-1].values())
    zeros = sum(int((weight == 0).sum()) for weight in seen[-1].values())
    assert zeros >= SPARSITY * total - 1
    assert all(type(layer) is nn.Linear for layer in linear_layers(model).values())
    assert sparse.masks is not None
    settled = {key: weight != 0 for key, weight in seen[sparse.moving].items()}
    for key, weight in seen[-1].items():
        assert bool((weight[~sparse.masks[key]] == 0).all())
        assert bool((settled[key] <= sparse.masks[key]).all())
        assert torch.equal(weight, trained(name)[2][-1][key])


OPTIONS = ("settled", "share", "decay", "weight", "strength", "back", "annealing")
OUT_OF_RANGE = [
    (name, option)
    for name in registry.MASKS
    for option in OPTIONS
    if option in registry.find("masks", name).__dataclass_fields__
]


@pytest.mark.parametrize(("name", "option"), OUT_OF_RANGE)
def test_an_option_out_of_range_is_refused(name: str, option: str) -> None:
    with pytest.raises(UserError, match=f"masks '{name}'"):
        entry(name, **{option: -1.0})


def after(name: str, start: Tensor, *, done: float = 0.5, **options: Any) -> Tensor:
    changed = start.clone()
    rule = entry(name, **options)
    rule.after_step({"w": changed}, {}, sparsity=0.5, done=done, rate=0.01)
    return changed


WEIGHT = torch.tensor([[1.0, -0.2, 3.0, 0.4], [0.1, -2.0, 0.3, 4.0]])
SMALL = torch.tensor([[0, 1, 0, 1], [1, 0, 1, 0]], dtype=torch.bool)


def test_small_weights_alone_shrink() -> None:
    assert torch.equal(~largest(WEIGHT, 0.5), SMALL)
    torch.testing.assert_close(
        after("soft-shrink", WEIGHT, share=0.1), torch.where(SMALL, 0.9 * WEIGHT, WEIGHT)
    )
    strength = 0.01 * 0.1 * 100  # rate · decay · √(1 · 10⁴)
    torch.testing.assert_close(
        after("irrelevant", WEIGHT), torch.where(SMALL, (1 - strength) * WEIGHT, WEIGHT)
    )
    assert bool((after("irrelevant", WEIGHT, done=1.0, most=1e6)[SMALL] == 0).all())
    rows = torch.tensor([[True], [False]])  # the second row is the longer one
    torch.testing.assert_close(
        after("groups", WEIGHT, strength=0.25), torch.where(rows, WEIGHT / 1.25, WEIGHT)
    )


def test_groups_are_rows_columns_or_blocks() -> None:
    columns = torch.tensor([[False, True, True, True]])  # the first is the shortest
    moved = entry("groups", of="columns", strength=0.25)._kept({"w": WEIGHT}, 0.25)
    assert torch.equal(moved["w"], columns)
    names = ("m.0.up", "m.0.down", "m.1.up", "m.1.down", "other")
    weights = {
        name: torch.full((2, 3), float(size)) for name, size in zip(names, (1, 9, 5, 6, 0), strict=True)
    }
    rule = entry("groups", of="blocks", strength=1.0)
    rule.begin(weights, 0.5, torch.Generator())
    rule.after_step(weights, {}, sparsity=0.5, done=0.5, rate=0.1)
    assert [float(weight[0, 0]) for weight in weights.values()] == [1, 9, 2.5, 3, 0]
    masks = rule.settle(weights, {}, 0.5)
    assert [bool(mask.all()) for mask in masks.values()] == [True, True, False, False, True]
    assert all(mask.shape == (2, 3) for mask in masks.values())
    assert block_of("model.layers.3.mlp.up_proj") == "model.layers.3"
    assert block_of("h.11") == "h.11"
    with pytest.raises(UserError, match="in no numbered blocks"):
        rule.begin({"up": WEIGHT, "down": WEIGHT}, 0.5, torch.Generator())


def test_gg_is_the_gradient_of_the_rate_of_its_weights() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 64, generator=generator).double() ** 3
    nu = exponent(weight)
    alpha = scale_of(weight, nu)
    w = weight.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(((w.abs() / alpha + 0.01) ** nu).sum() * alpha**2, w)
    assert nu < 1
    torch.testing.assert_close(slope(weight.abs()), gradient.abs())
    moved = after("gg", weight, done=1.0, weight=0.1, growth=10.0)
    torch.testing.assert_close(moved, (weight - 0.01 * gradient) * (moved != 0))
    assert 0 < int((moved == 0).sum()) < weight.numel()
    assert torch.equal(after("gg", torch.zeros(2, 2)), torch.zeros(2, 2))


def test_hyper_is_the_gradient_of_its_loss_as_a_proximal_step() -> None:
    w = WEIGHT.double().requires_grad_()
    cut = WEIGHT.abs().flatten().sort().values[3].double()
    bent = torch.tanh(0.6585 / cut * w.abs())
    loss = (w.abs() * bent.sum() / bent.sum().detach() - w.abs()).sum()
    (gradient,) = torch.autograd.grad(loss, w)
    torch.testing.assert_close(pull(WEIGHT.double().abs(), 0.5), gradient.abs())
    moved = after("hyper", WEIGHT, done=1.0, weight=0.1, growth=10.0)
    torch.testing.assert_close(moved, (WEIGHT - 0.01 * gradient.float()) * (moved != 0))
    assert bool((after("hyper", WEIGHT, weight=1e6) * WEIGHT >= 0).all())


def test_erdos_renyi_densities_keep_the_total() -> None:
    shapes = {"a": (8, 8), "b": (64, 16), "c": (2, 2)}
    found = densities(shapes, 0.2)
    sizes = {name: out * inputs for name, (out, inputs) in shapes.items()}
    assert sum(found[name] * sizes[name] for name in shapes) == pytest.approx(0.2 * sum(sizes.values()))
    assert found["c"] == 1.0
    assert found["a"] / found["b"] == pytest.approx((16 / 64) / (80 / 1024))


def test_a_ticket_goes_back_to_its_first_weights() -> None:
    sparse, _, seen = trained("rewind")
    first = {key: layer.weight.detach() for key, layer in linear_layers(network()).items()}
    assert sparse.masks is not None
    for key, weight in seen[sparse.moving - 1].items():
        assert torch.equal(weight, first[key] * sparse.masks[key])


def test_thresholds_are_learned_and_gradients_below_them_fade() -> None:
    one = Thresholded(0.0)  # 0.5
    weight = torch.tensor([[2.0, 0.25]], requires_grad=True)
    one.annealed = 0.3
    one(weight).sum().backward()
    assert one(weight).tolist() == [[1.5, 0.0]]
    assert weight.grad.tolist() == [[1.0, pytest.approx(0.3)]]  # type: ignore[union-attr]
    assert float(one.s.grad) == pytest.approx(-1.3 * 0.25)  # type: ignore[arg-type]


def test_half_thresholding_is_the_least_of_its_objective() -> None:
    weight, threshold = torch.linspace(-2, 2, 41).double(), torch.tensor(0.72).double()
    found = half_thresholded(weight, threshold)
    strength = (4 * threshold / 54 ** (1 / 3)) ** 1.5
    places = torch.linspace(-2.5, 2.5, 20001).double().unsqueeze(1)
    least = places[((places - weight).square() + strength * places.abs().sqrt()).argmin(0)].flatten()
    torch.testing.assert_close(found, least, atol=3e-4, rtol=0)
    assert bool((found[weight.abs() < 0.71] == 0).all())


def test_the_powers_below_one_spare_large_weights() -> None:
    moved = after("lq", WEIGHT, done=1.0)
    assert bool((moved[SMALL] == 0).all())
    assert float((moved - WEIGHT)[0, 2].abs()) < float((moved - WEIGHT)[0, 0].abs()) < 0.4
    torch.testing.assert_close(after("lq", WEIGHT, done=0.0), WEIGHT)
    sigma = 0.5 * 0.4  # the cut is at 0.4
    wanted = WEIGHT * (1 - 0.05 * torch.exp(-0.5 * (WEIGHT / sigma) ** 2))
    torch.testing.assert_close(after("l0", WEIGHT), wanted)


@pytest.mark.parametrize("by", ["update", "random"])
def test_a_mask_drops_its_smallest_and_grows_others(by: str) -> None:
    rule = entry("regrow", every=2, share=0.5, by=by, ratios="uniform")
    weights = {"w": torch.randn(8, 16, generator=torch.Generator().manual_seed(0))}
    state = rule.begin(weights, 0.75, torch.Generator().manual_seed(1))
    first = state["w"].clone()
    assert torch.equal(weights["w"] != 0, first)
    update = torch.linspace(0.001, 0.002, 128).view(8, 16)
    for step in (1, 2):
        weights["w"] += update
        before = weights["w"].clone()
        rule.after_step(weights, state, sparsity=0.75, done=step / 100, rate=0.1)
    mask = state["w"]
    assert int(mask.sum()) == int(first.sum()) == 32
    dropped, grown = first & ~mask, mask & ~first
    assert int(dropped.sum()) == int(grown.sum()) == 16
    assert float(before.abs()[dropped].max()) <= float(before.abs()[first & mask].min())
    assert bool((weights["w"][grown] == 0).all())
    if by == "update":
        assert float(update[grown].min()) >= float(update[~first & ~mask].max())
    assert rule.settle(weights, state, 0.75).keys() == {"w"}


def test_a_jackpot_moves_its_mask_and_no_weight() -> None:
    model = network()
    first = {name: layer.weight.detach().clone() for name, layer in linear_layers(model).items()}
    sparse = SparseTraining(model, entry("jackpot", scale=0.05), SPARSITY, STEPS, seed=0)
    x = torch.randn(32, 12, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=0.05)
    for step in range(1, sparse.moving + 1):
        optimizer.zero_grad()
        (model(x) - x[:, :8]).square().mean().backward()
        optimizer.step()
        sparse.after_step(step, 0.05)
    for name, weight in sparse.weights.items():
        kept = weight != 0
        assert torch.equal(weight, first[name] * kept)
        assert int(kept.sum()) == weight.numel() // 2
        assert not torch.equal(kept, largest(first[name], SPARSITY))


def test_drawn_masks_keep_two_of_four_and_learn_which() -> None:
    layer = nn.Linear(4, 1, bias=False)
    nn.init.ones_(layer.weight)
    rule = entry("gumbel", hot=2.0)
    rule.prepare({"l": layer}, 0.5)
    optimizer = torch.optim.Adam([p for p in layer.parameters() if p.ndim == 3], lr=0.2)
    wanted = torch.tensor([[0.0, 1.0, 0.0, 1.0]])
    for step in range(1, 61):
        optimizer.zero_grad()
        (layer.weight - wanted).square().sum().backward()
        optimizer.step()
        rule.after_step({}, {}, sparsity=0.5, done=step / 60, rate=0.1)
    layer.eval()
    torch.testing.assert_close(layer.weight.detach(), wanted, atol=0.05, rtol=0)
    rule.finish({"l": layer})
    assert torch.equal(layer.weight.detach(), wanted)


@pytest.mark.parametrize(
    ("width", "sparsity", "sentence"),
    [(8, 0.6, "keep 1, 2 or 3 of 4 weights"), (6, 0.5, "multiple of 4")],
)
def test_drawn_masks_refuse_what_has_no_groups_of_four(width: int, sparsity: float, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        entry("gumbel").prepare({"l": nn.Linear(width, 2)}, sparsity)


FEW = {"tokens": 2048, "batch": 4, "length": 32, "held_out": 4, "every": 8, "rate": 3e-3}


def test_a_sparse_model_keeps_its_zeros_and_is_packed_on_them(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog, and every weight is accounted for. " * 120)
    settings = TrainSettings(
        method="sparse", sparsity=0.5, masks={"name": "soft-shrink", "share": 0.2}, **FEW
    )
    result = train(tiny_model("llama"), tmp_path / "out", data=str(text), settings=settings)
    assert all(share == pytest.approx(0.5, abs=0.01) for share in result.zeros.values())
    recipe = {
        "name": "pack",
        "steps": [
            {
                "targets": ["linear"],
                "prune": {"sparsity": 0.5, "scope": "layer"},
                "score": "magnitude",
                "solver": "nearest",
            }
        ],
    }
    compress.compress(tmp_path / "out", compress.Recipe.parse(recipe), tmp_path / "packed")
    tokens = torch.arange(3, 19).view(2, 8)
    with torch.no_grad():
        ours, theirs = (compress.load(tmp_path / one)(tokens).logits.float() for one in ("out", "packed"))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"method": "sparse", "sparsity": 1.0}, "sparsity is a share of zeros above 0 and below 1"),
        ({"method": "sparse", "masks": "softshrink"}, "did you mean 'soft-shrink'"),
        ({"method": "lost", "from_weights": True}, "'lost' begins at random weights"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        TrainSettings(**settings)
