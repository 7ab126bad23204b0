"""Messages of the libraries on stderr: as short as ours, whatever a file that they quote holds."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

LONGEST = 1000
"""Characters of a message of ours; of a longer one the middle is left out."""
LONGEST_OF_LIBRARIES = 300
"""Characters of a log record or a warning: transformers repeats one for every time that it reads a configuration."""


def printable(text: str) -> str:
    """A text with a space for every control character, line ends excepted."""
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text)


def shortened(text: str, longest: int = LONGEST) -> str:
    """A printable text, its middle left out where it has more than ``longest`` characters."""
    clean = printable(text)
    if len(clean) <= longest:
        return clean
    half = (longest - 3) // 2
    return f"{clean[:half]} … {clean[-half:]}"


@contextmanager
def short_messages() -> Iterator[None]:
    """Shorten every log record and warning that is made inside, in this process."""
    make_record, format_warning = logging.getLogRecordFactory(), warnings.formatwarning

    def record_factory(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make_record(*args, **kwargs)
        with suppress(
            TypeError, ValueError, KeyError
        ):  # arguments that do not fit the message: logging says so
            record.msg, record.args = shortened(record.getMessage(), LONGEST_OF_LIBRARIES), None
        return record

    def formatwarning(message: Warning | str, *args: Any, **kwargs: Any) -> str:
        return format_warning(shortened(str(message), LONGEST_OF_LIBRARIES), *args, **kwargs)

    logging.setLogRecordFactory(record_factory)
    warnings.formatwarning = formatwarning
    try:
        yield
    finally:
        logging.setLogRecordFactory(make_record)
        warnings.formatwarning = format_warning
