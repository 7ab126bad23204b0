"""Progress on stderr: bars on a terminal, a line now and then in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from compress.system import units as words
from compress.system.progress import Progress, Silent
from compress_cli.messages import shortened
from compress_cli.status import Status, current_status

SECONDS_BETWEEN_LINES = 10.0


def listener(*, quiet: bool) -> Progress:
    """Return what shows a job's progress: nothing when quiet, bars on a terminal, lines elsewhere."""
    if quiet:
        return Silent()
    console = Console(stderr=True, highlight=False)
    status = current_status()
    bars = console.is_terminal and not (status is not None and status.verbose)
    return Terminal(console, status) if bars else Lines(console, status)


class _Count:
    """Where the job stands, in weights and in their bytes."""

    def __init__(self) -> None:
        self.blocks = self.weights = self.nbytes = 0
        self.done_weights = self.done_bytes = 0
        self._began = 0.0

    def start(self, total_blocks: int, total_weights: int, total_bytes: int) -> None:
        self.blocks, self.weights, self.nbytes = total_blocks, total_weights, total_bytes
        self._began = time.monotonic()

    def weight(self, nbytes: int) -> None:
        self.done_weights += 1
        self.done_bytes += nbytes

    def __str__(self) -> str:
        share = f"{words.in_bytes(self.done_bytes)} of {words.in_bytes(self.nbytes)}"
        return f"{self.done_weights}/{self.weights} weights · {share} · {self._left()} left"

    def _left(self) -> str:
        # From the start, not from the last seconds: a block of a large model takes minutes and ends in a burst.
        if not self.done_bytes:
            return words.NOTHING
        passed = time.monotonic() - self._began
        return words.in_time(passed * (self.nbytes - self.done_bytes) / self.done_bytes)


class Terminal:
    """One bar for the whole job, by bytes of weights: blocks, weights, bytes, time left, and what is being done."""

    def __init__(self, console: Console, status: Status | None = None) -> None:
        self._console, self._status = console, status
        self._count = _Count()
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=12),
            TextColumn("{task.fields[figures]}"),
            TextColumn("[dim]{task.fields[step]}"),
            console=console,
            transient=True,
        )
        self._task = self._bars.add_task("block", total=None, figures="", step="")

    def start(self, total_blocks: int, total_weights: int, total_bytes: int) -> None:
        """Show the bar, empty."""
        self._count.start(total_blocks, total_weights, total_bytes)
        self._bars.update(self._task, total=total_bytes, figures=str(self._count))
        if self._status is not None:
            self._status.hold()
        self._bars.start()

    def block(self, index: int) -> None:
        """Name the block, counted from 1."""
        self._bars.update(self._task, description=f"block {index + 1}/{self._count.blocks}")

    def weight(self, name: str, nbytes: int) -> None:
        """Move the bar on."""
        self._count.weight(nbytes)
        self._bars.update(self._task, advance=nbytes, figures=str(self._count))

    def step(self, name: str) -> None:
        """Name what is being done, at the end of the line."""
        self._bars.update(self._task, step=name)
        if self._status is not None:
            self._status.phase(name)

    def train(self, done: int, total: int, figures: str) -> None:
        """Let the bar stand for the steps of the training."""
        self._bars.update(
            self._task,
            description=f"heal {done}/{total}",
            total=total,
            completed=done,
            figures=figures,
            step="",
        )

    def note(self, text: str) -> None:
        """Print a sentence above the bar."""
        if self._status is not None:
            self._status.clear()
        self._console.print(f"note: {shortened(text)}", markup=False, soft_wrap=True)

    def finish(self) -> None:
        """Take the bar away."""
        self._bars.stop()
        if self._status is not None:
            self._status.resume()


class Lines:
    """A line at most every ten seconds, for logs."""

    def __init__(self, console: Console, status: Status | None = None) -> None:
        self._console, self._status = console, status
        self._count = _Count()
        self._last = 0.0
        self._block = ""

    def start(self, total_blocks: int, total_weights: int, total_bytes: int) -> None:
        """Start the clock."""
        self._count.start(total_blocks, total_weights, total_bytes)
        self._last = time.monotonic()

    def block(self, index: int) -> None:
        """Print where the job stands, unless that was done just now."""
        self._block = f"block {index + 1}/{self._count.blocks}: "
        if time.monotonic() - self._last >= SECONDS_BETWEEN_LINES:
            stands = f"block {index + 1}/{self._count.blocks} · {self._count}"
            self._console.print(stands, soft_wrap=True)
            self._last = time.monotonic()

    def weight(self, name: str, nbytes: int) -> None:
        """Count a weight."""
        self._count.weight(nbytes)

    def step(self, name: str) -> None:
        """Leave it to the status, which prints a step that takes long."""
        if self._status is not None:
            self._status.phase(f"{self._block}{name}")

    def train(self, done: int, total: int, figures: str) -> None:
        """Print where the training stands, unless that was done just now."""
        if done == total or time.monotonic() - self._last >= SECONDS_BETWEEN_LINES:
            self._console.print(f"heal {done}/{total} · {figures}", markup=False, soft_wrap=True)
            self._last = time.monotonic()

    def note(self, text: str) -> None:
        """Print a sentence."""
        self._console.print(f"note: {shortened(text)}", markup=False, soft_wrap=True)

    def finish(self) -> None:
        """Forget the block; the result follows."""
        self._block = ""


@contextmanager
def windows_bar(*, quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Show how far an evaluation is; yields what it calls with a checkpoint's name, windows done, all windows."""
    console = Console(stderr=True, highlight=False)
    status = current_status()
    if status is not None and console.is_terminal and not quiet:
        status.hold()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bars(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bars:
        task = bars.add_task("loading", total=None)

        def progress(name: str, done: int, total: int) -> None:
            bars.update(task, description=name, completed=done, total=total)
            if status is not None:
                status.phase(f"{name}: {done} of {total}")

        yield progress
