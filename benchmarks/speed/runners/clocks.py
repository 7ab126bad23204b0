"""What both runners measure with, so that both measure the same: torch and llama.cpp are not imported here."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

SHORT, WARM, TURN = 16, 8, 32
"""Tokens of the prompt before decoding is measured, new ones that are not counted, and those of a turn."""


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


def answer(decode):  # type: ignore[no-untyped-def]
    """For every line that comes, one with the seconds that ``decode()`` says :data:`TURN` tokens took: clock and processor."""
    for _ in sys.stdin:
        print(json.dumps(decode()), flush=True)
