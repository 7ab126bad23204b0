"""The record of what an unfinished checkpoint already holds: one JSON line per finished block."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

VERSION = 1


@dataclass(frozen=True)
class Entry:
    """One finished block: its weights' figures, the hash of every tensor written for it, the seconds it took."""

    block: int | str
    records: Mapping[str, Any]
    tensors: Mapping[str, str]
    """Tensor name → SHA-256 of its bytes, in hex."""
    seconds: Mapping[str, float] = field(default_factory=dict)


def read_journal(path: Path) -> tuple[str | None, list[Entry], list[int]]:
    """The fingerprint and the entries of a journal, and at which byte the first line and then each entry ends.

    A line that was torn by a crash ends the reading; a journal without an intact first line has no fingerprint.
    """
    fingerprint: str | None = None
    entries: list[Entry] = []
    ends: list[int] = []
    for line in path.read_bytes().splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break
        try:
            data = json.loads(line)
            if fingerprint is None:
                if data["version"] != VERSION:
                    break
                fingerprint = data["fingerprint"]
            else:
                entries.append(Entry(**data))
        except (ValueError, KeyError, TypeError):
            break
        ends.append((ends[-1] if ends else 0) + len(line))
    return fingerprint, entries, ends


class Journal:
    """Appends lines, each on disk before the call returns."""

    def __init__(self, path: Path, length: int = 0) -> None:
        """Open ``path`` for appending after its first ``length`` bytes; what follows them is dropped."""
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        os.ftruncate(self._file, length)
        os.lseek(self._file, 0, os.SEEK_END)

    def begin(self, fingerprint: str) -> None:
        """Write the first line of a new journal."""
        self._append({"version": VERSION, "fingerprint": fingerprint})

    def append(self, entry: Entry) -> None:
        """Record a finished block."""
        self._append(asdict(entry))

    def close(self) -> None:
        """Close the file; the journal stays."""
        os.close(self._file)

    def _append(self, data: Mapping[str, Any]) -> None:
        line = memoryview((json.dumps(data) + "\n").encode())
        while line:
            line = line[os.write(self._file, line) :]
        os.fsync(self._file)
