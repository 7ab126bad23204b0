"""Measuring a machine gives a rate for everything that an estimate of time divides by."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compress.planning import measure
from compress.planning.measure import MEASURED, measure_machine
from compress.recipe.registry import find
from compress.system.machine import cpu_name


def test_every_rate_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_SHAPE", (16, 64))
    monkeypatch.setattr(measure, "_COPIED", 1 << 12)
    monkeypatch.setattr(measure, "_FILE", 1 << 20)
    found = measure_machine(torch.device("cpu"), tmp_path)
    assert set(found.products) == {"float32", "bfloat16", "float16"}
    assert set(found.solvers) == {find("solver", name).__name__ for name in MEASURED}
    assert all(rate > 0 for rate in (*found.products.values(), *found.solvers.values()))
    assert min(found.bandwidth, found.read, found.write) > 0
    assert (found.cpu, found.threads, found.device) == (cpu_name(), torch.get_num_threads(), "cpu")
    assert found.day
    assert not list(tmp_path.iterdir())


def test_a_solver_over_what_is_expected_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "MEASURED", {"nearest": "quantize"})
    monkeypatch.setattr(measure, "_disk", lambda folder: (1.0, 1.0))
    monkeypatch.setattr(measure, "_bandwidth", lambda device: 2600 * 256 * 256.0)
    monkeypatch.setattr(measure, "_solver_seconds", lambda name, kind, device: 3 * 1.005)
    assert measure_machine(torch.device("cpu"), tmp_path).solvers == {"Nearest": pytest.approx(3.0)}


def test_the_first_try_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0.0, 1.0, 3.0, 4.0, 5.0, 6.0, 9.0])
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(ticks))
    assert measure._best(lambda: None, torch.device("cpu")) == 1.0
