"""The progress bars of a library that prints its own (tqdm), told to a function in place of the terminal."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from typing import TextIO

_BAR = re.compile(r"\A\r(?:(?P<what>[^|%]*?):)?\s*\d+%\|.*\|\s*(?P<done>\d+)/(?P<total>\d+) \[")
"""What tqdm writes at each step: a return, a name, percent, the bar, the done and the whole."""


@contextmanager
def bars_told_to(progress: Callable[[str, int, int], None] | None) -> Iterator[None]:
    """Tell bars that are written to stderr to a function; everything else goes there as before.

    Args:
        progress: called with the bar's name ("" where it has none), the done and the whole; None drops the bars.
    """
    with redirect_stderr(_Stderr(sys.stderr, progress)):
        yield


class _Stderr(io.TextIOBase):
    """A stream before another one, which takes the bars out."""

    def __init__(self, stream: TextIO, progress: Callable[[str, int, int], None] | None) -> None:
        self._stream = stream
        self._progress = progress
        self._in_bar = False

    def write(self, text: str) -> int:
        """Pass a text on, or tell it as a step of a bar."""
        if text.startswith("\r"):
            self._in_bar = True
            found = _BAR.match(text)
            if found is not None and self._progress is not None:
                self._progress((found["what"] or "").strip(), int(found["done"]), int(found["total"]))
        elif self._in_bar and text == "\n":
            self._in_bar = False
        elif text:
            self._in_bar = False
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Pass on what is waiting."""
        self._stream.flush()

    def isatty(self) -> bool:
        """Whether the stream behind is a terminal."""
        return self._stream.isatty()
