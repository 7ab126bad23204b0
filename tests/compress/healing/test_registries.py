"""Every entry of every registry of healing keeps its contract, and every loss is its formula in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from compress.errors import UserError
from compress.healing.losses.base import Positions
from compress.healing.objective import Objective
from compress.healing.optimizers.adamw8 import dynamic_tree, from_bytes, in_a_byte
from compress.healing.rules import check_penalties
from compress.healing.trained import Trained, trained_tensor
from compress.planning.methods import build
from compress.recipe import registry
from compress.recipe.section import Method

VOCABULARY, COUNT = 17, 24


def entry(kind: str, name: str, /, **options: Any) -> Any:
    return build(kind, Method(name=name, options=options))


ON_LOGITS = [name for name in registry.LOSSES if not hasattr(registry.find("loss", name), "of_states")]
"""The others are tested with the models' insides (`test_inner.py`)."""


def positions(seed: int = 0, spread: float = 1.0) -> Positions:
    generator = torch.Generator().manual_seed(seed)
    teacher = 2 * torch.randn(COUNT, VOCABULARY, generator=generator, dtype=torch.float64)
    student = teacher + spread * torch.randn(COUNT, VOCABULARY, generator=generator, dtype=torch.float64)
    following = torch.randint(VOCABULARY, (COUNT,), generator=generator)
    following[-1] = -1
    return Positions(student.requires_grad_(), teacher, following)


def probabilities(at: Positions, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Teacher's and student's, by the definition of a softmax."""
    p, q = ((logits / temperature).exp() for logits in (at.teacher, at.student))
    return p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)


def chosen(values: Tensor, at: Positions) -> Tensor:
    known = [
        values[i, y] if y >= 0 else torch.zeros((), dtype=values.dtype) for i, y in enumerate(at.following)
    ]
    return torch.stack(known)


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p / q).log()).sum(-1)


def reference(name: str, at: Positions) -> Tensor:
    """The formulas, written out."""
    p, q = probabilities(at)
    middle = 0.5 * (p + q)
    entropy_p, entropy_q = -(p * p.log()).sum(-1), -(q * q.log()).sum(-1)
    first = torch.where(entropy_q < entropy_p, 2.0, 1.0)
    formulas = {
        "kl": lambda: kl(p, q),
        "reverse-kl": lambda: kl(q, p),
        "js": lambda: 0.5 * kl(p, middle) + 0.5 * kl(q, middle),
        "alpha": lambda: torch.maximum((q * (q / p - 1)).sum(-1) / 2, kl(p, q)),
        "bd": lambda: (first * kl(p, q) + (3 - first) * kl(q, p)) / 3,
        "f": lambda: 0.5 * (p - q).abs().sum(-1),
        "logits": lambda: 0.5 * (chosen(q, at).log() - chosen(p, at).log()).nan_to_num(0).square(),
        "ce": lambda: -torch.where(at.following >= 0, chosen(q, at), 1.0).log(),
        "mixed": lambda: _mixed(0.5 * (1 - chosen(p, at)), p, q, at),
        "confident": lambda: _mixed(0.5 * (1 - p.max(-1).values), p, q, at),
        "trilateral": lambda: _mixed(_text_share(p, q, at), p, q, at),
    }
    return formulas[name]()


def _text_share(p: Tensor, q: Tensor, at: Positions) -> Tensor:
    truth = torch.nn.functional.one_hot(at.following.clamp(min=0), VOCABULARY)
    student, teacher = ((one.detach() - truth).norm(dim=-1) for one in (q, p))
    return 1 - student / (student + teacher)


def _mixed(share: Tensor, p: Tensor, q: Tensor, at: Positions) -> Tensor:
    inside = at.following >= 0
    share = torch.where(inside, share, 0.0)
    return (1 - share) * kl(p, q) - share * torch.where(inside, chosen(q, at), 1.0).log()


@pytest.mark.parametrize("name", [name for name in ON_LOGITS if name != "sinkhorn"])
def test_a_loss_is_its_formula(name: str) -> None:
    at = positions(spread=0.3)  # near enough that no importance weight is clipped
    torch.testing.assert_close(entry("loss", name)(at), reference(name, at), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ON_LOGITS)
def test_a_loss_falls_along_its_gradient(name: str) -> None:
    loss, at = entry("loss", name), positions()
    value = loss(at)
    assert value.shape == (COUNT,)
    (gradient,) = torch.autograd.grad(value.sum(), at.student)
    moved = Positions(at.student.detach() - 1e-3 * gradient, at.teacher, at.following)
    assert float(loss(moved).sum()) < float(value.sum().detach())


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_gradient_of_kl_is_that_of_its_formula(temperature: float) -> None:
    at = positions()
    weights = torch.linspace(0.5, 2, COUNT, dtype=torch.float64)
    (found,) = torch.autograd.grad(entry("loss", "kl", temperature=temperature)(at) @ weights, at.student)
    wanted = temperature**2 * kl(*probabilities(at, temperature)) @ weights
    torch.testing.assert_close(found, *torch.autograd.grad(wanted, at.student))


def test_kl_of_tokens_that_no_model_predicts_adds_nothing() -> None:
    at = positions()
    with torch.no_grad():
        at.student[:, 3] = at.teacher[:, 3] = -torch.inf
    rest = [index for index in range(VOCABULARY) if index != 3]
    found = entry("loss", "kl")(at)
    torch.testing.assert_close(
        found, kl(*probabilities(Positions(at.student[:, rest], at.teacher[:, rest], at.following)))
    )
    assert torch.autograd.grad(found.sum(), at.student)[0].isfinite().all()


@pytest.mark.parametrize("name", ["kl", "reverse-kl", "js", "alpha", "bd", "f", "logits"])
def test_a_divergence_is_least_at_the_teacher(name: str) -> None:
    loss, at = entry("loss", name), positions()
    same = Positions(at.teacher, at.teacher, at.following)
    assert float(loss(same).sum()) < 1e-3 < float(loss(at).sum().detach())
    assert entry("loss", name, weight=3.0).weight == 3.0


@pytest.mark.parametrize("kind", ["hellinger", "jeffreys"])
def test_further_f_divergences(kind: str) -> None:
    at = positions()
    p, q = probabilities(at)
    wanted = {"hellinger": 1 - (p * q).sqrt().sum(-1), "jeffreys": kl(p, q) + kl(q, p)}[kind]
    torch.testing.assert_close(entry("loss", "f", kind=kind)(at), wanted, rtol=1e-9, atol=1e-12)


def test_a_temperature_divides_the_logits_and_scales_the_loss() -> None:
    at = positions()
    p, q = probabilities(at, 2.0)
    torch.testing.assert_close(entry("loss", "kl", temperature=2.0)(at), 4 * kl(p, q))


def test_large_importance_weights_are_clipped_in_the_gradient() -> None:
    """A token that the teacher expects and the student does not pulls no more than ``clip``."""
    teacher = torch.tensor([[8.0, 0.0, 0.0]], dtype=torch.float64)
    student = torch.tensor([[-8.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    bounded, free = (
        torch.autograd.grad(
            entry("loss", "alpha", clip=clip)(Positions(student, teacher, torch.tensor([0]))).sum(), student
        )[0]
        for clip in (5.0, 1e6)
    )
    assert float(bounded.norm()) < 0.1 * float(free.norm())


def test_the_sinkhorn_loss_falls_towards_the_teacher() -> None:
    values = [
        float(entry("loss", "sinkhorn")(positions(spread=spread)).sum().detach())
        for spread in (0.0, 0.5, 2.0)
    ]
    assert values == sorted(values)


def test_transport_moves_uniform_masses() -> None:
    from compress.healing.losses.sinkhorn import transport  # noqa: PLC0415

    cost = torch.rand(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plan = transport(cost, 0.1, 200)
    torch.testing.assert_close(plan.sum(0), torch.full((6,), 1 / 6, dtype=torch.float64))
    torch.testing.assert_close(plan.sum(1), torch.full((6,), 1 / 6, dtype=torch.float64))
    assert float((plan * cost).sum()) < float(cost.mean())


@pytest.mark.parametrize("name", registry.FILTERS)
def test_a_filter_gives_factors_without_gradients(name: str) -> None:
    at = positions()
    loss = entry("loss", "kl")(at).detach()
    factors = entry("filter", name)(at, loss)
    assert factors.shape == loss.shape
    assert not factors.requires_grad
    assert bool((factors >= 0).all())
    assert float(factors.sum()) > 0


def test_filters_choose_what_they_say() -> None:
    at = positions()
    loss = entry("loss", "kl")(at).detach()
    right = at.teacher.argmax(-1) == at.following
    assert torch.equal(entry("filter", "correct")(at, loss) > 0, right)
    hard = entry("filter", "hard", share=0.25)(at, loss)
    assert int(hard.sum()) == COUNT // 4
    assert float(loss[hard > 0].min()) >= float(loss[hard == 0].max())
    factors = entry("filter", "loss", most=1e6)(at, loss)
    torch.testing.assert_close(factors, COUNT * loss.exp() / loss.exp().sum())


def test_the_objective_sums_losses_and_gives_the_gradient_at_the_logits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Some positions at a time, with a filter: value and gradient are those of one graph over all of them."""
    from compress.healing import objective  # noqa: PLC0415

    monkeypatch.setattr(objective, "CHUNK_ELEMENTS", 5 * VOCABULARY)
    at = positions()
    losses = [entry("loss", "kl"), entry("loss", "ce", weight=0.3)]
    student, teacher = (
        logits.detach().float().view(2, 12, VOCABULARY) for logits in (at.student, at.teacher)
    )
    tokens = torch.randint(VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(1))
    value, gradient = Objective(losses, entry("filter", "correct", others=0.5)).gradient(
        student, teacher, tokens
    )
    leaf = student.double().requires_grad_()
    following = torch.cat((tokens[:, 1:], torch.full((2, 1), -1)), 1).flatten()
    whole = Positions(leaf.flatten(0, 1), teacher.double().flatten(0, 1), following)
    factor = torch.where(whole.teacher.argmax(-1) == following, 1.0, 0.5)
    wanted = (factor * (losses[0](whole) + 0.3 * losses[1](whole))).sum()
    assert value == pytest.approx(float(wanted.detach()), rel=1e-5)
    torch.testing.assert_close(gradient.double(), torch.autograd.grad(wanted, leaf)[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in registry.OPTIMIZERS if name != "spsa"])
def test_an_optimizer_finds_the_bottom_of_a_bowl_and_keeps_nothing(name: str) -> None:
    optimizer = entry("optimizer", name)
    target = torch.tensor([1.0, -2.0, 0.5])
    runs = []
    for _ in range(2):
        master = torch.zeros(3)
        state = optimizer.begin(master)
        for count in range(1, 401):
            rate = torch.tensor(0.02 * (1 - count / 401))
            optimizer.step(master, 2 * (master - target), state, rate=rate, count=count)
        runs.append(master)
    assert torch.equal(*runs)
    torch.testing.assert_close(runs[0], target, atol=0.1, rtol=0)


def test_spsa_falls_by_forward_passes_and_is_replayed_from_seeds_and_bytes() -> None:
    target = torch.linspace(-1, 1, 8)

    def bowl(trained: dict[str, Trained]) -> float:
        return float((trained["a"].master.detach() - target).square().sum())

    runs, slopes = [], []
    for _ in range(2):
        trained = {"a": trained_tensor("a", "norms", torch.full((8,), 0.5))}
        optimizer = entry("optimizer", "spsa")
        state, first = optimizer.begin_all(), bowl(trained)
        for count in range(1, 301):
            _, slope = optimizer.step_forward(
                trained, lambda t=trained: bowl(t), state, rate=0.05, count=count, seed=count
            )
            slopes.append(slope)
        assert bowl(trained) < 0.1 * first
        runs.append(trained["a"].master.detach())
    assert torch.equal(*runs)
    assert all(slope == float(torch.tensor(slope).to(torch.float8_e5m2)) for slope in slopes)


def test_adamw_is_torchs() -> None:
    generator = torch.Generator().manual_seed(0)
    master = torch.randn(5, generator=generator)
    ours, theirs = master.clone(), torch.nn.Parameter(master.clone())
    optimizer = entry("optimizer", "adamw", decay=0.1, epsilon=1e-8)
    torchs = torch.optim.AdamW([theirs], lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    state = optimizer.begin(ours)
    for count in range(1, 20):
        gradient = torch.randn(5, generator=generator)
        optimizer.step(ours, gradient, state, rate=torch.tensor(0.01), count=count)
        theirs.grad = gradient
        torchs.step()
    torch.testing.assert_close(ours, theirs.detach())


def test_moments_in_a_byte_are_on_the_values_of_bitsandbytes() -> None:
    """Its CPU operator does not always take the nearest value; ours does."""
    functional = pytest.importorskip("bitsandbytes.functional")
    values = torch.randn(3000, generator=torch.Generator().manual_seed(0)) ** 3
    for signed in (True, False):
        table = functional.create_dynamic_map(signed=signed)
        assert torch.equal(dynamic_tree(signed), table)
        one = values if signed else values.square()
        codes, largest = in_a_byte(one, signed=signed)
        theirs = functional.dequantize_blockwise(*functional.quantize_blockwise(one, table, blocksize=256))
        ours = from_bytes(codes, largest, one.shape, signed=signed)
        same = torch.isclose(ours, theirs, rtol=1e-6, atol=0)
        assert float(same.float().mean()) > 0.5
        assert bool(((one - ours).abs() <= (one - theirs).abs() * (1 + 1e-5))[~same].all())


def test_adamw_in_a_byte_goes_nearly_where_adamw_goes() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(64, 80, generator=generator)
    paths = {}
    for name in ("adamw", "adamw8"):
        master, optimizer = start.clone(), entry("optimizer", name)
        state = optimizer.begin(master)
        for count in range(1, 40):
            optimizer.step(master, master + 0.1, state, rate=torch.tensor(0.05), count=count)
        paths[name] = master
        size = sum(tensor.nbytes for tensor in state.values()) / master.numel()
        assert size == (8 if name == "adamw" else pytest.approx(2 + 8 / 256))
    assert bool(paths["adamw8"].isfinite().all())
    moved = (paths["adamw"] - start).norm()
    assert float((paths["adamw8"] - paths["adamw"]).norm()) < 0.1 * float(moved)


def test_a_growing_batch_sees_every_window_once_and_its_rate_falls_at_the_end() -> None:
    schedule = entry("schedule", "growing", most=4.0)
    sizes = schedule.sizes(2, 1000)
    assert sum(sizes) == 1000
    assert sizes[0] == 2
    assert max(sizes) == 8
    assert list(sizes[:-1]) == sorted(sizes[:-1])
    place = 0
    for step, size in enumerate(
        sizes
    ):  # batch and rate together are linear decay by the rule of the square root
        wanted = (1 - place / 1000) * (size / 2) ** 0.5
        assert schedule.factor(step, len(sizes)) == pytest.approx(min(1.0, wanted), abs=0.12)
        place += size


def test_a_penalty_that_finds_nothing_to_act_on_is_refused() -> None:
    kept = {"w.weight_values": trained_tensor("w.weight_values", "values", torch.ones(9))}
    matrix = {"w.left_weight": trained_tensor("w.left_weight", "factors", torch.ones(3, 2))}
    for name in ("group", "orthonormal", "discrete", "distribution"):
        with pytest.raises(UserError, match=rf"penalty '{name}' finds nothing to act on .* \(values\)"):
            check_penalties([entry("penalty", name)], kept)
        check_penalties([entry("penalty", name)], matrix)
    for name in ("decay", "kurtosis", "flat"):
        check_penalties([entry("penalty", name)], kept)


def test_spsa_draws_in_pieces_what_it_draws_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from compress.healing.optimizers import spsa  # noqa: PLC0415

    found = []
    for piece in (1 << 18, 6):
        monkeypatch.setattr(spsa, "PIECE", piece)
        trained = {
            "a": trained_tensor("a", "norms", torch.full((5, 4), 0.5)),
            "b": trained_tensor("b", "scales", torch.linspace(1, 2, 7), elementwise=True),
            "c": trained_tensor("c", "norms", torch.tensor(2.0)),
        }
        starts = {name: one.master.detach().clone() for name, one in trained.items()}
        seen: list[Tensor] = []

        def loss(seen: list[Tensor] = seen, trained: dict[str, Trained] = trained) -> float:
            seen.append(torch.cat([one.master.detach().flatten() for one in trained.values()]))
            return float(seen[-1].sum())

        optimizer = entry("optimizer", "spsa")
        optimizer.step_forward(trained, loss, optimizer.begin_all(), rate=0.1, count=1, seed=3)
        start = torch.cat([one.flatten() for one in starts.values()])
        units = torch.cat([one.unit.expand(one.master.shape).flatten() for one in trained.values()])
        up, down = ((place - start) / units / optimizer.epsilon for place in seen)
        torch.testing.assert_close(up, -down, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(up.abs(), torch.ones_like(up), rtol=1e-3, atol=1e-3)
        assert 0 < int((up > 0).sum()) < up.numel()
        end = torch.cat([one.master.detach().flatten() for one in trained.values()])
        torch.testing.assert_close(((end - start) / units).abs(), torch.full_like(up, 0.1), rtol=1e-3, atol=0)
        found.append(up.sign())
    assert torch.equal(*found)


@pytest.mark.parametrize("name", registry.SCHEDULES)
def test_a_schedule_stays_between_nothing_and_all_and_ends_low(name: str) -> None:
    options = {"norms": (1.0, 1.0, 1.0, 1.0)} if name == "refined" else {}
    factors = [entry("schedule", name, **options).factor(step, 100) for step in range(100)]
    assert all(0 < factor <= 1 for factor in factors)
    assert max(factors) == pytest.approx(1, abs=0.05)
    assert factors[-1] < 0.2
    assert entry("schedule", name, **options).factor(0, 1) > 0


def test_a_schedule_without_what_it_needs_is_refused() -> None:
    with pytest.raises(UserError, match="schedule 'refined' needs the option 'norms'"):
        entry("schedule", "refined")


def test_the_refined_schedule_gives_more_where_gradients_are_small() -> None:
    flat = entry("schedule", "refined", norms=(1.0, 1.0, 1.0, 1.0))
    assert [flat.factor(step, 4) for step in range(4)] == pytest.approx([1, 5 / 7, 3 / 7, 1 / 7])
    steep = entry("schedule", "refined", norms=(10.0, 1.0, 1.0, 1.0))
    assert steep.factor(0, 4) < steep.factor(1, 4)


@pytest.mark.parametrize("name", registry.SAMPLERS)
def test_a_sampler_draws_windows_of_the_text(name: str) -> None:
    sampler = entry("sampler", name)
    draws = [sampler.places(103, 10, 35, torch.Generator().manual_seed(0)) for _ in range(2)]
    assert torch.equal(*draws)
    assert draws[0].shape == (35,)
    assert int(draws[0].min()) >= 0
    assert int(draws[0].max()) <= 93


def test_fresh_windows_do_not_overlap_within_a_pass() -> None:
    places = entry("sampler", "fresh").places(103, 10, 30, torch.Generator().manual_seed(0)).view(3, 10)
    for pass_over in places:
        assert bool((pass_over.sort().values.diff() == 10).all())
    assert not torch.equal(places[0], places[1])


@pytest.mark.parametrize("name", registry.ENDS)
def test_an_end_is_never_worse_than_the_best_iterate(name: str) -> None:
    start, best = {"a": torch.tensor([0.0])}, {"a": torch.tensor([1.0])}
    for lowest in (0.0, 0.5, 1.0):
        kept, kl_of_it = entry("end", name).choose(
            start, best, (1 - lowest) ** 2, lambda values, at=lowest: float((values["a"] - at) ** 2)
        )
        assert kl_of_it <= (1 - lowest) ** 2
        assert kl_of_it == pytest.approx(float((kept["a"] - lowest) ** 2))


def test_wise_takes_a_point_in_between() -> None:
    start, best = {"a": torch.tensor([0.0])}, {"a": torch.tensor([1.0])}
    kept, _ = entry("end", "wise").choose(start, best, 0.25, lambda values: float((values["a"] - 0.5) ** 2))
    assert float(kept["a"]) == 0.5


@pytest.mark.parametrize("name", [name for name in registry.PENALTIES if name not in ("flat", "kurtosis")])
def test_a_penalty_is_a_number_with_gradients(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    trained = {
        f"w.{suffix}": trained_tensor(f"w.{suffix}", "factors", torch.randn(shape, generator=generator))
        for suffix, shape in (("left_weight", (8, 3)), ("right_weight", (3, 6)))
    }
    penalty = entry("penalty", name)
    with torch.no_grad():
        trained["w.left_weight"].master.add_(1.0)
    value = penalty(trained)
    assert value.shape == ()
    assert float(value.detach()) > 0
    value.backward()
    assert float(trained["w.left_weight"].master.grad.norm()) > 0  # type: ignore[union-attr]


def test_penalties_are_their_formulas() -> None:
    left = trained_tensor("w.left_weight", "factors", torch.tensor([[1.0, 1.0], [0.0, 1.0]]))
    # Columns (1, 0) and (1, 1)/√2: twice the square of their cosine, by the rank.
    assert float(entry("penalty", "orthonormal", weight=1.0)({"w.left_weight": left})) == pytest.approx(0.5)
    # Of rows (1, 1) and (0, 1) the cosine is 1/√2 as well.
    assert float(entry("penalty", "group", weight=1.0)({"w.left_weight": left})) == pytest.approx(0.5)
    with torch.no_grad():
        left.master.add_(left.unit)
    assert float(entry("penalty", "decay", weight=1.0)({"w.left_weight": left})) == pytest.approx(0.5)


@pytest.mark.parametrize(("values", "row"), [(2, [3.0, -3.0, 3.0]), (3, [3.0, 0.0, -3.0])])
def test_the_discrete_penalty_is_nothing_at_a_few_values_of_one_size(values: int, row: list[float]) -> None:
    penalty = entry("penalty", "discrete", values=values, weight=1.0)

    def of(numbers: list[float]) -> float:
        return float(penalty({"w": trained_tensor("w", "values", torch.tensor([numbers]))}).detach())

    assert of(row) == pytest.approx(0, abs=1e-6)
    other = [3.0, 1.0, -2.0]
    x = torch.tensor(other, dtype=torch.float64)
    powers = (x**0, x**2) if values == 2 else (x, x**3)
    wanted = 1 - (powers[0] @ powers[1]) ** 2 / (powers[0].square().sum() * powers[1].square().sum())
    assert of(other) == pytest.approx(float(wanted), rel=1e-5)
    assert of([100 * one for one in other]) == pytest.approx(of(other), rel=1e-5)


def test_the_distribution_penalty_is_nothing_at_an_even_spread_and_free_of_scale() -> None:
    penalty = entry("penalty", "distribution", weight=1.0)

    def of(values: Tensor) -> float:
        return float(penalty({"w": trained_tensor("w", "codes", values.view(4, -1))}).detach())

    assert of(torch.linspace(-1, 1, 4000)) == pytest.approx(0, abs=1e-5)
    x = torch.randn(400, generator=torch.Generator().manual_seed(0)).exp()
    z = (x.double() - x.double().mean()) / x.double().std(unbiased=False)
    wanted = float(((z**4).mean() - 1.8) ** 2 + (z**3).mean() ** 2)
    assert of(x) == pytest.approx(wanted, rel=1e-4)
    assert of(100 * x) == pytest.approx(wanted, rel=1e-4)
    assert of(torch.ones(8)) == 0


def test_bang_trains_on_a_smoothed_teacher() -> None:
    assert entry("end", "bang", smoothing=0.1).smoothing == 0.1
    at = positions()
    student, teacher = (one.detach().float()[None] for one in (at.student, at.teacher))
    tokens = torch.zeros(1, COUNT, dtype=torch.int64)
    smoothed = 0.9 * teacher.double().softmax(-1) + 0.1 / VOCABULARY
    wanted = float(kl(smoothed, student.double().softmax(-1)).sum())
    objective = Objective([entry("loss", "kl")], smoothing=0.1)
    assert objective.value(student, teacher, tokens) == pytest.approx(wanted, rel=1e-5)
    assert objective.gradient(student, teacher, tokens)[0] == pytest.approx(wanted, rel=1e-5)


def test_the_smallest_numbers_alone_may_move() -> None:
    start = torch.tensor([[0.1, -3.0], [-0.2, 2.0]])
    units = entry("trainable", "smallest", share=0.5).units(start, torch.tensor(1.5))
    assert units.tolist() == [[1.5, 0.0], [1.5, 0.0]]
    held = replace(trained_tensor("w", "smallest", start), unit=units)
    with torch.no_grad():
        held.master.add_(units)
    assert float(entry("penalty", "decay", weight=1.0)({"w": held}).detach()) == pytest.approx(0.5)


@pytest.mark.parametrize("name", registry.TRAINABLES)
def test_a_trainable_has_a_rate_of_its_own(name: str) -> None:
    start, unit = torch.tensor([0.1, -2.0]), torch.tensor(1.5)
    whole, half = (entry("trainable", name, rate=rate).units(start, unit) for rate in (1.0, 0.5))
    torch.testing.assert_close(half, 0.5 * whole)
    assert float(whole.max()) == 1.5
    with pytest.raises(UserError, match="rate"):
        entry("trainable", name, rate=0.0)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adamw_changes_many_tensors_as_it_changes_one(decay: float) -> None:
    optimizer = entry("optimizer", "adamw", decay=decay)
    generator = torch.Generator().manual_seed(0)
    ours, theirs = ([torch.ones(3, 4), torch.ones(5)] for _ in range(2))
    states, others = ([optimizer.begin(one) for one in masters] for masters in (ours, theirs))
    for count in range(1, 4):
        gradients = [torch.randn(one.shape, generator=generator) for one in ours]
        rates = [torch.full_like(one, 0.1) for one in ours]
        counted = torch.tensor(float(count), dtype=torch.float64)
        optimizer.step_together(ours, gradients, states, rates=rates, count=counted)
        for one, gradient, state in zip(theirs, gradients, others, strict=True):
            optimizer.step(one, gradient, state, rate=torch.tensor(0.1), count=count)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
