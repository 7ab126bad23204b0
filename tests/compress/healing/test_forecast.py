"""The forecast: a power law is found again, and a curve without one gives none."""

from __future__ import annotations

import pytest

from compress.healing.forecast import forecast


def test_a_power_law_is_continued() -> None:
    points = [(0, 9.0), *((1000 * k, 0.3 + 2.0 * (1000 * k) ** -0.5) for k in range(1, 9))]
    assert forecast(points) == pytest.approx(0.3 + 2.0 * 16_000**-0.5, rel=1e-6)


@pytest.mark.parametrize(
    "points",
    [
        [(0, 1.0), (10, 0.5), (20, 0.4)],
        [(10 * k, 1.0 + 0.1 * k) for k in range(8)],
        [(10 * k, float("nan")) for k in range(8)],
    ],
)
def test_too_few_points_and_rising_curves_give_none(points: list[tuple[int, float]]) -> None:
    assert forecast(points) is None
