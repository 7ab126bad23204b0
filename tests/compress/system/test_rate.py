"""The rate of products is measured in both dtypes that a run computes in."""

from __future__ import annotations

import pytest
import torch

from compress.system import rate
from compress.system.rate import measure_rate


def test_multiply_adds_over_the_least_time(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0.0, 5.0, 10.0, 12.0, 20.0, 23.0] * 2)
    monkeypatch.setattr(rate, "_REPEATS", 2)
    monkeypatch.setattr(rate.time, "perf_counter", lambda: next(ticks))
    found = measure_rate(torch.device("cpu"), torch.bfloat16)
    assert found.blocks == found.statistics == rate._ROWS * rate._SIDE**2 / 2
    assert next(ticks, None) is None
