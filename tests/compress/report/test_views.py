"""What the page shows of a report: bars, errors by kind, costs, lists of what was left."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import yaml

from compress.report import Bytes, Report, Skipped, StepFigures, views

Make = Callable[..., Report]


def test_bars_are_shares_of_the_source(make_report: Make) -> None:
    report = make_report(bytes=Bytes(source=100_000_000, planned=50_000_000, actual=50_000_000))
    compressed = sum(weight.bytes_after for weight in report.weights)
    size = views.size_view(report)
    assert size.compressed_width == pytest.approx(100 * compressed / 100_000_000)
    assert size.compressed_width + size.kept_width == pytest.approx(50)
    assert (size.before, size.after, size.ratio, size.saved) == ("100 MB", "50.0 MB", "2.00", "50%")


def test_bars_of_an_output_larger_than_its_source(make_report: Make) -> None:
    size = views.size_view(make_report(bytes=Bytes(source=10, planned=99, actual=99)))
    assert size.compressed_width + size.kept_width == pytest.approx(100)


def test_errors_by_kind_of_weight(make_report: Make) -> None:
    report = make_report(count=4)
    errors = views.error_view(report)
    assert errors is not None
    assert [row.name for row in errors.rows] == [
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    ]  # fmt: skip
    assert all(row.count == 4 for row in errors.rows)
    assert errors.compares
    assert errors.gain == "60%"  # every error is 1 / 2.5 of the nearest point's
    worst = [weight.error for weight in errors.worst]
    assert worst == sorted(worst, key=lambda error: -(error or 0))
    assert worst[0] == max(weight.error or 0 for weight in report.weights)
    assert errors.heat is not None
    assert str(errors.heat).count("<td") >= 28


def test_plain_rounding_is_compared_with_nothing(make_report: Make) -> None:
    report = make_report()
    plain = tuple(weight.model_copy(update={"error_nearest": weight.error}) for weight in report.weights)
    errors = views.error_view(report.model_copy(update={"weights": plain}))
    assert errors is not None
    assert not errors.compares
    assert errors.gain is None
    assert all(row.nearest == "" for row in errors.rows)


def test_weights_that_came_out_exact_have_no_part_in_the_gain(make_report: Make) -> None:
    report = make_report()
    first, *others = report.weights
    exact = (first.model_copy(update={"error": 0.0}), *others)
    assert views.error_view(report.model_copy(update={"weights": exact})).gain == "60%"  # type: ignore[union-attr]
    below = (first.model_copy(update={"error": -1e-9}), *others)
    assert views.error_view(report.model_copy(update={"weights": below})).gain == "60%"  # type: ignore[union-attr]


def test_errors_that_are_no_numbers_are_left_out(make_report: Make) -> None:
    report = make_report()
    broken = tuple(weight.model_copy(update={"error": math.inf}) for weight in report.weights[:7])
    errors = views.error_view(report.model_copy(update={"weights": (*broken, *report.weights[7:])}))
    assert errors is not None
    assert sum(row.count for row in errors.rows) == len(report.weights) - 7
    none = tuple(weight.model_copy(update={"error": None}) for weight in report.weights)
    assert views.error_view(report.model_copy(update={"weights": none})) is None


def test_errors_of_zero_have_no_colours(make_report: Make) -> None:
    report = make_report()
    exact = tuple(weight.model_copy(update={"error": 0.0, "error_nearest": 0.0}) for weight in report.weights)
    errors = views.error_view(report.model_copy(update={"weights": exact}))
    assert errors is not None
    assert errors.heat is None


def test_costs_are_shares_of_the_longest_and_the_highest(make_report: Make) -> None:
    steps = (
        StepFigures(name="load", seconds=1.0, peak_bytes=100),
        StepFigures(name="solve", seconds=4.0, peak_bytes=400),
    )
    cost = views.cost_view(make_report(steps=steps))
    assert cost is not None
    assert [(row.name, row.time_width, row.memory_width) for row in cost.steps] == [
        ("load", 25, 25), ("solve", 100, 100),
    ]  # fmt: skip
    assert cost.has_memory
    assert cost.block_time is not None
    assert cost.block_memory is not None


def test_costs_where_memory_was_not_measured(make_report: Make) -> None:
    report = make_report()
    blocks = tuple(block.model_copy(update={"peak_bytes": None}) for block in report.blocks)
    cost = views.cost_view(report.model_copy(update={"steps": (), "blocks": blocks}))
    assert cost is not None
    assert not cost.has_memory
    assert cost.block_memory is None
    assert views.cost_view(report.model_copy(update={"steps": (), "blocks": ()})) is None


def test_what_was_left_by_reason_with_most_bytes_first() -> None:
    skipped = [
        Skipped(name="a", reason="small", bytes=1),
        Skipped(name="b", reason="ignored", bytes=50),
        Skipped(name="c", reason="small", bytes=2),
    ]
    groups = views.skipped_view(skipped)
    assert [(group.reason, group.names, group.count) for group in groups] == [
        ("ignored", ["b"], 1), ("small", ["a", "c"], 2),
    ]  # fmt: skip


def test_a_long_list_says_how_many_more_there_are() -> None:
    skipped = [Skipped(name=str(i), reason="small") for i in range(views.MOST_LISTED + 7)]
    (group,) = views.skipped_view(skipped)
    assert (len(group.names), group.more, group.count) == (views.MOST_LISTED, 7, views.MOST_LISTED + 7)


def test_weights_that_were_compressed_in_another_way(make_report: Make) -> None:
    report = make_report()
    assert views.fallback_view(report) == []
    changed = report.weights[0].model_copy(update={"fallback": "plain rounding was nearer"})
    (group,) = views.fallback_view(report.model_copy(update={"weights": (changed, *report.weights[1:])}))
    assert (group.reason, group.names) == ("plain rounding was nearer", [changed.name])


def test_the_recipe_as_yaml_without_empty_keys(make_report: Make) -> None:
    recipe = {"name": "x", "drop": None, "targets": [], "steps": ({"bits": 4, "none": None},)}
    assert yaml.safe_load(views.recipe_text(make_report(recipe=recipe))) == {
        "name": "x",
        "steps": [{"bits": 4}],
    }


def test_the_sensitivity_pass_only_where_there_was_one(make_report: Make) -> None:
    assert views.sensitivity_text(make_report()) is None
    shown = views.sensitivity_text(make_report(sensitivity={"ranks": {"a": {"chosen": 3}}}))
    assert shown is not None
    assert yaml.safe_load(shown) == {"ranks": {"a": {"chosen": 3}}}
