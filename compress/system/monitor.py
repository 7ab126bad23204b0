"""Monitor: time and peak memory of a run by step."""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

_INTERVAL = 0.02
SECONDS, PEAK, WALL = "seconds of ", "peak of ", "wall seconds"
"""Keys of a record: prefixes of step names, and the time of the clock."""
WAIT = "wait"
"""The name of the step that does nothing until the disk has done its part."""
START, END = "start of ", "end of "
"""Keys of a span: when a block's step began and ended, in seconds of the run."""
_STATUS = Path("/proc/self/status")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_LARGE_PIECE = 8 << 20


def anonymous_bytes() -> int | None:
    """Resident anonymous memory in bytes, without mapped checkpoints; None where the system does not say."""
    try:
        text = _STATUS.read_text()
    except OSError:
        return None
    for line in text.splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return None


def keep_little_free_memory(piece: int | None = None) -> None:
    """Make the C library (glibc) return large pieces of freed memory to the system at once, for the rest of the process.

    By default it keeps pieces of up to 32 MB, a few for every size of weight. It still keeps smaller ones, which are used
    again soon.

    Args:
        piece: bytes of the smallest piece that is returned; 8 MB if ``None``.
    """
    libc, piece = _glibc(), piece or _LARGE_PIECE
    if libc is not None:
        libc.mallopt(_M_MMAP_THRESHOLD, piece)
        libc.mallopt(_M_TRIM_THRESHOLD, 8 * piece)


def return_free_memory() -> None:
    """Return all freed memory to the system, where the C library can (glibc)."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    return library if hasattr(library, "malloc_trim") and hasattr(library, "mallopt") else None


def span_record(name: str, began: float, ended: float) -> dict[str, float]:
    """A span as plain numbers."""
    return {f"{START}{name}": began, f"{END}{name}": ended}


def added(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
    """Two records of :meth:`Monitor.record` as one: seconds added up, of peaks the higher."""
    keys = dict.fromkeys((*first, *second))
    pairs = {key: (first.get(key, 0.0), second.get(key, 0.0)) for key in keys}
    return {key: max(pair) if key.startswith(PEAK) else sum(pair) for key, pair in pairs.items()}


@dataclass
class Monitor:
    """Seconds and peak memory by step; memory counts beyond what the process took when the monitor was opened.

    A thread samples the memory a few dozen times a second while the monitor is open.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    peaks: dict[str, int] = field(default_factory=dict)
    block_seconds: dict[str, float] = field(default_factory=dict)
    block_spans: dict[str, tuple[float, float]] = field(default_factory=dict)
    block_peak: int = 0
    device_peak: int = 0
    _host_peak: int = 0
    earlier_wall: float = 0.0
    _began: float | None = None
    _recorded: dict[str, float] = field(default_factory=dict)
    _base: int = 0
    _step: str = "setup"
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._began = time.perf_counter()
        self._base = anonymous_bytes() or 0
        if anonymous_bytes() is not None:
            self._thread = threading.Thread(target=self._sample, daemon=True, name="memory monitor")
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
            self.span(name, self.wall - took, self.wall)
            self._look()
            self._step = before

    def span(self, name: str, began: float, ended: float) -> None:
        """Something of this block was done between two times of :attr:`wall`, here or in the background."""
        first, last = self.block_spans.get(name, (began, ended))
        self.block_spans[name] = min(first, began), max(last, ended)

    @property
    def wall(self) -> float:
        """Seconds since the monitor was opened, and those that were restored."""
        return self.earlier_wall + (0.0 if self._began is None else time.perf_counter() - self._began)

    def record(self) -> dict[str, float]:
        """Seconds by step and wall time since the last record, and peaks so far, for :meth:`restore` in another process."""
        now = {f"{SECONDS}{name}": value for name, value in self.seconds.items()} | {WALL: self.wall}
        fresh = {key: value - self._recorded.get(key, 0.0) for key, value in now.items()}
        self._recorded = now
        return fresh | {f"{PEAK}{name}": float(value) for name, value in self.peaks.items()}

    def restore(self, record: Mapping[str, float]) -> None:
        """Add what an earlier process has recorded of the same run; other keys do not matter."""
        for key, value in record.items():
            if key.startswith(SECONDS):
                name = key.removeprefix(SECONDS)
                self.seconds[name] = self.seconds.get(name, 0.0) + value
                self._recorded[key] = self._recorded.get(key, 0.0) + value
            elif key.startswith(PEAK):
                name = key.removeprefix(PEAK)
                self.peaks[name] = max(self.peaks.get(name, 0), int(value))
        self.earlier_wall += record.get(WALL, 0.0)
        self._recorded[WALL] = self._recorded.get(WALL, 0.0) + record.get(WALL, 0.0)

    def begin_block(self) -> None:
        """Start counting time and memory of the next block."""
        self.block_seconds, self.block_spans = {}, {}
        self.block_peak = 0

    def block_record(self) -> dict[str, float]:
        """Seconds, spans and peak memory of the block so far, and what :meth:`record` says, for a line in a journal."""
        spans = (span_record(name, *span) for name, span in self.block_spans.items())
        record: dict[str, float] = {**self.block_seconds, "peak_bytes": self.block_peak}
        return record | {key: value for span in spans for key, value in span.items()} | self.record()

    @property
    def peak(self) -> int | None:
        """The highest memory of all steps and now, in bytes; None where the system does not say."""
        if anonymous_bytes() is None:
            return None
        self._look()
        return max(self.peaks.values())

    @property
    def host_peak(self) -> int | None:
        """The same of the host alone; ``device_peak`` is that of an accelerator."""
        return None if self.peak is None else self._host_peak

    def _sample(self) -> None:
        while not self._stop.wait(_INTERVAL):
            self._look()

    def _look(self) -> None:
        now = (anonymous_bytes() or self._base) - self._base
        self._host_peak = max(self._host_peak, now)
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            allocated = torch.cuda.memory_allocated()
            self.device_peak, now = max(self.device_peak, allocated), max(now, allocated)
        self.peaks[self._step] = max(self.peaks.get(self._step, 0), now)
        self.block_peak = max(self.block_peak, now)
