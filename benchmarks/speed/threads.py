"""What threads save: wall time of a whole run on one thread, on two, and on as many as there are cores.

``python -m benchmarks.speed.threads [--model FOLDER] [--samples N] [--length N] [--runs N] [--only NAME ...] [--write]`` runs
`compress run` in processes of its own, in turn, and prints medians, the gain over one thread, and how many threads were running
at once at most (sampled): more than were asked for would be oversubscription. ``--write`` records the table and puts it into
docs/speed.md.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import REPOSITORY, fixed_threads, table, write_between, write_results

PAGE = REPOSITORY / "docs" / "speed.md"
NAMES = ("w4-rtn", "w4-gptq", "sparse50-awp", "best-w4")
_SAMPLED = 0.01


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        wall, cpu: seconds, those of imports among them.
        running: threads that had or waited for a processor at once: of the samples, the 99th of a hundred.
        threads: that there were, at most.
    """

    wall: float
    cpu: float
    running: int
    threads: int


def thread_counts(cores: int) -> list[int]:
    """One, two, and all cores."""
    return sorted({1, min(2, cores), cores})


def command_of(name: str, out: Path, asked: argparse.Namespace) -> list[str]:
    """The command of a run."""
    windows = ["--samples", str(asked.samples), "--length", str(asked.length)] if name != "w4-rtn" else []
    # Columns that 128 does not divide are in groups of 64.
    grouped = asked.model != "embedded" and name != "sparse50-awp"
    groups = ["--set", "quantize.group_size=64"] if grouped else []
    run = [sys.executable, "-m", "compress_cli", "run", asked.model, "-r", name, "-o", str(out)]
    return [*run, *windows, *groups, "--device", "cpu", "--no-fresh-process", "--quiet"]


def states(pid: int) -> list[str]:
    """The states of a process's threads, as Linux spells them; empty when it is gone."""
    found = list[str]()
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            # The name, which may hold anything, is in parentheses.
            found.append(
                (task / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
            )
    except OSError:
        pass
    return found


def timed(command: Sequence[str], threads: int) -> Run:
    """One run on so many threads.

    Raises:
        SystemExit: it failed.
    """
    rooms = os.pathsep.join(str(REPOSITORY / part) for part in ("", "kernels", "cli"))
    began = time.monotonic()
    process = subprocess.Popen(
        command, env={**fixed_threads(threads), "PYTHONPATH": rooms}, stdout=subprocess.DEVNULL
    )
    samples, stop = list[list[str]](), threading.Event()

    def watch() -> None:
        while not stop.wait(_SAMPLED):
            samples.append(states(process.pid))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.monotonic() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    stop.set()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"compress run ended with {process.returncode}")
    return summary(wall, usage.ru_utime + usage.ru_stime, samples)


def summary(wall: float, cpu: float, samples: Sequence[Sequence[str]]) -> Run:
    """A run of its samples of the states of threads."""
    running = sorted(sum(state == "R" for state in sample) for sample in samples) or [0]
    most = running[min(len(running) - 1, len(running) * 99 // 100)]
    return Run(wall, cpu, most, max(map(len, samples), default=0))


def measured(name: str, counts: Sequence[int], asked: argparse.Namespace, work: Path) -> dict[int, list[Run]]:
    """By number of threads, the runs of a recipe, in turn."""
    found: dict[int, list[Run]] = {count: [] for count in counts}
    for run in range(asked.runs):
        for count in counts:
            out = work / f"{name}-{count}-{run}"
            found[count].append(timed(command_of(name, out, asked), count))
            shutil.rmtree(out)
            print(f"{name} on {count}: {found[count][-1].wall:.1f} s", flush=True)
    return found


def row(name: str, runs: dict[int, list[Run]]) -> list[object]:
    """One line: medians, gains over one thread, and running threads at once with all cores."""
    walls = {count: statistics.median(run.wall for run in those) for count, those in runs.items()}
    most = max(walls)
    gains = [walls[1] / wall for count, wall in walls.items() if count > 1]
    return [name, *walls.values(), *gains, max(run.running for run in runs[most])]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=list(NAMES), choices=NAMES)
    parser.add_argument("--write", action="store_true", help="record, and write the page's table")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, and record it if asked to."""
    asked = parse(arguments)
    counts = thread_counts(os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as work:
        runs = {name: measured(name, counts, asked, Path(work)) for name in asked.only}
    columns = ["", *(f"{count} threads, s" if count > 1 else "1 thread, s" for count in counts)]
    columns += [f"gain of {count}" for count in counts if count > 1] + ["running at once"]
    rows = [row(name, those) for name, those in runs.items()]
    found = table(columns, rows)
    print(found)
    if asked.write:
        facts = {
            "model": Path(asked.model).name,
            "samples": asked.samples,
            "length": asked.length,
            "runs": asked.runs,
        }
        write_results("threads", {**facts, "columns": columns, "rows": rows})
        write_between(PAGE, "threads", found)


if __name__ == "__main__":
    main()
