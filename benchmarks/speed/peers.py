"""Packed linear layers of other tools and ours on one CPU: each tool in an environment of its own, beside bf16 in its process.

``python -m benchmarks.speed.peers --work WORK`` makes the environments (see ``environments.py``), measures every tool with
every number of threads, prints the table and writes ``benchmarks/results/kernel-peers.json``. A tool that does not install
or run is listed with its reason.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.common import REPOSITORY, table, write_results
from benchmarks.peers.environments import PEERS, Tool, installed, python_of

RUNNER = REPOSITORY / "benchmarks" / "peers" / "time_layer.py"
TOOLS = (
    PEERS["torchao"],
    Tool("bitsandbytes-kernels", ("bitsandbytes==0.50.2", "kernels"), "time_layer.py", frozenset()),
    PEERS["quanto"],
    PEERS["gptqmodel"],
    Tool("autoroundlib", ("auto-round-lib==0.16.0", "auto-round==0.16.1"), "time_layer.py", frozenset()),
)


def measure(name: str, python: str, request: dict[str, Any]) -> tuple[list[dict[str, Any]], str]:
    """The rows of a tool, and what went wrong."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(request["threads"])}
    if name != "compress":
        environment["PYTHONPATH"] = ""
    done = subprocess.run(
        [python, str(RUNNER), name.removesuffix("-kernels"), json.dumps(request)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if done.returncode:
        return [], (done.stderr.strip().splitlines() or ["no message"])[-1][:300]
    rows: list[dict[str, Any]] = json.loads(done.stdout.strip().splitlines()[-1])
    return rows, ""


def main() -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--work", type=Path, default=Path("build/peers"))
    parser.add_argument("--shapes", nargs="+", default=["4096x4096", "11008x4096"])
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 4, 16, 64, 256])
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--seconds", type=float, default=2.0, help="for each tool, shape and number of rows")
    arguments = parser.parse_args()
    shapes = [[int(size) for size in text.split("x")] for text in arguments.shapes]
    rows: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    versions: dict[str, dict[str, str]] = {}
    for threads in arguments.threads:
        request = {"shapes": shapes, "rows": arguments.rows, "threads": threads, "seconds": arguments.seconds}
        for tool in (None, *TOOLS):
            name = tool.name if tool else "compress"
            try:
                python = str(python_of(tool, arguments.work)) if tool else sys.executable
            except subprocess.CalledProcessError as error:
                failed[name] = f"does not install: {error}"
                continue
            if tool:
                versions[name] = installed(Path(python), ("torch", tool.requirements[0].partition("=")[0]))
            found, wrong = measure(name, python, request)
            rows += found
            if wrong:
                failed[name] = wrong
    for threads in arguments.threads:
        for shape in shapes:
            print(f"\n{shape[0]}×{shape[1]}, {threads} thread(s): speed-up over bf16 in the same process")
            here = [row for row in rows if row["threads"] == threads and row["shape"] == shape]
            names = list(dict.fromkeys(row["name"] for row in here))
            speeds = {(row["name"], row["rows"]): row["speedup"] for row in here}
            lines = [[name, *(speeds.get((name, count)) for count in arguments.rows)] for name in names]
            print(table(["", *(f"{count} rows" for count in arguments.rows)], lines))
    for name, reason in failed.items():
        print(f"{name}: {reason}")
    write_results("kernel-peers", {"versions": versions, "timings": rows, "failed": failed})


if __name__ == "__main__":
    main()
