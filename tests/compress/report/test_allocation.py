"""The section on what each weight got."""

from __future__ import annotations

from collections.abc import Callable

from compress.report import Report
from compress.report.allocation import allocation_view
from compress.report.page import render_report
from compress.report.sweep_page import SweepPoint, render_sweep

Make = Callable[..., Report]
BUDGET = {
    "bytes": 70_000_000,
    "runtime": "vllm",
    "allocations_measured": 24,
    "allocations_accepted": 3,
    "measured_kl": 0.0532,
    "predicted_kl": 0.0611,
}


def mixed(make_report: Make, **changes: object) -> Report:
    report = make_report(**changes)
    first = report.weights[0]
    other = first.model_copy(
        update={"structure": "int8 group 128", "bits_per_weight": 8.125, "bytes_after": 2 * first.bytes_after}
    )
    return report.model_copy(update={"weights": (other, *report.weights[1:])})


def test_one_structure_for_all_is_not_drawn(make_report: Make) -> None:
    assert allocation_view(make_report()) is None


def test_structures_are_counted_by_rising_bits(make_report: Make) -> None:
    view = allocation_view(mixed(make_report))
    assert view is not None
    assert [(row.structure, row.count) for row in view.rows] == [
        ("int4 group 128", 20),
        ("int8 group 128", 1),
    ]
    assert view.shades == ("4.12 bits", "8.12 bits") or view.shades == ("4.13 bits", "8.13 bits")
    assert view.budget == ""
    assert str(view.heat).count('class="q7"') == 1
    assert "block 0, q_proj: int8 group 128" in str(view.heat)


def test_the_page_says_what_a_search_has_found(make_report: Make) -> None:
    page = render_report(mixed(make_report, sensitivity={"budget": BUDGET}), [], name="out")
    assert "What each weight got" in page
    assert "70.0 MB of weight files that vllm runs" in page
    assert "0.0532 nats a token, where 0.0611 was predicted" in page
    assert "What each weight got" not in render_report(make_report(), [], name="out")


def test_a_sweep_is_a_page_of_points_whose_names_are_text() -> None:
    points = [SweepPoint("2GB", 2_000, 1_990, 0.31, 0.29), SweepPoint("<b>3GB", 3_000, 2_995, 0.0, 0.0)]
    page = render_sweep("my <model>", points)
    assert "<svg" in page
    assert "0.3100" in page
    assert "<b>3GB" not in page
    assert "my &lt;model&gt; within budgets" in page
