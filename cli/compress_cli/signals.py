"""Signals that ask a command to stop: all end it as Ctrl-C does, so that everything is tidied up."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

ASKING_TO_STOP = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)
)


class Terminated(KeyboardInterrupt):
    """A signal asked the command to stop; ``status`` is what the process exits with, as shells count."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.status = 128 + number


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Raise :class:`Terminated` in the main thread for every signal of :data:`ASKING_TO_STOP`.

    One that is ignored already (under ``nohup``, say) stays so. Outside of the main thread nothing is changed.
    """
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in ASKING_TO_STOP:
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, _stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int, frame: FrameType | None) -> None:
    raise Terminated(number)
