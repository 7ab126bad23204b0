"""The engine in a thread of its own, whose answers come piece by piece and end where nobody waits for them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from .engine import Answered, Asked, Engine
from .turns import Ticket, Turns

T = TypeVar("T")
Receive = Callable[[], Awaitable[Any]]
Emit = Callable[[str], Awaitable[None]]


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


class Closing(Exception):
    """The server is being stopped."""


class Service:
    """Answers one request at a time.

    Args:
        engine: the model.
        waiting: requests that may wait while another is answered.
    """

    def __init__(self, engine: Engine, waiting: int) -> None:
        self.engine, self._turns = engine, Turns(waiting)
        self._closed = threading.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="answers")

    def take_turn(self) -> Ticket:
        """A place in the queue.

        Raises:
            Full: there is none.
            Closing: the server is being stopped.
        """
        if self._closed.is_set():
            raise Closing
        return self._turns.take()

    @property
    def taken(self) -> int:
        """Requests that are answered or wait."""
        return self._turns.held

    async def answer(self, ticket: Ticket, asked: Asked, emit: Emit) -> Answered:
        """Wait for the turn, then answer; a cancelled task ends the model's work at its next token.

        Args:
            ticket: the place in the queue; it is given back in any case.
            asked: the request.
            emit: gets the text piece by piece.

        Raises:
            Closing: the server is being stopped.
            UserError: as :meth:`Engine.answer`.
        """
        try:
            async with ticket:
                return await self._answer(asked, emit)
        finally:
            ticket.release()

    async def _answer(self, asked: Asked, emit: Emit) -> Answered:
        if self._closed.is_set():
            raise Closing
        loop, left = asyncio.get_running_loop(), threading.Event()
        pieces: asyncio.Queue[str | None] = asyncio.Queue()

        def write(text: str | None) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, text)

        def work() -> Answered:
            try:
                return self.engine.answer(asked, write, lambda: left.is_set() or self._closed.is_set())
            finally:
                write(None)

        done = loop.run_in_executor(self._thread, work)
        try:
            while (piece := await pieces.get()) is not None:
                await emit(piece)
            answered = await done
        finally:
            left.set()
            await asyncio.wait({done})
        if self._closed.is_set():
            raise Closing
        return answered

    def close(self) -> None:
        """End the answer that is being made, and take no further request."""
        self._closed.set()


async def until_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Do ``work`` and leave off when the client closes the connection.

    Args:
        receive: ASGI's, after the body has been read.
        work: what to do.

    Raises:
        ClientGone: the client did not wait for the end.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
