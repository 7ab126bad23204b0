"""Seconds and memory by step: added up, kept as peaks, begun anew with each block. Clock and memory are made up."""

from __future__ import annotations

import mmap
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from compress.system import monitor as module
from compress.system.monitor import Monitor, anonymous_bytes, keep_little_free_memory, return_free_memory


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A clock and a memory that stand where the test puts them; nobody samples in between."""
    state = SimpleNamespace(now=0.0, memory=1000)
    monkeypatch.setattr(module.time, "perf_counter", lambda: state.now)
    monkeypatch.setattr(module, "anonymous_bytes", lambda: state.memory)
    monkeypatch.setattr(module, "_INTERVAL", 3600)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return state


def test_seconds_add_up_by_step(machine: Any) -> None:
    with Monitor() as monitor:
        for name, seconds in (("load", 1.0), ("solve", 5.0), ("load", 2.0)):
            with monitor.step(name):
                machine.now += seconds
    assert monitor.seconds == {"load": 3.0, "solve": 5.0}
    assert list(monitor.seconds) == ["load", "solve"]


def test_a_step_that_fails_counts(machine: Any) -> None:
    with Monitor() as monitor:
        with pytest.raises(RuntimeError), monitor.step("solve"):
            machine.now += 4.0
            raise RuntimeError
        machine.memory = 5000
        assert monitor.peak == 4000
    assert monitor.seconds == {"solve": 4.0}
    assert monitor.peaks["setup"] == 4000  # after the step the time outside of steps goes on


def test_peaks_are_beyond_the_start(machine: Any) -> None:
    with Monitor() as monitor:
        with monitor.step("load"):
            machine.memory = 1500
        with monitor.step("solve"):
            machine.memory = 4000
        machine.memory = 1200
        with monitor.step("load"):
            machine.memory = 1700
        machine.memory = 1100
        assert monitor.peak == 3000
    assert monitor.peaks["load"] == 700
    assert monitor.peaks["solve"] == 3000


def test_every_block_begins_anew(machine: Any) -> None:
    with Monitor() as monitor:
        with monitor.step("load"):
            machine.now, machine.memory = 1.0, 3000
        monitor.begin_block()
        assert (monitor.block_seconds, monitor.block_peak) == ({}, 0)
        with monitor.step("load"):
            machine.now, machine.memory = 3.0, 1400
        assert monitor.block_seconds == {"load": 2.0}
        with monitor.step("solve"):
            machine.memory = 1100
        assert monitor.block_peak == 400
        assert monitor.seconds == {"load": 3.0, "solve": 0.0}


def test_a_system_that_does_not_tell_its_memory(machine: Any) -> None:
    machine.memory = None
    with Monitor() as monitor:
        with monitor.step("load"):
            machine.now = 1.0
        assert monitor.peak is None
    assert monitor.seconds == {"load": 1.0}


def test_memory_of_a_gpu_counts(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 9000)
    with Monitor() as monitor, monitor.step("solve"):
        machine.memory = 1500
    assert monitor.peaks["solve"] == 9000


def test_memory_between_two_looks_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread looks while the step runs; it is gone when the monitor is closed."""
    looked = threading.Event()
    values = iter([1000, 1000, 8000])

    def memory() -> int:
        value = next(values, 1000)
        if value == 8000:
            looked.set()
        return value

    monkeypatch.setattr(module, "anonymous_bytes", memory)
    monkeypatch.setattr(module, "_INTERVAL", 0.001)
    before = threading.active_count()
    with Monitor() as monitor, monitor.step("solve"):
        assert looked.wait(30)
    assert threading.active_count() == before
    assert max(monitor.peaks.values()) == 7000


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_anonymous_memory_is_that_of_the_kernel() -> None:
    before = anonymous_bytes()
    # Fresh pages of the system: an allocator could hand out memory that was counted already.
    with mmap.mmap(-1, 16 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as block:
        block.write(b"x" * len(block))
        after = anonymous_bytes()
        assert before is not None
        assert after is not None
        assert after - before > 0.9 * len(block)


def test_a_system_without_proc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "_STATUS", tmp_path / "missing")
    assert anonymous_bytes() is None
    (tmp_path / "status").write_text("Name:\tpython\nVmRSS:\t 12 kB\n")
    monkeypatch.setattr(module, "_STATUS", tmp_path / "status")
    assert anonymous_bytes() is None
    (tmp_path / "status").write_text("VmRSS:\t 12 kB\nRssAnon:\t    7 kB\n")
    assert anonymous_bytes() == 7 * 1024


@pytest.mark.parametrize("there", [True, False])
def test_the_c_library_is_asked_only_where_it_can(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    libc = SimpleNamespace(
        malloc_trim=lambda pad: calls.append(("trim", pad)),
        mallopt=lambda key, value: calls.append((key, value)),
    )
    monkeypatch.setattr(module, "_glibc", lambda: libc if there else None)
    keep_little_free_memory()
    return_free_memory()
    assert calls == ([(-3, 8 << 20), (-1, 64 << 20), ("trim", 0)] if there else [])


def test_a_continued_run_adds_up_what_was_recorded() -> None:
    with Monitor() as first:
        first.seconds, first.peaks = {"prune": 5.0}, {"prune": 70}
        before = first.record()
        first.seconds = {"prune": 5.0, "solve": 2.0}
        second_block = first.record()
    assert before["seconds of prune"] == 5.0
    assert (second_block["seconds of prune"], second_block["seconds of solve"]) == (0.0, 2.0)
    with Monitor() as again:
        again.seconds, again.peaks = {"prune": 1.0}, {"prune": 90, "solve": 10}
        for record in (before, second_block):
            again.restore({**record, "solve": 2.0, "peak_bytes": 4.0})
        assert again.seconds == {"prune": 6.0, "solve": 2.0}
        assert again.peaks == {"prune": 90, "solve": 10}
        earlier = before["wall seconds"] + second_block["wall seconds"]
        assert again.wall > earlier > 0
        # What this process has spent before the first restored block is its own, and is recorded with its next block.
        fresh = again.record()
        assert (fresh["seconds of prune"], fresh["seconds of solve"]) == (1.0, 0.0)
        assert 0 < fresh["wall seconds"] < again.wall - earlier + 1e-3


def test_a_block_knows_when_its_steps_were(machine: Any) -> None:
    with Monitor() as monitor:
        monitor.restore({"wall seconds": 10.0})
        monitor.begin_block()
        for seconds in (1.0, 2.0):
            with monitor.step("solve"):
                machine.now += seconds
            machine.now += 0.5
        monitor.span("read ahead", 8.0, 9.0)
        monitor.span("read ahead", 7.0, 8.5)
        assert monitor.block_spans == {"solve": (10.0, 13.5), "read ahead": (7.0, 9.0)}
        record = monitor.block_record()
        assert {name: record[name] for name in ("solve", "peak_bytes", "start of solve", "end of solve")} == {
            "solve": 3.0,
            "peak_bytes": 0.0,
            "start of solve": 10.0,
            "end of solve": 13.5,
        }
        assert (record["start of read ahead"], record["end of read ahead"]) == (7.0, 9.0)
        assert (record["seconds of solve"], record["wall seconds"]) == (3.0, 4.0)
        monitor.begin_block()
        assert monitor.block_spans == {}
