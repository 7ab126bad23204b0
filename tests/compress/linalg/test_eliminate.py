"""Columns left out, the others fitted anew: against least squares and against search."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from compress.errors import UserError
from compress.linalg.eliminate import eliminate, elimination_losses


def problem(columns: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    return torch.randn(6, columns, generator=generator), x.T @ x / len(x)


def fitted(weight: Tensor, gram: Tensor, columns: Tensor) -> float:
    inside = gram[columns][:, columns].double()
    theta = torch.zeros_like(weight).double()
    theta[:, columns] = torch.linalg.solve(inside, (weight @ gram)[:, columns].double().T).T
    delta = weight.double() - theta
    return float((delta @ gram.double() * delta).sum())


@pytest.mark.parametrize("size", [1, 2])
def test_near_the_best_of_all_choices(size: int) -> None:
    weight, gram = problem(8)
    units = torch.arange(8).view(-1, size)
    found = eliminate(weight, gram, units, len(units) - 2)
    loss = fitted(weight, gram, units[found.kept].flatten())
    whole = float((weight @ gram * weight).sum())
    assert abs(loss / whole - found.error) < 1e-3
    assert not found.theta[:, sorted(set(range(8)) - set(units[found.kept].flatten().tolist()))].any()
    choices = itertools.combinations(range(len(units)), len(units) - 2)
    best = min(fitted(weight, gram, units[list(kept)].flatten()) for kept in choices)
    assert loss <= 1.5 * best


def test_many_at_a_time_and_singular_inputs() -> None:
    weight, gram = problem(64)
    gram[:, 10] = gram[:, 11] = 0
    gram[10] = gram[11] = 0
    found = eliminate(weight, gram, torch.arange(64).unsqueeze(1), 40)
    assert len(found.kept) == 40
    assert not set(found.kept.tolist()) & {10, 11}
    assert torch.isfinite(found.theta).all()
    assert eliminate(weight, gram, torch.arange(64).unsqueeze(1), 64).error < 1e-3


def test_inputs_that_are_not_finite() -> None:
    weight, gram = problem(8)
    gram[0, 0] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        eliminate(weight, gram, torch.arange(8).unsqueeze(1), 4)


def test_one_pair_after_the_other_by_what_it_costs_once_the_rest_is_fitted() -> None:
    weight, gram = problem(12)
    units = torch.arange(12).view(6, 2)
    alive = list(range(6))
    for _ in range(3):
        costs = {u: fitted(weight, gram, units[[v for v in alive if v != u]].flatten()) for u in alive}
        alive.remove(min(costs, key=lambda unit: costs[unit]))
        assert eliminate(weight, gram, units, len(alive)).kept.tolist() == alive
    losses = elimination_losses(weight, gram, units, [5, 4, 3])
    assert losses[3] == pytest.approx(fitted(weight, gram, units[alive].flatten()), rel=1e-3)
