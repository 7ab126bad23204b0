"""Decoding of packed models and of llama.cpp's files in short turns, for a machine that others use, too.

``python -m benchmarks.speed.turns MODEL --python ENV/bin/python --work WORK`` keeps a process of every checkpoint of
:mod:`benchmarks.speed.llamacpp` alive and lets each decode :data:`TURN` tokens in turn, again and again. What the others on the
machine do meets all of them alike, so that ratios of neighbouring turns mean something where times do not.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.common import RunFailed, table, write_results
from benchmarks.speed.llamacpp import BARS, OURS, RUNNERS, THEIRS, prepare
from benchmarks.speed.runners.clocks import TURN


class Runner:
    """A process that decodes when it is told to."""

    def __init__(self, path: Path, python: Path, threads: int) -> None:
        ours = [sys.executable, "-m", "benchmarks.speed.runners.ours", str(path), str(threads)]
        theirs = [str(python), str(RUNNERS / "llamacpp.py"), "turns", str(path), str(threads)]
        self._process = subprocess.Popen(
            theirs if path.suffix == ".gguf" else ours,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._name = path.name
        self.turn()  # loads, warms up

    def turn(self) -> tuple[float, float]:
        """Milliseconds of a token: by the clock, and of the processor for each thread."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        while line and not line.startswith("["):  # what libraries say
            line = self._process.stdout.readline()
        if not line:
            raise RunFailed(f"decoding {self._name} ended with status {self._process.wait()}")
        clock, processor = json.loads(line)
        return 1e3 * clock / TURN, 1e3 * processor / TURN

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def in_turns(
    paths: dict[str, Path], python: Path, threads: int, seconds: float
) -> dict[str, list[tuple[float, float]]]:
    """Milliseconds of a token, turn by turn, of every checkpoint."""
    runners = {name: Runner(path, python, threads) for name, path in paths.items()}
    turns: dict[str, list[tuple[float, float]]] = {name: [] for name in paths}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for name, runner in runners.items():
            turns[name].append(runner.turn())
    for runner in runners.values():
        runner.close()
    return turns


def ratios(turns: dict[str, list[tuple[float, float]]]) -> list[dict[str, Any]]:
    """Every bar of decoding: tokens of one over those of another for each second of the processor."""
    found = []
    for what, one, other, bar in BARS:
        if what != "decode" or one not in turns or other not in turns:
            continue
        pairs = [b[1] / a[1] for a, b in zip(turns[one], turns[other], strict=True)]
        least = min(b for _, b in turns[other]) / min(b for _, b in turns[one])
        found.append(
            {"of": one, "over": other, "bar": bar, "of_pairs": statistics.median(pairs), "of_least": least}
        )
    return found


def main() -> None:
    """Prepare, measure, print, record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--python", type=Path, required=True, help="of the environment with llama.cpp")
    parser.add_argument("--work", type=Path, default=Path("build/llamacpp"))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=120)
    names = [name for name in (*OURS, *THEIRS) if name != "bf16"]
    parser.add_argument("--only", nargs="+", default=names, choices=[*OURS, *THEIRS])
    parser.add_argument("--name", default="decode-turns", help="of the file of results")
    arguments = parser.parse_args()
    made = prepare(arguments.model, arguments.work, arguments.python, arguments.only)
    rows, bars, load = [], {}, os.getloadavg()[0]
    for threads in arguments.threads:
        turns = in_turns(
            {name: made[name] for name in arguments.only}, arguments.python, threads, arguments.seconds
        )
        for name, each in turns.items():
            clock, processor = zip(*each, strict=True)
            rows.append(
                {
                    "name": name,
                    "threads": threads,
                    "turns": len(each),
                    "clock_ms": [min(clock), statistics.median(clock)],
                    "processor_ms": [min(processor), statistics.median(processor)],
                }
            )
        bars[str(threads)] = ratios(turns)
    lines = [[row["name"], row["threads"], *row["clock_ms"], *row["processor_ms"]] for row in rows]
    print(table(["", "threads", "least ms", "median ms", "least CPU ms", "median CPU ms"], lines))
    loads = [round(load, 2), round(os.getloadavg()[0], 2)]
    write_results(
        arguments.name,
        {"model": arguments.model.name, "load_average": loads, "turn": TURN, "rows": rows, "bars": bars},
    )


if __name__ == "__main__":
    main()
