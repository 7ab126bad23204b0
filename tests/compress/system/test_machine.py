"""What was measured of a machine is kept for that machine alone, and nothing damaged is believed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from compress.errors import UserError
from compress.system.machine import Machine, cache_file, cpu_name, store_machine, stored_machine

KEPT = Machine(
    {"float32": 2e9, "bfloat16": 4e9}, 5e9, 6e9, 7e9, {"GPTQ": 1.5}, cpu_name(), 3, "cpu", "2026-01-02"
)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_what_is_stored_comes_back_for_as_many_threads_and_this_processor() -> None:
    assert stored_machine("cpu", 3) is None
    store_machine(KEPT)
    store_machine(replace(KEPT, device="cuda", bandwidth=1e12))
    assert stored_machine("cpu", 3) == KEPT
    assert stored_machine("cuda", 3) == replace(KEPT, device="cuda", bandwidth=1e12)
    assert stored_machine("cpu", 2) is None
    store_machine(replace(KEPT, cpu="another"))
    assert stored_machine("cpu", 3) is None


@pytest.mark.parametrize(
    "text", ["", "[]", '{"cpu": 3}', '{"cpu": {"version": 1}}', '{"cpu": {"version": 1, "products": {}}}']
)
def test_a_damaged_file_is_none(text: str) -> None:
    cache_file().parent.mkdir(parents=True)
    cache_file().write_text(text)
    assert stored_machine("cpu", 3) is None
    store_machine(KEPT)
    assert stored_machine("cpu", 3) == KEPT


@pytest.mark.parametrize(
    "bad", [{"bandwidth": 0.0}, {"products": {"float32": -1.0}}, {"solvers": {"GPTQ": 0.0}}]
)
def test_rates_that_cannot_be_are_not_believed(bad: dict[str, object]) -> None:
    store_machine(replace(KEPT, **bad))  # type: ignore[arg-type]
    assert stored_machine("cpu", 3) is None


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match="set XDG_CACHE_HOME"):
        store_machine(KEPT)


def test_rates_of_what_was_not_measured() -> None:
    assert KEPT.product_rate("bfloat16") == 4e9
    assert KEPT.product_rate("float16") == 2e9
    assert (KEPT.solver("GPTQ"), KEPT.solver("AWP")) == (1.5, 1.0)
    assert "measured on 2026-01-02" in KEPT.source
    assert "--measure" in Machine({"float32": 1.0}).source
