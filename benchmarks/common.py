"""What the benchmark scripts share: measured subprocesses, the record of the machine, tables and result files."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
SAMPLE_SECONDS = 0.005


@dataclass(frozen=True)
class Measured:
    """One run of a subprocess.

    Attributes:
        seconds: wall time from the start of the process to its end.
        proper: wall time from the mark ``imported`` to the last mark (the whole run where there are no marks).
        cpu_seconds: processor time of the process and of its children, user and system.
        cpu_proper: processor time of the process between the same two marks, all threads.
        peak_bytes: highest anonymous resident memory (RssAnon + RssShmem; mapped files are not in it).
        beyond_bytes: the same, less what stood at the mark ``imported``.
        phases: seconds from each mark to the next, by the later mark's name.
    """

    seconds: float
    proper: float
    cpu_seconds: float
    cpu_proper: float
    peak_bytes: int
    beyond_bytes: int
    phases: dict[str, float] = field(default_factory=dict)


class RunFailed(RuntimeError):
    """A measured subprocess ended with a non-zero status; the message holds the end of what it printed."""


def anonymous_bytes(pid: int) -> int:
    """Anonymous and shared resident memory of a process in bytes; 0 when it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    kib = sum(int(fields.get(name, "0 kB").split()[0]) for name in ("RssAnon", "RssShmem"))
    return kib * 1024


def fixed_threads(threads: int) -> dict[str, str]:
    """The environment of a measured process: every pool of threads fixed, no hub, no progress bars."""
    pools = ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "RAYON")
    fixed = {f"{pool}_NUM_THREADS": str(threads) for pool in pools}
    quiet = {
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    dropped = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return {**kept, **fixed, **quiet}


def _sample(pid: int, stop: threading.Event, into: list[tuple[float, int]]) -> None:
    while not stop.wait(SAMPLE_SECONDS):
        into.append((time.monotonic(), anonymous_bytes(pid)))


def run_measured(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    events: Path | None = None,
    cwd: Path | None = None,
) -> Measured:
    """Run a command to its end, sampling its memory every 5 ms from outside.

    ``events`` is a JSON-lines file of ``{"name", "time"}`` that the process writes (see ``peers/runners/probe.py``); memory and
    time before its mark ``imported`` are the interpreter's and the libraries' and count only in ``seconds``.
    Raises ``RunFailed`` when the command fails.
    """
    if events is not None:
        events.unlink(missing_ok=True)
    samples: list[tuple[float, int]] = []
    stop = threading.Event()
    with tempfile.TemporaryFile() as log:
        start = time.monotonic()
        process = subprocess.Popen(
            list(command), stdout=log, stderr=subprocess.STDOUT, env=dict(environment), cwd=cwd
        )
        watcher = threading.Thread(target=_sample, args=(process.pid, stop, samples), daemon=True)
        watcher.start()
        _, status, usage = os.wait4(process.pid, 0)
        end = time.monotonic()
        process.returncode = os.waitstatus_to_exitcode(status)
        stop.set()
        watcher.join()
        if process.returncode != 0:
            log.seek(0)
            tail = log.read()[-4000:].decode(errors="replace")
            # Names without folders: what is said here may end up in the results.
            told = " ".join(Path(part).name for part in command)
            raise RunFailed(f"{told} ended with {process.returncode}:\n{tail}")
    marks = _read_marks(events)
    return _summary(start, end, usage.ru_utime + usage.ru_stime, samples, marks)


def _read_marks(events: Path | None) -> list[dict[str, Any]]:
    if events is None or not events.exists():
        return []
    rows = [json.loads(line) for line in events.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if "time" in row]


def _summary(
    start: float, end: float, cpu: float, samples: list[tuple[float, int]], marks: list[dict[str, Any]]
) -> Measured:
    begin = next((mark["time"] for mark in marks if mark["name"] == "imported"), start)
    earlier = [size for at, size in samples if at <= begin and size]
    baseline = earlier[-1] if earlier and begin > start else 0
    finish = marks[-1]["time"] if len(marks) > 1 else end
    peak = max((size for at, size in samples if begin <= at <= finish), default=0)
    proper = marks[-1]["cpu"] - marks[0]["cpu"] if len(marks) > 1 else cpu
    phases = {after["name"]: after["time"] - before["time"] for before, after in pairwise(marks)}
    return Measured(end - start, finish - begin, cpu, proper, peak, max(0, peak - baseline), phases)


def median_of(runs: Sequence[Measured]) -> Measured:
    """The median of each figure over several runs (phases: of the run with the median ``proper``)."""
    middle = sorted(runs, key=lambda run: run.proper)[len(runs) // 2]
    names = ("seconds", "proper", "cpu_seconds", "cpu_proper", "peak_bytes", "beyond_bytes")
    figures = {name: statistics.median(getattr(run, name) for run in runs) for name in names}
    return Measured(**{**asdict(middle), **figures})


def machine_record(
    packages: Sequence[str] = ("torch", "transformers", "compressed-tensors"),
) -> dict[str, Any]:
    """Machine, versions and day, as they stand beside every figure."""
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    lines = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
    named = {key.strip(): value.strip() for key, value in lines.items()}
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16")
    flags = named.get("flags", "").split()
    memory = Path("/proc/meminfo").read_text(encoding="ascii").split()[1]
    return {
        "day": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cpu": named.get("model name", platform.processor()),
        "cpu_features": [flag for flag in wanted if flag in flags],
        "cores": os.cpu_count(),
        "memory_gib": round(int(memory) / 2**20, 1),
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in packages},
        "revision": _revision(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _revision() -> str | None:
    command = ["git", "-C", str(REPOSITORY), "rev-parse", "--short", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:  # no git here
        return None
    return found.stdout.strip() or None


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; numbers are right-aligned and shortened to four significant digits."""
    texts = [[_text(cell) for cell in row] for row in rows]
    widths = [
        max(len(header), *(len(row[i]) for row in texts), 3) if texts else max(len(header), 3)
        for i, header in enumerate(headers)
    ]
    left = [all(isinstance(row[i], str) for row in rows) for i in range(len(headers))]

    def line(cells: Sequence[str]) -> str:
        padded = (
            c.ljust(w) if is_left else c.rjust(w) for c, w, is_left in zip(cells, widths, left, strict=True)
        )
        return "| " + " | ".join(padded) + " |"

    ends = ("-" if is_left else ":" for is_left in left)
    rule = "|" + "|".join("-" * (width + 1) + end for width, end in zip(widths, ends, strict=True)) + "|"
    return "\n".join([line(headers), rule, *(line(row) for row in texts)])


def _text(cell: object) -> str:
    if cell is None:
        return "–"
    if isinstance(cell, float):
        return f"{cell:.4g}"
    return str(cell)


def megabytes(size: float) -> float:
    """Bytes to MB (10^6), one digit."""
    return round(size / 1e6, 1)


def write_between(page: Path, mark: str, text: str) -> None:
    """Put ``text`` between ``<!-- mark -->`` and ``<!-- /mark -->`` of a page.

    Raises:
        SystemExit: the page has no such marks.
    """
    before, begin, rest = page.read_text(encoding="utf-8").partition(f"<!-- {mark} -->")
    _, end, after = rest.partition(f"<!-- /{mark} -->")
    if not begin or not end:
        raise SystemExit(f"{page.name} has no marks <!-- {mark} --> … <!-- /{mark} -->")
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")


def write_results(name: str, payload: Mapping[str, Any]) -> Path:
    """Write ``benchmarks/results/<name>.json``, the machine's record first."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    whole = {"machine": machine_record(), **payload}
    path.write_text(json.dumps(whole, indent=1, sort_keys=False) + "\n", encoding="utf-8")
    print(f"wrote {path}", file=sys.stderr)
    return path
