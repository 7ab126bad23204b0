"""Time and memory of a run, step by step."""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

_INTERVAL = 0.02
_STATUS = Path("/proc/self/status")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_LARGE_PIECE = 8 << 20


def anonymous_bytes() -> int | None:
    """Resident memory of this process that no file backs; mapped checkpoints do not count. None where it cannot be told."""
    try:
        text = _STATUS.read_text()
    except OSError:
        return None
    for line in text.splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return None


def keep_little_free_memory() -> None:
    """Have the C library (glibc) give large pieces back to the system as soon as they are freed, in this process from here on.

    By itself it comes to keep pieces of up to 32 MB, a few of them for every size of weight. Smaller ones it keeps still:
    they come and go too often.
    """
    libc = _glibc()
    if libc is not None:
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGE_PIECE)
        libc.mallopt(_M_TRIM_THRESHOLD, 8 * _LARGE_PIECE)


def return_free_memory() -> None:
    """Give all that was freed back to the system, where the C library can (glibc)."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    return library if hasattr(library, "malloc_trim") and hasattr(library, "mallopt") else None


@dataclass
class Monitor:
    """Adds up seconds by step and keeps the highest memory by step, beyond what the process took at the start.

    A thread looks at the memory a few dozen times a second while the monitor is open.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    peaks: dict[str, int] = field(default_factory=dict)
    block_seconds: dict[str, float] = field(default_factory=dict)
    block_peak: int = 0
    _base: int = 0
    _step: str = "setup"
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._base = anonymous_bytes() or 0
        if anonymous_bytes() is not None:
            self._thread = threading.Thread(target=self._sample, daemon=True, name="memory watch")
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Everything inside counts as ``name``; steps do not nest."""
        before, self._step = self._step, name
        start = time.perf_counter()
        try:
            yield
        finally:
            took = time.perf_counter() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + took
            self.block_seconds[name] = self.block_seconds.get(name, 0.0) + took
            self._look()
            self._step = before

    def begin_block(self) -> None:
        """From here on, time and memory are the next block's."""
        self.block_seconds = {}
        self.block_peak = 0

    @property
    def peak(self) -> int | None:
        """The highest of all steps and of this moment, in bytes; None where memory cannot be told."""
        if anonymous_bytes() is None:
            return None
        self._look()
        return max(self.peaks.values())

    def _sample(self) -> None:
        while not self._stop.wait(_INTERVAL):
            self._look()

    def _look(self) -> None:
        now = (anonymous_bytes() or self._base) - self._base
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            now = max(now, torch.cuda.memory_allocated())
        self.peaks[self._step] = max(self.peaks.get(self._step, 0), now)
        self.block_peak = max(self.block_peak, now)
