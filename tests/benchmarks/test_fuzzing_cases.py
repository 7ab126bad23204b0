"""How the fuzzer tells a command that hangs from one that waits for a processor."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from benchmarks.fuzzing import cases


def forked(work: Callable[[], object]) -> int:
    """A child that does the work in a group of processes of its own and ends with status 3."""
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        work()
        os._exit(3)
    return child


def busy() -> None:
    """Half a second of processor time."""
    start = time.process_time()
    while time.process_time() - start < 0.5:
        pass


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases, "IDLE_SECONDS", 1.0)
    monkeypatch.setattr(cases, "POLL_SECONDS", 0.05)


def test_a_command_that_sleeps_is_ended_as_a_hang() -> None:
    assert cases._wait(forked(lambda: time.sleep(60))) == -signal.SIGALRM


def test_a_command_that_computes_for_longer_is_not() -> None:
    assert cases._wait(forked(busy)) == 3


def test_nor_one_that_waits_for_a_process_that_computes() -> None:
    script = "import time\nwhile time.process_time() < 0.6: pass"
    command = [sys.executable, "-S", "-c", script]
    assert cases._wait(forked(lambda: subprocess.run(command, check=True))) == 3
