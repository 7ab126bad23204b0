"""Which tokens reach which expert, seen from the products of the model's own loop."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compress.calibrate.experts import ExpertRecorder, eager_experts

EXPERTS, OUT, IN = 3, 5, 4
PRODUCTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "linear": lambda x, w: nn.functional.linear(x, w),
    "matmul": lambda x, w: torch.matmul(x, w.T),
    "@": lambda x, w: x @ w.T,
    "mm": lambda x, w: torch.mm(x, w.T),
    "method": lambda x, w: x.matmul(w.t()),
    "addmm": lambda x, w: torch.addmm(torch.zeros(OUT), x, w.T),
    "weight first": lambda x, w: (w @ x.T).T,
}


@pytest.mark.parametrize("product", PRODUCTS)
def test_each_product_reports_its_expert_and_inputs(product: str) -> None:
    torch.manual_seed(0)
    weight, inputs = torch.randn(EXPERTS, OUT, IN), [torch.randn(n, IN) for n in (2, 3)]
    reports: list[tuple[str, int, Tensor]] = []
    with ExpertRecorder({"up": weight}, lambda *report: reports.append(report)):
        outputs = [PRODUCTS[product](x, weight[expert]) for x, expert in zip(inputs, (2, 0), strict=True)]
    assert [(name, expert) for name, expert, _ in reports] == [("up", 2), ("up", 0)]
    for report, x, output, expert in zip(reports, inputs, outputs, (2, 0), strict=True):
        assert torch.equal(report[2], x)
        torch.testing.assert_close(output, x @ weight[expert].T)


def test_all_experts_at_once_leave_out_the_rows_of_zeros() -> None:
    torch.manual_seed(0)
    weight, inputs = torch.randn(EXPERTS, IN, OUT), torch.zeros(EXPERTS, 4, IN)
    inputs[0, 1], inputs[2] = torch.randn(IN), torch.randn(4, IN)
    reports: dict[int, Tensor] = {}
    with ExpertRecorder({"up": weight}, lambda name, expert, rows: reports.update({expert: rows})):
        torch.bmm(inputs, weight)
    assert torch.equal(reports[0], inputs[0, 1:2])
    assert reports[1].shape == (0, IN)
    assert torch.equal(reports[2], inputs[2])


def test_other_products_are_not_reported() -> None:
    weight, other = torch.randn(EXPERTS, OUT, IN), torch.randn(OUT, IN)
    reports: list[Any] = []
    with ExpertRecorder({"up": weight}, lambda *report: reports.append(report)):
        nn.functional.linear(torch.randn(2, IN), other)
        torch.matmul(torch.randn(2, IN), other.T)
    nn.functional.linear(torch.randn(2, IN), weight[1])  # outside
    assert reports == []


def test_two_parameters_are_told_apart() -> None:
    up, down = torch.randn(EXPERTS, OUT, IN), torch.randn(EXPERTS, IN, OUT)
    reports: list[tuple[str, int]] = []
    with ExpertRecorder({"up": up, "down": down}, lambda name, expert, _: reports.append((name, expert))):
        hidden = nn.functional.linear(torch.randn(2, IN), up[1])
        nn.functional.linear(hidden, down[1])
    assert reports == [("up", 1), ("down", 1)]


@pytest.mark.parametrize("fails", [False, True])
def test_the_eager_loop_lasts_as_long_as_the_context(fails: bool) -> None:
    config = SimpleNamespace(_experts_implementation="grouped_mm")
    modules = [nn.Module(), nn.Module(), nn.Module()]
    for module in modules[:2]:
        module.config = config
    try:
        with eager_experts(modules):
            assert config._experts_implementation == "eager"
            if fails:
                raise RuntimeError
    except RuntimeError:
        pass
    assert config._experts_implementation == "grouped_mm"
