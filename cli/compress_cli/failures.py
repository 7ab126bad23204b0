"""What goes wrong, in one sentence on stderr and an exit status a script can read."""

from __future__ import annotations

import errno
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from compress.errors import UserError
from compress.recipe.registry import nearest
from compress_cli.messages import LONGEST_OF_LIBRARIES, printable, short_messages, shortened
from compress_cli.signals import Terminated, stopped_by_signals

UNEXPECTED = 1
"""A fault of ours: the sentence names the file of the traceback."""
USER_ERROR = 2
"""Something a person can mend: a wrong path, a wrong recipe, too little memory or disk."""
INTERRUPTED = 130

OUT_OF_MEMORY = (
    "Out of memory: take fewer or shorter samples (--samples, --length), another --device, or a bigger machine; "
    "`compress plan` says how much a run needs."
)
DISK_FULL = "The disk is full: free some space or name a folder on another disk; nothing was written over."
PATH_ERRORS = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.ENOTDIR,
    errno.EISDIR,
}
"""What the operating system refuses for a path that a person named."""
_CHOICES = re.compile(r"'(?P<given>.*)' is not one of (?P<choices>'.*')\.?", re.DOTALL)
_RUST_NUMBER = re.compile(r"\(os error (\d{1,4})\)")
STOPPED = "Stopped."
STOPPED_HEALING = "Stopped; the same command goes on from the last steps that were kept."
STOPPED_RUN = "Stopped; the same command goes on from the last finished block."

# Click's, which newer versions of typer have a copy of.
_USAGE: type[Exception] = next(
    base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException"
)


class ExplainedGroup(TyperGroup):
    """The group of commands; what they raise ends here."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was named, and turn its failures into sentences."""
        with explained(STOPPED), stopped_by_signals(), short_messages():
            return super().invoke(ctx)


@contextmanager
def explained(interrupted: str) -> Iterator[None]:
    """End the process with a sentence for whatever is raised; a fault of ours is written to a file that the sentence names.

    Args:
        interrupted: what to say when the person stops the command, where the interrupt has no note that says more.
    """
    try:
        yield
    except _USAGE as error:
        setattr(error, "message", usage(str(getattr(error, "message", ""))))  # noqa: B010
        raise
    except (typer.Exit, typer.Abort, SystemExit, GeneratorExit):
        raise
    except UserError as error:
        _end(str(error), USER_ERROR, error)
    except KeyboardInterrupt as error:
        said = getattr(error, "__notes__", [interrupted])[-1]
        _end(said, error.status if isinstance(error, Terminated) else INTERRUPTED, error)
    except BaseException as error:
        if isinstance(error, BrokenPipeError):
            raise
        if _is_out_of_memory(error):
            _end(OUT_OF_MEMORY, USER_ERROR, error)
        if _number(error) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            _end(DISK_FULL, USER_ERROR, error)
        if isinstance(error, OSError) and error.errno in PATH_ERRORS and error.filename is not None:
            _end(f"{error.strerror}: {error.filename}.", USER_ERROR, error)
        _end(_unexpected(error), UNEXPECTED, error)


def usage(message: str) -> str:
    """What typer says of an option, without pydantic's words for programmers, and with the nearest of several choices.

    It quotes what was given, whatever its length: the middle is left out.
    """
    said = message.removeprefix("Value error, ").partition(", unable to parse")[0]
    if found := _CHOICES.fullmatch(said):
        close = nearest(found["given"][:LONGEST_OF_LIBRARIES], re.findall("'([^']+)'", found["choices"]))
        said = said if close is None else f"{said.removesuffix('.')}; did you mean '{close}'?"
    return shortened(said, LONGEST_OF_LIBRARIES)


def one_sentence(text: str) -> str:
    """A text on one line, without control characters, its middle left out where it is longer than ``LONGEST``."""
    return shortened(" ".join(printable(text).split()))


def _is_out_of_memory(error: BaseException) -> bool:
    # By name: importing torch for its exception would cost every `--help` two seconds. Its allocator on the CPU
    # raises a bare RuntimeError.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error) if isinstance(error, RuntimeError) else ""
    return "can't allocate memory" in text or "not enough memory" in text


def _number(error: BaseException) -> int | None:
    """The operating system's number of an error; libraries in Rust (safetensors, tokenizers) tell it in their words alone."""
    if isinstance(error, OSError):
        return error.errno
    found = _RUST_NUMBER.search(str(error))
    return int(found[1]) if found else None


def _unexpected(error: BaseException) -> str:
    """The sentence for a fault of ours, after its traceback is written to a temporary file."""
    what = one_sentence(f"{type(error).__name__}: {error}")[:200]
    try:
        handle, path = tempfile.mkstemp(prefix="compress-traceback-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8", errors="replace") as file:
            file.write(f"{' '.join(sys.argv)}\n\n")
            traceback.print_exception(error, file=file)
    except OSError:
        return f"This is a fault of compress ({what}); please report it."
    return f"This is a fault of compress ({what}); please report it, with the file {path}."


def _end(sentence: str, status: int, cause: BaseException) -> NoReturn:
    print(f"compress: {one_sentence(sentence)}", file=sys.stderr)
    raise typer.Exit(status) from cause
