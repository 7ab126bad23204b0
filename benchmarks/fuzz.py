"""Fuzz the command line: seeded mutations of all that a person can hand to it.

Every end has to be success or one short sentence with status 2, within ten seconds, with nothing written but the output:

    python -m benchmarks.fuzz --count 20000
    python -m benchmarks.fuzz --seeds 17 4711    # single cases again, with what they said
    python -m benchmarks.fuzz --first 2000 --count 1000 --save    # one batch, added to results/fuzz.json
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from compress_kernels import native

from benchmarks.common import RESULTS, machine_record
from benchmarks.fuzzing.cases import Verdict, command_line, run_case
from benchmarks.fuzzing.world import World, build_world

FILE = RESULTS / "fuzz.json"


def main() -> int:
    """Run the cases; the exit status is 0 if none is at fault."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="mostly commands that plan and look")
    parser.add_argument("--seeds", type=int, nargs="*", help="these cases alone, and what they said")
    parser.add_argument(
        "--save",
        action="store_true",
        help=f"add the batch to {RESULTS.name}/{FILE.name}, with commit and date",
    )
    options = parser.parse_args()
    seeds = options.seeds or range(options.first, options.first + options.count)
    scratch = Path(tempfile.mkdtemp(prefix="compress-fuzz-"))
    try:
        faults, ends, seconds = _run_all(
            scratch, seeds, workers=options.workers, quick=options.quick, verbose=bool(options.seeds)
        )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    summary = {
        "cases": len(seeds),
        "seconds": round(seconds, 1),
        "ends": {str(status): count for status, count in sorted(ends.items())},
        "faults": dict(Counter(verdict.fault.split()[0] for verdict in faults)),
        "faulty": [asdict(verdict) for verdict in faults[:20]],
    }
    print(json.dumps(summary, indent=2))
    if options.save:
        faulty = [{"seed": one.seed, "story": one.story, "fault": one.fault} for one in faults]
        save_batch(FILE, {"first": seeds[0], **summary, "faulty": faulty, **_state()})
    return 1 if faults else 0


def _state() -> dict[str, str]:
    """The commit and the day of a batch."""
    record = machine_record()
    return {"revision": record["revision"], "day": record["day"]}


def save_batch(file: Path, batch: dict[str, Any]) -> None:
    """Write a batch to a file of results; it takes the place of those whose seeds it covers.

    Args:
        file: of all batches, with their totals; it need not exist.
        batch: a summary with its first seed ``first``.

    Raises:
        ValueError: a batch of the file holds a part of the seeds and others.
    """
    batches = json.loads(file.read_text(encoding="utf-8"))["batches"] if file.exists() else []
    first, end = batch["first"], batch["first"] + batch["cases"]
    kept = [one for one in batches if one["first"] >= end or one["first"] + one["cases"] <= first]
    for one in batches:
        if one not in kept and (one["first"] < first or one["first"] + one["cases"] > end):
            raise ValueError(f"{file}: the batch that begins at {one['first']} overlaps the new one")
    batches = sorted([*kept, batch], key=lambda one: one["first"])
    totals = {
        "cases": sum(one["cases"] for one in batches),
        "ends": dict(sum((Counter(one["ends"]) for one in batches), Counter())),
        "faults": dict(sum((Counter(one["faults"]) for one in batches), Counter())),
        "revisions": sorted({one["revision"] for one in batches}),
    }
    text = json.dumps({**totals, "machine": machine_record(), "batches": batches}, indent=1)
    file.write_text(text + "\n", encoding="utf-8")


def _run_all(
    scratch: Path, seeds: range | list[int], *, workers: int, quick: bool, verbose: bool
) -> tuple[list[Verdict], Counter[int], float]:
    torch.set_num_threads(1)
    world = build_world(scratch / "world")
    _prepare(world)
    gc.freeze()
    faults: list[Verdict] = []
    ends: Counter[int] = Counter()
    start = time.monotonic()
    case = partial(run_case, world, scratch=scratch, quick=quick)
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        for verdict in pool.map(case, seeds, chunksize=10):
            ends[verdict.status] += 1
            if verdict.fault:
                faults.append(verdict)
            if verbose or verdict.fault:
                _print(verdict)
    # Objects that stay frozen at the end of the interpreter are reported as leaks by the bindings of triton.
    gc.unfreeze()
    return faults, ends, time.monotonic() - start


def _prepare(world: World) -> None:
    """Import and build in the parent, once, what commands load when they need it: children only fork."""
    command_line()
    native.load()
    with suppress(ImportError):
        import bitsandbytes  # noqa: F401, PLC0415  optional
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        command_line()(["inspect", str(world.out)], standalone_mode=False)


def _print(verdict: Verdict) -> None:
    end = f"{verdict.fault or 'fine'} ({verdict.status}, {verdict.seconds:.1f} s)"
    print(f"{verdict.seed}: {verdict.story}: {end}", file=sys.stderr)
    print(
        f"    {' '.join(verdict.arguments)[:200]}\n    {verdict.said.strip()[-1500:]}",
        file=sys.stderr,
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
