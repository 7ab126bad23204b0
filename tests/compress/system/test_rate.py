"""The rate of products is measured in every dtype that is asked for; what was kept of the machine comes before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from compress.system import rate
from compress.system.machine import Machine, cpu_name, store_machine
from compress.system.rate import machine_for, measure_products

CPU = torch.device("cpu")


def test_multiply_adds_over_the_least_time(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0.0, 5.0, 10.0, 12.0, 20.0, 23.0] * 2)
    monkeypatch.setattr(rate, "_REPEATS", 2)
    monkeypatch.setattr(rate.time, "perf_counter", lambda: next(ticks))
    found = measure_products(CPU, (torch.bfloat16, torch.float32))
    assert found == dict.fromkeys(("bfloat16", "float32"), rate._ROWS * rate._SIDE**2 / 2)
    assert next(ticks, None) is None


def test_what_was_measured_comes_before_two_products(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    quick = machine_for(CPU, torch.bfloat16)
    assert set(quick.products) == {"bfloat16", "float32"}
    assert "assumed" in quick.source
    kept = Machine({"float32": 1e9}, cpu=cpu_name(), threads=torch.get_num_threads(), day="2026-01-02")
    store_machine(kept)
    assert machine_for(CPU, torch.bfloat16) == kept
    assert "measured on 2026-01-02" in kept.source
    store_machine(replace(kept, threads=99))
    assert not machine_for(CPU, torch.bfloat16).day
