"""Losses and penalties that see inside the models, and steps uphill."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.errors import UserError
from compress.healing.inner import Inner, Seen, forward, outputs_of_linears
from compress.healing.losses.dual_head import HEAD, binary_divergence
from compress.healing.modules import keep_block_inputs_alone
from compress.healing.objective import Objective
from compress.healing.trained import trained_tensor

from .test_loop import RULES, entry, gradients, models, training


@pytest.fixture
def folder(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("llama")


def states(count: int, seed: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(2, 3, 8, generator=generator) for _ in range(count))


def test_hidden_is_the_relative_error_of_each_block() -> None:
    ours, theirs, logits = states(2, 0), states(2, 1), torch.zeros(2, 3, 5)
    errors = [((a - b) ** 2).sum() / (b**2).sum(-1).mean() for a, b in zip(ours, theirs, strict=True)]
    found = entry("loss", "hidden").of_states(Seen(logits, ours), Seen(logits, theirs), {})
    torch.testing.assert_close(found, sum(errors) / 2)


def test_hidden_holds_fewer_blocks_against_every_so_manieth() -> None:
    theirs, logits = states(6, 1), torch.zeros(2, 3, 5)
    hidden = entry("loss", "hidden")
    assert float(hidden.of_states(Seen(logits, (theirs[2], theirs[5])), Seen(logits, theirs), {})) == 0
    with pytest.raises(UserError, match="blocks of one width, and these are of 4 and 8"):
        hidden.of_states(Seen(logits, (theirs[0][..., :4],)), Seen(logits, theirs), {})


def test_the_dual_head_is_its_formula_and_begins_at_the_teachers_head(folder: Path) -> None:
    _, teacher = models(folder)
    loss = entry("loss", "dual-head")
    head = loss.begin(teacher)
    assert torch.equal(head[HEAD].master, teacher.get_output_embeddings().weight)  # type: ignore[operator, union-attr]
    width = head[HEAD].master.shape[1]
    hidden = torch.randn(2, 3, width, generator=torch.Generator().manual_seed(0))
    logits = torch.randn(2, 3, len(head[HEAD].master), generator=torch.Generator().manual_seed(1))
    found = loss.of_states(Seen(logits, (hidden,)), Seen(logits), head)

    def normal(values: Tensor) -> Tensor:
        return (values - values.mean(-1, keepdim=True)) / values.std(-1, keepdim=True, correction=0) / 2

    p, q = (normal(one).double().sigmoid() for one in (logits, hidden @ head[HEAD].master.T))
    wanted = 4 * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum()
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=1e-4)
    assert float(binary_divergence(logits, logits).abs().max()) < 1e-6
    found.backward()
    assert float(head[HEAD].master.grad.norm()) > 0  # type: ignore[union-attr]


def test_outputs_of_linears_are_those_of_the_blocks(folder: Path) -> None:
    student, _ = models(folder)
    tokens = torch.arange(2, 10)[None]
    with torch.no_grad(), outputs_of_linears(student.model) as outputs:
        forward(student.model, tokens)
    head = student.model.get_output_embeddings()
    linears = [m for m in student.model.modules() if isinstance(m, nn.Linear) and m is not head]
    assert [output.shape[-1] for output in outputs] == [one.out_features for one in linears]
    assert not any(module._forward_hooks for module in student.model.modules())


def test_kurtosis_is_the_fourth_standardised_moment() -> None:
    values = torch.randn(50, 40, generator=torch.Generator().manual_seed(0))
    z = (values - values.mean()) / values.std(correction=0)
    penalty = entry("penalty", "kurtosis")
    assert float(penalty.of_output(values)) == pytest.approx(1e-3 * float((z**4).mean()), rel=1e-4)
    assert float(penalty.of_output(torch.ones(3, 3))) == 0


INNER = {
    "hidden": Inner([entry("loss", "hidden")]),
    "kurtosis": Inner((), [entry("penalty", "kurtosis")]),
    "both": Inner([entry("loss", "hidden")], [entry("penalty", "kurtosis")]),
}


@pytest.mark.parametrize("name", INNER)
def test_terms_inside_reach_the_gradient_also_with_checkpointing(
    folder: Path, tmp_path: Path, name: str
) -> None:
    rules = replace(RULES, inner=INNER[name])
    plain, kept = training(folder, tmp_path / "a", rules), training(folder, tmp_path / "b", rules)
    keep_block_inputs_alone(kept.student.model)
    ours, theirs, without = gradients(plain), gradients(kept), gradients(training(folder, tmp_path / "c"))
    for one, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[one], rtol=1e-4, atol=1e-6)
    assert any(not torch.allclose(gradient, without[one], rtol=1e-3) for one, gradient in ours.items())


def test_a_loss_on_states_alone_lowers_the_held_out_kl(folder: Path, tmp_path: Path) -> None:
    rules = replace(RULES, objective=Objective([]), inner=INNER["hidden"])
    state = training(folder, tmp_path / "state", rules).run()
    assert state.kept_kl < state.points[0].kl


def test_flat_takes_the_gradient_uphill_and_comes_back() -> None:
    one = trained_tensor("a", "values", torch.tensor([1.0, -2.0]))
    start, flat = one.master.detach().clone(), entry("penalty", "flat")

    def gradients_of() -> float:  # of Σ x³
        one.master.grad = 3 * one.master.detach() ** 2
        return float((one.master.detach() ** 3).sum())

    loss = flat.around({"a": one}, gradients_of)
    slope = 3 * start**2
    # In units: of root mean square `radius` over both numbers, along the gradient there.
    uphill = start + 1e-3 * one.unit * 2**0.5 * F.normalize(slope * one.unit, dim=0)
    torch.testing.assert_close(one.master.grad, 3 * uphill**2)
    assert torch.equal(one.master.detach(), start)
    assert loss == float((start**3).sum())


def test_flat_changes_what_a_training_finds(folder: Path, tmp_path: Path) -> None:
    plain = training(folder, tmp_path / "a").run()
    flat = training(folder, tmp_path / "b", replace(RULES, penalties=(entry("penalty", "flat"),))).run()
    assert flat.kept_kl < flat.points[0].kl
    assert flat.points != plain.points
