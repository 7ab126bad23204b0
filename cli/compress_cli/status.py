"""Status: the phase that a command is in, on stderr, so that no command is silent for long.

On a terminal it is a line with the seconds that have passed, which goes away; elsewhere a line for the first second, for every
phase that takes longer than one, and every ten seconds. Phases are the records of level INFO that the library logs.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Self, TextIO

from compress_cli.messages import shortened

LOGGERS = ("compress", "compress_kernels")
FIRST = 1.0
"""Seconds of a phase before the first sign of it."""
AGAIN = 10.0
"""Seconds between two lines of one phase, where stderr is not a terminal."""
STARTING = "starting"
IMPORTING = "importing torch and transformers"
_TICK = 0.2
_CLEAR = "\r\x1b[2K"
_LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)
"""What is printed without ``-v``, with ``-v`` and with ``-vv``."""


class Status(logging.Handler):
    """Shows the phase of a command; a handler of the loggers of the library.

    Args:
        stream: where to; a terminal gets a line that is written over.
        verbosity: how often ``-v`` was given: 0 prints warnings, 1 phases too, 2 everything that is logged.
        quiet: print nothing but what is logged.
    """

    def __init__(self, stream: TextIO, verbosity: int = 0, *, quiet: bool = False) -> None:
        super().__init__(logging.INFO if verbosity < 2 else logging.DEBUG)
        self._stream, self._verbosity = stream, min(verbosity, 2)
        self._terminal, self._held = stream.isatty(), quiet
        self._phase = STARTING
        self._imports = "torch" not in sys.modules  # its import, once it begins, is what takes time
        self._since = self._signed = time.monotonic()
        self._shown = False  # a line of the terminal that is to be cleared
        self._told = ""  # the phase of which a line was printed
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="status")
        self._levels: dict[str, int] = {}

    def __enter__(self) -> Self:
        for name in LOGGERS:
            logger = logging.getLogger(name)
            self._levels[name] = logger.level
            logger.setLevel(self.level)
            logger.addHandler(self)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        self._thread.join()
        self.clear()
        for name, level in self._levels.items():
            logger = logging.getLogger(name)
            logger.setLevel(level)
            logger.removeHandler(self)
        self.close()

    def emit(self, record: logging.LogRecord) -> None:
        """Take an INFO record as the phase; print what ``-v`` asks for, and warnings always."""
        text = shortened(record.getMessage())
        if record.levelno == logging.INFO:
            self.phase(text)
        if record.levelno >= _LEVELS[self._verbosity]:
            self._line(self._stamped(record, text))

    @property
    def verbose(self) -> bool:
        """Whether phases are printed in lines of their own."""
        return self._verbosity > 0

    def phase(self, text: str) -> None:
        """Say what is being done from now on."""
        with self._locked():
            if text != self._phase:
                self._phase, self._since = text, time.monotonic()

    def hold(self) -> None:
        """Show no phases from now on: bars or results do."""
        with self._locked():
            self._held = True
            self._erase()

    def resume(self) -> None:
        """Show phases again."""
        with self._locked():
            self._held = False
            self._since = self._signed = time.monotonic()

    def clear(self) -> None:
        """Take the line of the terminal away, before something else is written."""
        with self._locked():
            self._erase()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the handler's lock."""
        self.acquire()
        try:
            yield
        finally:
            self.release()

    def _watch(self) -> None:
        while not self._closed.wait(_TICK):
            self._sign_unless_held()

    def _sign_unless_held(self) -> None:
        with self._locked():
            if not self._held:
                self._sign(time.monotonic())

    def _sign(self, now: float) -> None:
        if self._phase == STARTING and self._imports and "torch" in sys.modules:
            self._phase = IMPORTING
        passed = now - self._since
        if self._terminal:
            if now - self._signed >= FIRST or self._shown:
                self._stream.write(f"{_CLEAR}{self._phase} … {passed:.0f} s")
                self._stream.flush()
                self._shown = True
            return
        fresh = self._told != self._phase
        # A phase that lasts is told at once, and the first of all; of phases that are short one is told now and then.
        soon = not self._told or (fresh and passed >= FIRST)
        if now - self._signed >= (FIRST if soon else AGAIN):
            self._told, self._signed = self._phase, now
            self._write(f"{self._phase} …" if fresh else f"{self._phase} … {passed:.0f} s")

    def _stamped(self, record: logging.LogRecord, text: str) -> str:
        return text if not self._verbosity else f"{time.strftime('%H:%M:%S')} {record.name}: {text}"

    def _line(self, text: str) -> None:
        with self._locked():
            self._erase()
            self._told, self._signed = self._phase, time.monotonic()
            self._write(text)

    def _write(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()

    def _erase(self) -> None:
        if self._shown:
            self._stream.write(_CLEAR)
            self._stream.flush()
            self._shown = False


_CURRENT: ContextVar[Status | None] = ContextVar("status", default=None)


def current_status() -> Status | None:
    """The status of the command that runs, if there is one."""
    return _CURRENT.get()


def results_follow() -> None:
    """Take the status away for good: what the command prints on stdout follows."""
    status = current_status()
    if status is not None:
        status.hold()


@contextmanager
def status_shown(verbosity: int = 0, *, quiet: bool = False) -> Iterator[Status]:
    """Show the phases of what is done inside, on stderr."""
    with Status(sys.stderr, verbosity, quiet=quiet) as status:
        token = _CURRENT.set(status)
        try:
            yield status
        finally:
            _CURRENT.reset(token)
