"""Documents of a text file: the whole of a .txt, the lines of a .jsonl, the elements of a .json; read whole or in part."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from compress.errors import UserError
from compress.text.records import Document, documents_of

JSON_SUFFIXES = {".jsonl", ".ndjson", ".json"}

Form = Literal["text", "lines", "json"]


@dataclass(frozen=True)
class Documents:
    """A text file and how it is divided into documents (see :mod:`compress.text.records`).

    Attributes:
        path: the file, UTF-8, with or without a byte order mark.
        form: ``text``, one document; ``lines``, a JSON value in each line; ``json``, one JSON value.
        nbytes: its size.
    """

    path: Path
    form: Form
    nbytes: int

    def all(self) -> list[Document]:
        """Every document; empty ones are left out.

        Raises:
            UserError: a value is no JSON or of no known form, or the file is not UTF-8.
        """
        return list(self.each())

    def each(self) -> Iterator[Document]:
        """As :meth:`all`, one after the other."""
        yield from self._parse(self._read(0, None), start=0)

    def excerpt(self, start: int, size: int) -> list[Document]:
        """The documents in about ``size`` bytes from ``start`` on; a line that is cut at either end is left out.

        A single line longer than that is read to its end. Not for the form ``json``.
        """
        if self.form == "text":
            # A cut may fall into a character: its bytes are dropped.
            text = self._read(start, size).decode("utf-8", errors="ignore")
            return list(_not_empty([text.removeprefix("\ufeff")]))
        with self._open() as file:
            file.seek(max(start - 1, 0))
            if start:
                file.readline()
            begin = file.tell()
            if begin >= self.nbytes:  # the last line: start over
                file.seek(0)
                begin = 0
            raw = file.read(size)
            rest = file.readline()
        # The line that the cut falls into is only wanted where there is no other.
        if rest and b"\n" in raw:
            raw = raw[: raw.rindex(b"\n")]
        else:
            raw += rest
        return list(self._parse(raw, begin))

    def _open(self) -> BinaryIO:
        return _open(self.path)

    def _read(self, start: int, size: int | None) -> bytes:
        with self._open() as file:
            file.seek(start)
            return file.read() if size is None else file.read(size)

    def _parse(self, raw: bytes, start: int) -> Iterator[Document]:
        if start == 0:
            raw = raw.removeprefix(codecs.BOM_UTF8)
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"The text {self.path} is not UTF-8 (byte {start + error.start}); save it as UTF-8."
            ) from error
        if self.form == "text":
            yield from _not_empty([text])
        elif self.form == "json":
            yield from _not_empty(documents_of(_json(text, str(self.path)), str(self.path)))
        else:
            yield from self._lines(text, start)

    def _lines(self, text: str, start: int) -> Iterator[Document]:
        # Not by str.splitlines: the line separators of Unicode may stand inside a JSON string.
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip():
                continue
            where = (
                f"Line {number} of {self.path}" if start == 0 else f"A line of {self.path} after byte {start}"
            )
            yield from _not_empty(documents_of(_json(line, where), where))


def open_documents(path: Path) -> Documents:
    """Open a text file.

    ``.jsonl``, ``.ndjson`` and ``.json`` hold JSON: a value in each line, or one value over the whole file, whichever they
    do. Any other file is plain text.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        nbytes = path.stat().st_size
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    return Documents(path, _form(path) if path.suffix.lower() in JSON_SUFFIXES else "text", nbytes)


def _form(path: Path) -> Form:
    """Whether a JSON file has a value in each line or one in all: by its first line that is not blank."""
    with _open(path) as file:
        first = b""
        for line in file:
            first = line.removeprefix(codecs.BOM_UTF8).strip()
            if first:
                break
        more = any(line.strip() for line in file)
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        # The first line of one value over several lines, or a damaged line.
        return "json" if path.suffix.lower() == ".json" or first in (b"[", b"{") else "lines"
    return "lines" if more else "json"


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is no JSON ({error.msg}).") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is no JSON that can be read ({str(error)[:80]}).") from error


def _not_empty(documents: Any) -> Iterator[Document]:
    return (document for document in documents if not isinstance(document, str) or document.strip())


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError | ValueError) -> UserError:
    reason = getattr(error, "strerror", None) or error
    return UserError(f"The text {path} cannot be read ({reason}): give a UTF-8 text file.")
