"""Turns: one answer at a time, a few requests waiting, the rest refused."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self


class Full(Exception):
    """As many requests wait as may."""


class Turns:
    """A queue of one place at the model and ``waiting`` before it, first come, first served."""

    def __init__(self, waiting: int) -> None:
        self.waiting, self.held = waiting, 0  # held: places that are taken, the one at the model among them
        self.lock = asyncio.Lock()

    def take(self) -> Ticket:
        """A place in the queue; it is given back when the ticket's block ends, or by :meth:`Ticket.release`.

        Raises:
            Full: there is none.
        """
        if self.held > self.waiting:
            raise Full
        return Ticket(self)


class Ticket:
    """A place in a queue; ``async with`` waits until it is the first."""

    def __init__(self, turns: Turns) -> None:
        self._turns, self._released = turns, False
        turns.held += 1

    def release(self) -> None:
        """Give the place back, once."""
        if not self._released:
            self._released = True
            self._turns.held -= 1

    async def __aenter__(self) -> Self:
        await self._turns.lock.acquire()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._turns.lock.release()
        self.release()
