"""What both runners measure with, so that both measure the same: torch and llama.cpp are not imported here."""

from __future__ import annotations

import time
from pathlib import Path

SHORT, WARM = 16, 8
"""Tokens of the prompt before decoding is measured, and new ones that are not counted."""


def prompt_of(count: int) -> list[int]:
    """Token ids, the same for both."""
    return [5 + 7919 * i % 40000 for i in range(count)]


def resident() -> dict[str, int]:
    """Resident bytes: all, anonymous, of files."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return {key: int(fields[key].split()[0]) * 1024 for key in ("VmRSS", "RssAnon", "RssFile")}


def now() -> tuple[float, float]:
    """The clock, and what this process has had of the processors."""
    return time.perf_counter(), time.process_time()


def since(start: tuple[float, float]) -> list[float]:
    """Seconds of both since then."""
    return [end - begin for begin, end in zip(start, now(), strict=True)]
