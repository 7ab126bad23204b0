"""Whether a run keeps to its promise of memory: a random Llama of any size goes through a recipe within a bound.

``python -m benchmarks.promised_memory WORK --hidden 4096 --ffn 14336 --heads 32 --kv-heads 8 --vocabulary 128256 --blocks 32
--memory 6GB`` writes a checkpoint of 16 GB (the shape of an 8 B Llama, bf16) into WORK, shard by shard, compresses it with
few calibration tokens in a process of its own, and prints that process's peak beside what ``compress plan`` says. Fewer blocks
show the same peak, which is that of a block and of what lies outside of the blocks; the time of all is extrapolated.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.common import (
    REPOSITORY,
    Measured,
    fixed_threads,
    megabytes,
    run_measured,
    table,
    write_results,
)
from benchmarks.speed.random_models import Shape, write_model

EMBEDDED = REPOSITORY / "compress" / "assets" / "embedded"
DEPTH = 32
"""Blocks of the model that the time is extrapolated to."""


def needed_bytes(shape: Shape) -> int:
    """Bytes of disk: the checkpoint, and an output of at most its size."""
    outside = (1 if shape.tied else 2) * 2 * shape.vocabulary * shape.hidden
    return 2 * (shape.blocks * shape.block_bytes + outside)


def command(arguments: argparse.Namespace, verb: str, *more: str) -> list[str]:
    """``compress plan`` or ``run`` of the random model."""
    asked = ["-r", arguments.recipe, "--samples", str(arguments.samples), "--length", str(arguments.length)]
    bound = ["--memory", arguments.memory] if arguments.memory else []
    model = str(arguments.work / "model")
    return [sys.executable, "-m", "compress_cli", verb, model, *asked, *bound, *more]


def environment(arguments: argparse.Namespace) -> dict[str, str]:
    """A fixed number of threads, and this repository's packages."""
    paths = (REPOSITORY, REPOSITORY / "kernels", REPOSITORY / "cli")
    return {**fixed_threads(arguments.threads), "PYTHONPATH": ":".join(map(str, paths))}


def planned(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the plan says; the benchmark ends where it refuses."""
    done = subprocess.run(
        command(arguments, "plan", "--json"),
        env=environment(arguments),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr.strip() or f"compress plan ended with {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measure(arguments: argparse.Namespace) -> tuple[Measured, dict[str, Any]]:
    """Run the recipe in a process of its own; its figures and its report."""
    out = arguments.work / "out"
    shutil.rmtree(out, ignore_errors=True)
    run = command(arguments, "run", "-o", str(out), "--no-fresh-process", "--quiet")
    measured = run_measured(run, environment=environment(arguments))
    report: dict[str, Any] = json.loads((out / "compress.json").read_text(encoding="utf-8"))
    return measured, report


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("work", type=Path, help="folder for the checkpoint and the output; both are deleted")
    for name, default in (("hidden", 512), ("ffn", 1408), ("heads", 8), ("kv-heads", 8), ("blocks", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--recipe", default="w4-gptq")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory", default=None, help="the bound, such as 6GB")
    parser.add_argument("--name", default="promised-memory", help="of the file of results")
    return parser.parse_args(arguments)


def main() -> None:
    """Write the model, plan, run, print and record."""
    arguments = parse()
    arguments.work.mkdir(parents=True, exist_ok=True)
    shape = Shape(
        arguments.hidden, arguments.ffn, arguments.heads, arguments.blocks, arguments.vocabulary,
        arguments.kv_heads, tied=False,
    )  # fmt: skip
    free = shutil.disk_usage(arguments.work).free
    if free < 1.1 * needed_bytes(shape):
        raise SystemExit(f"{arguments.work}: {megabytes(needed_bytes(shape))} MB of disk are needed")
    source = write_model(arguments.work / "model", shape, EMBEDDED)
    try:
        plan = planned(arguments)
        measured, report = measure(arguments)
    finally:
        shutil.rmtree(arguments.work / "model", ignore_errors=True)
        shutil.rmtree(arguments.work / "out", ignore_errors=True)
    by_block = [block["seconds"] for block in report["blocks"]]
    whole = measured.seconds + (DEPTH - shape.blocks) * sum(by_block) / max(1, len(by_block))
    row = {
        "source MB": megabytes(source),
        "planned MB beyond imports": megabytes(plan["peak_memory"]),
        "held MB beyond imports": megabytes(report["peak_bytes"]),
        "peak MB of the process": megabytes(measured.peak_bytes),
        "seconds": measured.seconds,
        "CPU seconds": measured.cpu_seconds,
        f"seconds at {DEPTH} blocks, extrapolated": whole,
    }
    print(table(list(row), [list(row.values())]))
    told = {key: value for key, value in vars(arguments).items() if key not in {"work", "name"}}
    steps = {step["name"]: [step["seconds"], step["peak_bytes"]] for step in report["steps"]}
    write_results(arguments.name, {**told, **row, "steps": steps})


if __name__ == "__main__":
    main()
