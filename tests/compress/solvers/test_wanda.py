"""Wanda: the kept elements are those of the largest |w| ‖x‖, as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from compress.errors import UserError
from compress.solvers.wanda import Wanda
from compress.structures.sparse.masked import Masked
from compress.structures.sparse.patterns import Unstructured

HALF = Masked(Unstructured(0.5), torch.float32)


def test_wanda_keeps_the_largest_products_of_each_row(make_case: Callable[..., Any]) -> None:
    problem = make_case("outliers20").problem(HALF)
    case = make_case("outliers20")
    score = case.weight.abs() * case.inputs.norm(dim=0)
    expected = score > score.median(1, keepdim=True).values
    found = Wanda().solve(problem)
    assert torch.equal(found.parameters.mask, expected)
    assert torch.equal(found.theta, case.weight * expected)


def test_saliencies_differ_and_a_seed_decides_the_random_one(make_case: Callable[..., Any]) -> None:
    problem = make_case("outliers20").problem(HALF)
    magnitude = Wanda("magnitude").solve(problem).parameters.mask
    assert not torch.equal(magnitude, Wanda().solve(problem).parameters.mask)
    one, two = (Wanda("random").solve(problem).parameters.mask for _ in range(2))
    assert torch.equal(one, two)


def test_an_unknown_saliency_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match="did you mean 'magnitude'"):
        Wanda("magnitud")


def test_only_its_own_saliency_follows_the_metric() -> None:
    assert Wanda().guarded
    assert not Wanda("magnitude").guarded
    assert "squared_gradient" in Wanda("fisher").needs
