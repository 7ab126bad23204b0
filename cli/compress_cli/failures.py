"""What goes wrong, in one sentence on stderr and an exit status a script can read."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from compress.errors import UserError

USER_ERROR = 2
"""Something a person can mend: a wrong path, a wrong recipe, too little memory or disk."""
INTERRUPTED = 130

OUT_OF_MEMORY = (
    "Out of memory: take fewer or shorter samples (--samples, --length), another --device, or a bigger machine; "
    "`compress plan` says how much a run needs."
)
DISK_FULL = "The disk is full: free some space or name a folder on another disk; nothing was written over."
STOPPED = "Stopped."
STOPPED_RUN = "Stopped; the same command goes on from the last finished block."


class Commands(TyperGroup):
    """The group of commands; what they raise ends here."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was named, and turn its failures into sentences."""
        with explained(STOPPED):
            return super().invoke(ctx)


@contextmanager
def explained(interrupted: str) -> Iterator[None]:
    """End the process with a sentence for whatever a person can mend; let programming errors through.

    Args:
        interrupted: what to say when the person stops the command.
    """
    try:
        yield
    except UserError as error:
        _end(str(error), USER_ERROR, error)
    except KeyboardInterrupt as error:
        _end(interrupted, INTERRUPTED, error)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        _end(OUT_OF_MEMORY, USER_ERROR, error)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        _end(DISK_FULL, USER_ERROR, error)


def _is_out_of_memory(error: MemoryError | RuntimeError) -> bool:
    # By name: importing torch for its exception would cost every `--help` two seconds. Its allocator on the CPU
    # raises a bare RuntimeError.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return "can't allocate memory" in str(error) or "not enough memory" in str(error)


def _end(sentence: str, status: int, cause: BaseException) -> NoReturn:
    print(f"compress: {sentence}", file=sys.stderr)
    raise typer.Exit(status) from cause
