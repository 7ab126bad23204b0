"""Measuring cells: each is a command of its own, recorded as it ends."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import threading
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
    run_measured,
    write_results,
)
from benchmarks.frontier.cells import CELLS, Cell
from compress import evaluate
from compress.errors import UserError

COMMAND = (sys.executable, "-m", "compress_cli")


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
        named = ("calibration", "heldout", "heal_text")
        texts = {key: Path(text).name for key in named if (text := getattr(self.arguments, key))}
        return {key: getattr(self.arguments, key) for key in asked} | texts

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
        fixed = fixed_threads(self.arguments.threads) | {"PYTHONPATH": source_paths()}
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
        checked = [] if asked.device == "cpu" else ["--no-fresh-process"]
        return [
            "run",
            asked.model,
            "-r",
            cell.recipe,
            "--data",
            asked.calibration,
            *drawn,
            *group,
            *checked,
            *out,
        ]

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
            **({"base_kl": base["kl"]} if base else {}),
            "peak_bytes": max(measured.peak_bytes, base.get("peak_bytes", 0)),
            "load_average": machine_record()["load_average"],
        }

    def _common_options(self, name: str, seed: int) -> list[str]:
        placed = ("--device", self.arguments.device, "--seed", str(seed))
        return ["-o", str(self._out(name, seed)), "--quiet", *placed]

    def _is_there(self, name: str, seed: int) -> bool:
        """Whether a cell is recorded, and its output there if another cell is made of it."""
        recorded = str(seed) in self.runs.get(name, {})
        return recorded and (self._out(name, seed).exists() or not self._is_base(name, seed))

    def _out(self, name: str, seed: int) -> Path:
        return Path(self.arguments.work) / f"{name.replace(' ', '')}-seed{seed}"

    def _is_base(self, name: str, seed: int) -> bool:
        asked = self.arguments.cells
        return any(CELLS[other].base == name and str(seed) not in self.runs.get(other, {}) for other in asked)


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


def source_paths() -> str:
    """This repository's folders, then what PYTHONPATH names."""
    own = [str(REPOSITORY / part) for part in ("", "kernels", "cli")]
    return ":".join([*own, *filter(None, [os.environ.get("PYTHONPATH")])])
