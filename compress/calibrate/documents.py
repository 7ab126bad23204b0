"""The documents of a text file: the whole of a .txt, the lines of a .jsonl; read whole or by stretches."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.errors import UserError


@dataclass(frozen=True)
class Documents:
    """A text file and how it is cut into documents: a string each, or a list of chat messages.

    Attributes:
        path: the file, UTF-8.
        lines: whether each line is a document in JSON; else the file is one document.
        nbytes: its size.
    """

    path: Path
    lines: bool
    nbytes: int

    def all(self) -> list[Any]:
        """Every document.

        Raises:
            UserError: a line is no JSON or holds no text, or the file is not UTF-8.
        """
        return self._parse(self._read(0, None), start=0)

    def stretch(self, start: int, size: int) -> list[Any]:
        """The documents in about `size` bytes from `start` on; broken lines at either end are left out.

        A single line longer than that is read to its end.
        """
        if not self.lines:
            # A cut may fall into a character: its bytes are dropped.
            return [self._read(start, size).decode("utf-8", errors="ignore")]
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
        # The line that the cut falls into is only wanted where it is the only one.
        if rest and b"\n" in raw:
            raw = raw[: raw.rindex(b"\n")]
        else:
            raw += rest
        return self._parse(raw, begin)

    def _open(self) -> Any:
        try:
            return self.path.open("rb")
        except OSError as error:
            raise UserError(f"The text {self.path} cannot be read: {error.strerror}.") from error

    def _read(self, start: int, size: int | None) -> bytes:
        with self._open() as file:
            file.seek(start)
            return file.read() if size is None else file.read(size)

    def _parse(self, raw: bytes, start: int) -> list[Any]:
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"The text {self.path} is not UTF-8 (byte {start + error.start}); save it as UTF-8."
            ) from error
        return list(self._documents(text, start)) if self.lines else [text]

    def _documents(self, text: str, start: int) -> Iterator[Any]:
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip():
                continue
            where = (
                f"Line {number} of {self.path}" if start == 0 else f"A line of {self.path} after byte {start}"
            )
            try:
                entry = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{where} is no JSON ({error.msg}).") from error
            yield _content(entry, where)


def open_documents(path: Path) -> Documents:
    """Open a text file; `.jsonl` and `.json` are read line by line."""
    return Documents(path, lines=path.suffix in {".jsonl", ".json"}, nbytes=path.stat().st_size)


def _content(entry: Any, where: str) -> Any:
    if isinstance(entry, dict):
        if isinstance(entry.get("text"), str):
            return entry["text"]
        if isinstance(entry.get("messages"), list):
            return entry["messages"]
    raise UserError(f'{where} has neither a "text" nor "messages".')
