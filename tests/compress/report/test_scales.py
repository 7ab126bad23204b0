"""Axes: where values lie, and the ticks printed beside them."""

from __future__ import annotations

import math

import pytest

from compress.report.scales import Scale, log_scale


def test_a_linear_axis() -> None:
    scale = Scale(10, 30)
    assert [scale.place(value) for value in (10, 15, 20, 30)] == [0, 25, 50, 100]


def test_a_logarithmic_axis() -> None:
    scale = Scale(0.01, 100, log=True)
    assert scale.place(1) == pytest.approx(50)
    assert scale.place(0.1) == pytest.approx(25)


@pytest.mark.parametrize("log", [False, True])
def test_values_outside_are_held_inside(log: bool) -> None:
    scale = Scale(1, 10, log)
    assert scale.place(0.001) == 0
    assert scale.place(1000) == 100


def test_an_axis_of_one_value_puts_it_in_the_middle() -> None:
    assert Scale(3, 3).place(3) == 50


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 7.3), (12, 19), (-4, 4), (0, 9.9e9), (0.001, 0.0042)])
@pytest.mark.parametrize("most", [3, 6])
def test_linear_ticks_are_even_round_and_inside(low: float, high: float, most: int) -> None:
    ticks = Scale(low, high).ticks(most)
    assert 1 < len(ticks) <= most
    assert all(low - 1e-9 <= tick <= high + 1e-9 * abs(high) for tick in ticks)
    steps = {
        round((after - before) / (ticks[1] - ticks[0]), 6)
        for before, after in zip(ticks, ticks[1:], strict=False)
    }
    assert steps == {1.0}
    mantissa = (ticks[1] - ticks[0]) / 10 ** math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9)
    assert round(mantissa, 6) in (1, 2, 2.5, 5, 10)


@pytest.mark.parametrize(("low", "high"), [(0.001, 1), (0.5, 2), (1e-6, 10), (3, 5)])
def test_logarithmic_ticks_are_inside_and_few(low: float, high: float) -> None:
    ticks = Scale(low, high, log=True).ticks(6)
    assert len(ticks) <= 6
    assert all(low * 0.99 <= tick <= high * 1.01 for tick in ticks)
    assert ticks == sorted(ticks)


def test_many_decades_are_thinned_out() -> None:
    assert len(Scale(1e-20, 1e20, log=True).ticks(6)) <= 7


def test_a_logarithmic_axis_around_values() -> None:
    scale = log_scale([0.01, 1.0, 0.1], 2.0)
    assert scale is not None
    assert (scale.low, scale.high) == (pytest.approx(0.005), pytest.approx(2.0))


def test_close_values_get_an_axis_wide_enough_to_read() -> None:
    scale = log_scale([1.0, 1.01])
    assert scale is not None
    assert scale.high / scale.low > 2


@pytest.mark.parametrize("values", [[], [0.0], [-1.0, math.nan], [math.inf]])
def test_no_axis_without_a_positive_finite_value(values: list[float]) -> None:
    assert log_scale(values) is None


def test_values_that_cannot_be_shown_are_left_out_of_the_axis() -> None:
    assert log_scale([math.inf, 0.0, 1.0, 4.0], 1.0) == Scale(1.0, 4.0, log=True)
