"""Quality against time: ``python -m benchmarks.frontier MODEL --calibration TEXT --heldout TEXT --cells NAMES``.

A cell is a shipped recipe, or another cell that ``compress heal`` trains further. Each runs as a command of its own on a fixed
number of threads; wall time, processor time and peak memory are the command's, a healed cell's with its base's. KL(dense ‖
compressed) by token with its standard error over windows, top-1 agreement and perplexity are measured on the first windows of
the held-out text in fp32. Cells are recorded by seed as they finish in ``benchmarks/results/frontier-<model>.json``; those that
are there are not run again. The table shows medians over seeds. ``--cells list`` names the cells.

On a GPU (``--device cuda``) the file is ``frontier-<model>-<device>.json``. ``--processes`` cells run at once, whose wall
times then are no measure of a cell alone; a cell that fails is told, and the others go on.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import (
    REPOSITORY,
    RESULTS,
    Measured,
    RunFailed,
    fixed_threads,
    machine_record,
    megabytes,
    run_measured,
    table,
    write_results,
)
from compress import evaluate
from compress.errors import UserError

COMMAND = (sys.executable, "-m", "compress_cli")


@dataclass(frozen=True)
class Cell:
    """A recipe, or another cell that is healed.

    Attributes:
        recipe: a shipped name; empty where it is healed.
        base: the cell that is healed.
        train: what is trained, as ``--train`` takes it.
        rate: the largest learning rate.
    """

    recipe: str = ""
    base: str = ""
    train: str = ""
    rate: float = 0.0


def _cells() -> dict[str, Cell]:
    grids = ("w4-gptq", "w4-gptq-asym", "w3-gptq", "w2-gptq", "best-w4", "best-w3", "best-w2")
    masks = ("sparse24-awp", "sparse70-awp")
    others = (
        "w4-rtn",
        "w4-hqq",
        "w4-awq",
        "w4-adaround",
        "sparse50-awp",
        "sparse50-sparsegpt",
        "nf4",
        "w8",
        "svd80",
    )
    found = {name: Cell(name) for name in (*grids, *masks, *others)}
    for name in grids:
        found[f"{name} + scales"] = Cell(base=name, train="scales,norms", rate=1e-3)
        found[f"{name} + codes"] = Cell(base=name, train="codes,scales,norms", rate=1e-3)
    for name in masks:
        found[f"{name} + values"] = Cell(base=name, train="values,norms", rate=1e-3)
    return found


CELLS: Mapping[str, Cell] = _cells()


Runs = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Cell → seed → what was measured."""


@dataclass
class Bench:
    """One run of the script: what was asked for, and what is recorded."""

    arguments: argparse.Namespace
    runs: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    recording: threading.Lock = field(default_factory=threading.Lock)

    @property
    def name(self) -> str:
        """The name of the result file, without its ending."""
        device = "" if self.arguments.device == "cpu" else f"-{self.device.lower().replace(' ', '-')}"
        return f"frontier-{Path(self.arguments.model).name.lower()}{device}"

    @cached_property
    def device(self) -> str:
        """The name of the GPU, or ``cpu``."""
        asked = self.arguments.device
        return str(torch.cuda.get_device_name(asked)) if asked.startswith("cuda") else asked

    @property
    def conditions(self) -> dict[str, Any]:
        """What must be equal for cells to stand in one table."""
        asked = (
            "samples",
            "length",
            "windows",
            "window_length",
            "group",
            "threads",
            "tokens",
            "heal_length",
            "heal_batch",
        )
        kinds = {"heal_text": Path(self.arguments.heal_text).name} if self.arguments.heal_text else {}
        return {key: getattr(self.arguments, key) for key in asked} | kinds

    def begin(self) -> None:
        """Take over what an earlier run under the same conditions recorded.

        Raises:
            SystemExit: it ran under other conditions.
        """
        path = RESULTS / f"{self.name}.json"
        if path.exists():
            earlier = json.loads(path.read_text(encoding="utf-8"))
            if earlier["conditions"] != self.conditions:
                raise SystemExit(
                    f"{path.name} was measured under {earlier['conditions']}: give the same options or remove it"
                )
            self.runs = earlier["runs"]

    def jobs(self) -> list[tuple[str, int]]:
        """Cells and seeds that are to run, a base before what is made of it."""
        found: dict[tuple[str, int], None] = {}
        for seed in (int(one) for one in self.arguments.seeds.split(",")):
            for name in self.arguments.cells:
                for needed in (CELLS[name].base, name):
                    if needed and not self._is_there(needed, seed):
                        found[needed, seed] = None
        return list(found)

    def run(self, name: str, seed: int) -> None:
        """Measure a cell whose base has been measured.

        Raises:
            RunFailed: its command failed.
        """
        cell = CELLS[name]
        shutil.rmtree(self._out(name, seed), ignore_errors=True)
        measured = run_measured(
            [*COMMAND, *self._options(name, cell, seed)],
            environment=self._environment(),
        )
        with self.recording:
            row = self._row(name, cell, seed, measured)
            self.begin()  # another run of the script may have recorded cells
            self.runs.setdefault(name, {})[str(seed)] = row
            write_results(
                self.name, {"device": self.device, "conditions": self.conditions, "runs": self.runs}
            )
        print(json.dumps({f"{name}, seed {seed}": row}), flush=True)

    def _environment(self) -> dict[str, str]:
        fixed = fixed_threads(self.arguments.threads) | {"PYTHONPATH": _paths()}
        if self.arguments.device != "cpu":
            fixed.pop("CUDA_VISIBLE_DEVICES")
        return fixed

    def _options(self, name: str, cell: Cell, seed: int) -> list[str]:
        asked, out = self.arguments, self._common_options(name, seed)
        if cell.base:
            base = str(self._out(cell.base, seed))
            sizes = ["--set", f"length={asked.heal_length}", "--set", f"batch={asked.heal_batch}"]
            trained = ["--train", cell.train, "--rate", str(cell.rate), "--tokens", asked.tokens]
            return [
                "heal",
                base,
                "--source",
                asked.model,
                "--data",
                asked.heal_text or asked.calibration,
                *trained,
                *sizes,
                *out,
            ]
        drawn = ["--samples", str(asked.samples), "--length", str(asked.length)]
        grouped = asked.group and cell.recipe.startswith(("w2", "w3", "w4", "best"))
        group = ["--set", f"quantize.group_size={asked.group}"] if grouped else []
        return ["run", asked.model, "-r", cell.recipe, "--data", asked.calibration, *drawn, *group, *out]

    def _row(self, name: str, cell: Cell, seed: int, measured: Measured) -> dict[str, Any]:
        asked, base = self.arguments, self.runs.get(cell.base, {}).get(str(seed), {})
        found = evaluate(
            asked.model,
            [self._out(name, seed)],
            text=asked.heldout,
            length=asked.window_length,
            limit=asked.windows,
            dtype="fp32",
            device=asked.device,
            speed=False,
        ).candidates[0]
        return {
            "kl": found.kl,
            "kl_error": found.kl_error,
            "top1": found.top1,
            "perplexity": found.perplexity,
            "bytes": found.bytes_on_disk,
            "bits_per_weight": found.bits_per_weight,
            "seconds": measured.seconds + base.get("seconds", 0.0),
            "cpu_seconds": measured.cpu_seconds + base.get("cpu_seconds", 0.0),
            "peak_bytes": max(measured.peak_bytes, base.get("peak_bytes", 0)),
            "load_average": machine_record()["load_average"],
        }

    def _common_options(self, name: str, seed: int) -> list[str]:
        checked = () if self.arguments.device == "cpu" else ("--no-fresh-process",)
        placed = ("--device", self.arguments.device, "--seed", str(seed))
        return ["-o", str(self._out(name, seed)), "--quiet", *placed, *checked]

    def _is_there(self, name: str, seed: int) -> bool:
        """Whether a cell is recorded, and its output there if another cell is made of it."""
        recorded = str(seed) in self.runs.get(name, {})
        return recorded and (self._out(name, seed).exists() or not self._is_base(name, seed))

    def _out(self, name: str, seed: int) -> Path:
        return Path(self.arguments.work) / f"{name.replace(' ', '')}-seed{seed}"

    def _is_base(self, name: str, seed: int) -> bool:
        asked = self.arguments.cells
        return any(CELLS[other].base == name and str(seed) not in self.runs.get(other, {}) for other in asked)


def medians(runs: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The medians over seeds of what was measured for one cell."""
    rows = list(runs.values())
    return {key: statistics.median(row[key] for row in rows) for key in rows[0]}


def frontier_table(runs: Runs) -> str:
    """The table of recorded cells, those of one base below each other; medians over the seeds that were run."""
    heads = ["", "seeds", "KL", "±", "÷ base", "top-1", "perplexity", "MB", "processor s", "peak MB"]
    known = [name for name in CELLS if name in runs]
    by_base = sorted(known, key=lambda name: (known.index(CELLS[name].base or name), name))
    rows = {name: medians(runs[name]) for name in known}
    return table(
        heads,
        [
            [
                name,
                len(runs[name]),
                row["kl"],
                row["kl_error"],
                row["kl"] / rows[CELLS[name].base]["kl"] if CELLS[name].base in rows else None,
                row["top1"],
                row["perplexity"],
                megabytes(int(row["bytes"])),
                round(row["cpu_seconds"]),
                round(row["peak_bytes"] / 1e6),
            ]
            for name, row in ((name, rows[name]) for name in by_base)
        ],
    )


def carry_out(bench: Bench, jobs: list[tuple[str, int]], processes: int) -> None:
    """Run cells in their order, ``processes`` at once; one waits for its base and is left out where that failed."""
    state = threading.Condition()
    open_jobs, going = list(jobs), set[tuple[str, int]]()

    def next_job() -> tuple[str, int] | None:
        for job in open_jobs:
            base = (CELLS[job[0]].base, job[1])
            if base not in going and base not in open_jobs:
                return job
        return None

    def work() -> None:
        while True:
            with state:
                state.wait_for(lambda: not open_jobs or next_job() is not None)
                job = next_job()
                if job is None:
                    return
                open_jobs.remove(job)
                going.add(job)
            try:
                bench.run(*job)
            except (RunFailed, UserError, RuntimeError) as error:
                print(f"{job[0]}, seed {job[1]}: {error}", flush=True)
                with state:
                    open_jobs[:] = [one for one in open_jobs if (CELLS[one[0]].base, one[1]) != job]
            finally:
                with state:
                    going.discard(job)
                    state.notify_all()

    workers = [threading.Thread(target=work) for _ in range(processes)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def _paths() -> str:
    own = [str(REPOSITORY / part) for part in ("", "kernels", "cli")]
    return ":".join([*own, *filter(None, [os.environ.get("PYTHONPATH")])])


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("model", help="a folder, or 'embedded'")
    parser.add_argument("--calibration", default="embedded", help="text file, or 'embedded'")
    parser.add_argument("--heldout", default="embedded", help="text file, or 'embedded'")
    parser.add_argument(
        "--cells", default="w3-gptq,w3-gptq + scales", help="comma-separated; 'list' names them"
    )
    parser.add_argument("--group", type=int, default=64, help="of the grids; 0 leaves the recipe's")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--length", type=int, default=512, help="of the calibration windows")
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--window-length", type=int, default=512)
    parser.add_argument("--tokens", default="250k", help="that healed cells are trained on")
    parser.add_argument("--heal-length", type=int, default=256)
    parser.add_argument("--heal-batch", type=int, default=8)
    parser.add_argument(
        "--heal-text", help="text file that healed cells are trained on, if not --calibration"
    )
    parser.add_argument("--seeds", default="0", help="comma-separated")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--processes", type=int, default=1, help="cells that run at once")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", default="build/frontier")
    return parser.parse_args()


def main() -> None:
    """Run, print, record."""
    arguments = parse()
    if arguments.cells == "list":
        print("\n".join(CELLS))
        return
    arguments.cells = [name.strip() for name in arguments.cells.split(",")]
    if unknown := set(arguments.cells) - CELLS.keys():
        sys.exit(f"there is no cell {', '.join(sorted(unknown))}: --cells list names them")
    bench = Bench(arguments)
    bench.begin()
    carry_out(bench, bench.jobs(), arguments.processes)
    print(frontier_table(bench.runs))


if __name__ == "__main__":
    main()
