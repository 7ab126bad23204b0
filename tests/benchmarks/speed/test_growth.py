"""Growth of solvers with the width: exponents, what is left out, and a run on tiny weights."""

from __future__ import annotations

import pytest

from benchmarks.speed import growth


def test_exponents_and_what_is_expected_of_the_next_width() -> None:
    assert growth.exponent((512, 1.0), (1024, 8.0)) == pytest.approx(3.0)
    assert growth.expected([], 512) == 0.0
    assert growth.expected([(512, 2.0)], 1024) == pytest.approx(16.0)
    assert growth.expected([(256, 1.0), (512, 16.0)], 1024) == pytest.approx(256.0)
    assert growth.expected([(256, 1.0), (512, 2.0)], 1024) == pytest.approx(16.0)


def test_a_row_says_growth_and_what_is_over_the_limit() -> None:
    assert growth.row("x", [(64, 1.0), (128, 4.0)], [64, 128, 256]) == ["x", "1", "4 (2.0)", "over the limit"]


@pytest.mark.parametrize("name", list(growth.CASES))
def test_every_case_runs_and_stops_at_the_limit(name: str) -> None:
    times = growth.measured(name, [128, 1 << 20], limit=600.0)
    assert [width for width, _ in times] == [128]
    assert times[0][1] > 0


def test_moments_are_those_of_correlated_inputs() -> None:
    found = growth.moment(64, seed=0)
    values = growth.torch.linalg.eigvalsh(found)
    assert values.min() > 0
    assert values.max() > 20 * values.median()
    assert not growth.torch.equal(found, growth.moment(64, seed=1))
