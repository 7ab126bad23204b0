"""A part's items dealt to processes; one that loses its GPU or dies is replaced, and the next does what it had left."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu.work import Request

_WAIT = 0.05


@dataclass
class _Share:
    """Items that one process after another works through."""

    part: str
    request: Request
    rows: Path
    items: list[int]
    process: subprocess.Popen[bytes] | None = None
    log: Path = field(init=False)

    def __post_init__(self) -> None:
        self.log = self.rows.with_suffix(".log")

    def written(self) -> list[dict[str, Any]]:
        if not self.rows.exists():
            return []
        return [json.loads(line) for line in self.rows.read_text(encoding="utf-8").splitlines()]

    def start(self) -> None:
        left = self.left()
        command = [sys.executable, "-m", "benchmarks.gpu.worker", self.part]
        command += ["--request", json.dumps(asdict(self.request)), "--rows", str(self.rows)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "--items", *map(str, left)], stdout=log, stderr=subprocess.STDOUT
            )

    def left(self) -> list[int]:
        done = {row["item"] for row in self.written() if "unfinished" not in row}
        return [item for item in self.items if item not in done]

    def step(self) -> bool:
        """Whether there is more to wait for; replaces a process that has ended too early."""
        assert self.process is not None
        if self.process.poll() is None:
            return True
        left = self.left()
        if not left:
            return False
        if self.process.returncode not in (0, 3):
            self._blame(left[0])
        if self.left():
            self.start()
            return True
        return False

    def _blame(self, item: int) -> None:
        """Record that the process died at an item."""
        assert self.process is not None
        tail = self.log.read_text(errors="replace").splitlines()[-6:]
        row = {
            "item": item,
            "name": f"item {item}",
            "error": f"the process ended with {self.process.returncode}",
        }
        with self.rows.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**row, "trace": tail}) + "\n")


def carry_out(
    part: str, request: Request, names: list[str], count: int, seconds: float, folder: Path
) -> list[dict[str, Any]]:
    """The rows of all items, in order; those that the time did not suffice for say so.

    Args:
        part: its name.
        request: what it is asked.
        names: of the items.
        count: processes at once.
        seconds: the time limit.
        folder: for files of rows and logs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + seconds
    dealt = [list(range(len(names)))[start::count] for start in range(count)]
    label = f"{part}{request.phase}"
    shares = [
        _Share(part, request, folder / f"{label}-{n}.jsonl", items) for n, items in enumerate(dealt) if items
    ]
    for share in shares:
        share.start()
    waiting = list(shares)
    while waiting and time.monotonic() < end:
        waiting = [share for share in waiting if share.step()]
        time.sleep(_WAIT)
    for share in waiting:
        assert share.process is not None
        share.process.kill()
        share.process.wait()
    rows = {row["item"]: row for share in shares for row in share.written()}
    late = {"error": f"not done within {seconds:.0f} s"}
    whole = []
    for n, name in enumerate(names):
        row = rows.get(n, {"item": n, "unfinished": True}) | {"name": name}
        whole.append({**row, **late} if row.pop("unfinished", False) else row)
    return whole
