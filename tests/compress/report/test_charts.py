from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.report.charts import SHADES, Axis, Point, columns, heat_map, scatter, shade
from compress.report.scales import Scale, log_scale


def test_places_are_proportional() -> None:
    assert [Scale(0, 20).place(value) for value in (-1, 0, 5, 20, 30)] == [0, 0, 25, 100, 100]
    logarithmic = Scale(0.001, 10, log=True)
    assert [logarithmic.place(value) for value in (0, 0.001, 0.1, 10)] == pytest.approx([0, 0, 50, 100])


@given(st.floats(1e-9, 1e9), st.floats(1.01, 1e9), st.booleans(), st.integers(3, 8))
def test_ticks_lie_on_the_axis(low: float, ratio: float, log: bool, most: int) -> None:
    scale = Scale(low, low * ratio, log=log)
    ticks = scale.ticks(most)
    assert len(ticks) <= most + 1
    assert ticks == sorted(ticks)
    assert all(scale.low * 0.99 <= tick <= scale.high * 1.01 for tick in ticks)


@given(st.lists(st.floats(1e-12, 1e3), min_size=1))
def test_a_logarithmic_axis_holds_its_values_and_has_ticks(values: list[float]) -> None:
    scale = log_scale(values)
    assert scale is not None
    assert scale.low < min(values)
    assert max(values) < scale.high
    assert scale.ticks()


def test_no_axis_without_values() -> None:
    assert log_scale([0.0, -1.0, math.inf, math.nan]) is None


def test_a_scatter_joins_the_best_points_only() -> None:
    x, y = Axis(Scale(0, 10), "bytes", str), Axis(Scale(0.01, 1, log=True), "KL", str)
    points = [
        Point(2, 0.5, "a"),
        Point(4, 0.1, "b"),
        Point(4, 0.3, "worse"),
        Point(8, 0.02, "c", strong=True),
    ]
    drawn = scatter(points, x, y, line=(9.0, "dense"))
    assert drawn.count('class="front"') == 2
    assert drawn.count("<circle") == 4
    assert drawn.count("dot strong") == 1


def test_labels_of_close_points_do_not_overlap() -> None:
    x, y = Axis(Scale(0, 10), "bytes", str), Axis(Scale(0.01, 1, log=True), "KL", str)
    drawn = scatter([Point(5, 0.1, "first"), Point(5.1, 0.1, "second")], x, y)
    anchors = [part.split('"')[0] for part in drawn.split('text-anchor="')[1:]]
    assert {"start", "end"} <= set(anchors)


def test_columns_are_as_high_as_their_values() -> None:
    drawn = columns([1.0, None, 2.0], ["a", "b", "c"])
    assert [part.split('"')[0] for part in drawn.split('height="')[2:]] == ["50.00%", "0.00%", "100.00%"]
    assert "<rect" not in columns([], [])


def test_a_heat_map_has_a_cell_for_each_value() -> None:
    scale = Scale(0.001, 1, log=True)
    values = [[0.001, None], [1.0, 0.03]]
    drawn = heat_map(
        ["q<", "k"], 2, lambda row, column: values[row][column], lambda row, column: f"{row},{column}", scale
    )
    assert drawn.count('class="none"') == 1
    assert 'class="q0" title="0,0"' in drawn
    assert f'class="q{SHADES - 1}" title="1,0"' in drawn
    assert "q&lt;" in drawn
    assert shade(Scale(1, 1, log=True), 1) == SHADES // 2


@pytest.mark.parametrize("blocks", [1, 16, 17, 100, 2000])
def test_a_heat_map_of_any_length_is_numbered(blocks: int) -> None:
    drawn = heat_map(["q"], blocks, lambda *_: 0.5, lambda *_: "", Scale(0.1, 1, log=True))
    spans = [int(part.split('"')[0]) for part in drawn.split('colspan="')[1:]]
    assert sum(spans) == blocks
    assert len(spans) <= 20
