"""Reading ahead: a thread has the system read what is needed next, while this block is solved.

What is read goes into the system's cache of files, where the mappings of :class:`~compress.checkpoint.source.Source`
find it; the process keeps none of it. A hint to the system does not do: of a large range it has a part read, and it does
not say when.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from compress.checkpoint.headers import TensorInfo

AHEAD = "read ahead"
"""The name of the time in which a block is read."""
_PIECE = 1 << 20
"""Bytes that are read at once, into memory that is used again."""


class ReadAhead:
    """Reads tensors' bytes in the background; a context manager, whose end stops the reading.

    Args:
        clock: gives the time, for :meth:`wait`.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, "read-ahead")
        self._stop = threading.Event()
        self._reading: Future[tuple[float, float]]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.shutdown()

    def begin(self, tensors: Iterable[TensorInfo]) -> None:
        """Read these tensors, as they lie on disk, in the background; after those of the last call."""
        self._reading = self._thread.submit(self._read, _ranges(tensors))

    def wait(self) -> tuple[float, float]:
        """Wait for what was begun last; when its reading began and ended."""
        return self._reading.result()

    def _read(self, ranges: list[tuple[Path, int, int]]) -> tuple[float, float]:
        began, buffer = self._clock(), memoryview(bytearray(_PIECE))
        for path, of_file in itertools.groupby(ranges, lambda one: one[0]):
            try:
                with path.open("rb", buffering=0) as file:
                    for _, start, end in of_file:
                        self._read_range(file.fileno(), start, end, buffer)
            except OSError:
                continue  # whoever needs the tensor says what is wrong with the file
        return began, self._clock()

    def _read_range(self, descriptor: int, start: int, end: int, buffer: memoryview) -> None:
        while start < end and not self._stop.is_set():
            count = os.preadv(descriptor, [buffer[: end - start]], start)
            start = start + count if count else end


def _ranges(tensors: Iterable[TensorInfo]) -> list[tuple[Path, int, int]]:
    """File, first byte and end of each run of bytes, in the order of the files; tensors side by side are one."""
    found: list[tuple[Path, int, int]] = []
    for info in sorted(tensors, key=lambda info: (str(info.file), info.offset)):
        start, end = info.offset, info.offset + info.nbytes
        if found and found[-1][0] == info.file and start <= found[-1][2]:
            start, end = found[-1][1], max(end, found.pop()[2])
        if end > start:
            found.append((info.file, start, end))
    return found
