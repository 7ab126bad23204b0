"""Progress: how a long job reports its state to a listener."""

from __future__ import annotations

from typing import Protocol


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
