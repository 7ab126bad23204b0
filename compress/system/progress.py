"""Progress: how a long job reports its state to a listener."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

from compress.errors import UserError


class Progress(Protocol):
    """A listener. The job calls it in this order: start, then for each block its weights, then finish.

    Every call returns at once; a listener never stops the job, except by an exception of its own.
    """

    def start(self, total_blocks: int, total_weights: int, total_bytes: int) -> None:
        """The job begins: how many blocks and weights there are, and the dense bytes of those weights."""

    def block(self, index: int) -> None:
        """Block `index`, from 0, begins."""

    def weight(self, name: str, nbytes: int) -> None:
        """The weight `name` is done; `nbytes` is what it took dense."""

    def step(self, name: str) -> None:
        """What is being done now, in a word or two: "statistics", "solving", "verifying"."""

    def train(self, done: int, total: int, figures: str) -> None:
        """Steps of a training that are done, of how many, and its figures in words."""

    def note(self, text: str) -> None:
        """Something the person should know, in one sentence; it stays on the screen."""

    def finish(self) -> None:
        """The job is over, well or not; called exactly once after start."""


@dataclass(frozen=True)
class ProgressEvent:
    """Where a job stands, for a function that is called as it advances.

    Attributes:
        step: what is being done, in a word or two.
        block, blocks: the block, counted from 1, and how many there are; 0 before the first.
        weights, total_weights: weights that are done, and all.
        done_bytes, total_bytes: the same in bytes of the dense weights.
        note: a sentence for people, where there is one.
        finished: whether the job is over.
    """

    step: str = "starting"
    block: int = 0
    blocks: int = 0
    weights: int = 0
    total_weights: int = 0
    done_bytes: int = 0
    total_bytes: int = 0
    note: str | None = None
    finished: bool = False


class Calls:
    """A listener that calls a function with every change."""

    def __init__(self, function: Callable[[ProgressEvent], object]) -> None:
        self._function, self._event = function, ProgressEvent()

    def start(self, total_blocks: int, total_weights: int, total_bytes: int) -> None:
        """Tell how much there is."""
        self._tell(blocks=total_blocks, total_weights=total_weights, total_bytes=total_bytes)

    def block(self, index: int) -> None:
        """Tell the block."""
        self._tell(block=index + 1)

    def weight(self, name: str, nbytes: int) -> None:
        """Tell that a weight is done."""
        event = self._event
        self._tell(weights=event.weights + 1, done_bytes=event.done_bytes + nbytes)

    def step(self, name: str) -> None:
        """Tell the step."""
        self._tell(step=name)

    def train(self, done: int, total: int, figures: str) -> None:
        """Tell the steps of a training as the step."""
        self._tell(step=f"training: {done} of {total} steps, {figures}")

    def note(self, text: str) -> None:
        """Tell the sentence, once."""
        self._function(replace(self._event, note=text))

    def finish(self) -> None:
        """Tell that the job is over."""
        self._tell(finished=True)

    def _tell(self, **changes: Any) -> None:
        self._event = replace(self._event, **changes)
        self._function(self._event)


def listener_of(progress: Progress | Callable[[ProgressEvent], object] | None) -> Progress:
    """What a caller gave as a listener: itself, calls of a function, or silence for ``None``.

    Raises:
        UserError: it is neither a listener nor a function.
    """
    if progress is None:
        return Silent()
    if all(
        callable(getattr(progress, name, None))
        for name in ("start", "block", "weight", "step", "note", "finish")
    ):
        return cast(Progress, progress)
    if callable(progress):
        return Calls(progress)
    raise UserError(f"progress is a function of one ProgressEvent, or None, not {type(progress).__name__}")


class Silent:
    """A listener that does nothing."""

    def start(self, total_blocks: int, total_weights: int, total_bytes: int) -> None:
        """Ignore it."""

    def block(self, index: int) -> None:
        """Ignore it."""

    def weight(self, name: str, nbytes: int) -> None:
        """Ignore it."""

    def step(self, name: str) -> None:
        """Ignore it."""

    def train(self, done: int, total: int, figures: str) -> None:
        """Ignore it."""

    def note(self, text: str) -> None:
        """Ignore it."""

    def finish(self) -> None:
        """Ignore it."""
