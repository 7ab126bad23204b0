"""The record of what an unfinished checkpoint already holds: one JSON line per finished block."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

VERSION = 2


@dataclass(frozen=True)
class Entry:
    """One finished block: its weights' figures, the hash of every tensor written for it, the seconds it took."""

    block: int | str
    records: Mapping[str, Any]
    tensors: Mapping[str, str]
    """Tensor name → SHA-256 of its bytes, in hex."""
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Recorded:
    """The contents of a journal.

    Attributes:
        fingerprint: of the run that began it; None for a file that is no journal of this version.
        settings: what that run was asked for, as plain data, to name what differs.
        entries: the finished blocks.
        ends: the byte at which the first line ends, and then each entry.
    """

    fingerprint: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    entries: tuple[Entry, ...] = ()
    ends: tuple[int, ...] = ()


def read_journal(path: Path) -> Recorded:
    """Read a journal as far as it is intact: a line that a crash tore or somebody altered ends the reading."""
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError:
        return Recorded()
    first = _parse(lines[0]) if lines else None
    if first is None or first.get("version") != VERSION or not isinstance(first.get("fingerprint"), str):
        return Recorded()
    settings = first.get("settings")
    entries: list[Entry] = []
    ends = [len(lines[0])]
    for line in lines[1:]:
        entry = _entry(_parse(line))
        if entry is None:
            break
        entries.append(entry)
        ends.append(ends[-1] + len(line))
    return Recorded(
        first["fingerprint"], settings if isinstance(settings, dict) else {}, tuple(entries), tuple(ends)
    )


def is_journal(path: Path) -> bool:
    """Whether a file begins as a journal of any version does."""
    try:
        with path.open("rb") as file:
            first = _parse(file.readline())
    except OSError:
        return False
    return (
        first is not None and type(first.get("version")) is int and isinstance(first.get("fingerprint"), str)
    )


def _parse(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def _digest(data: Mapping[str, Any]) -> str:
    """By which an entry that somebody altered is known."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _entry(data: dict[str, Any] | None) -> Entry | None:
    if data is None or data.pop("sha256", None) != _digest(data):
        return None
    if data.keys() != {"block", "records", "tensors", "seconds"}:
        return None
    mappings = [data["records"], data["tensors"], data["seconds"]]
    sound = type(data["block"]) in (int, str) and all(isinstance(one, dict) for one in mappings)
    sound = sound and all(isinstance(record, dict) for record in data["records"].values())
    sound = sound and all(isinstance(digest, str) for digest in data["tensors"].values())
    sound = sound and all(type(value) in (int, float) for value in data["seconds"].values())
    return Entry(**data) if sound else None


class Journal:
    """Appends lines, each on disk before the call returns."""

    def __init__(self, path: Path, length: int = 0) -> None:
        """Open ``path`` for appending after its first ``length`` bytes; what follows them is dropped."""
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        os.ftruncate(self._file, length)
        os.lseek(self._file, 0, os.SEEK_END)

    def begin(self, fingerprint: str, settings: Mapping[str, Any]) -> None:
        """Write the first line of a new journal (see :class:`Recorded`)."""
        self._append({"version": VERSION, "fingerprint": fingerprint, "settings": settings})

    def append(self, entry: Entry) -> None:
        """Record a finished block."""
        # As it will be read: keys of mappings become strings.
        data = json.loads(json.dumps(asdict(entry), default=str))
        self._append({**data, "sha256": _digest(data)})

    def close(self) -> None:
        """Close the file; the journal stays."""
        os.close(self._file)

    def _append(self, data: Mapping[str, Any]) -> None:
        line = memoryview((json.dumps(data, default=str) + "\n").encode())
        while line:
            line = line[os.write(self._file, line) :]
        os.fsync(self._file)
