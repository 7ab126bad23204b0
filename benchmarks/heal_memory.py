"""Memory of healing: ``python -m benchmarks.heal_memory [--blocks 4 12]``.

Random Llamas of 4 bits are healed for a few steps, each in a process of its own. ``beyond`` is the peak of anonymous memory
beyond what stands when training begins (both models and what is trained); ``of all`` is the peak beyond the imports. SPSA is
held against a process that loads both models and runs them on the same windows. Writes
``benchmarks/results/heal-memory.json``.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import RESULTS, fixed_threads, machine_record, run_measured
from benchmarks.speed.random_models import Shape, write_model
from compress import Recipe, compress, heal, load
from compress.assets import embedded_model
from compress.system.progress import Silent

LENGTH, BATCH, STEPS = 256, 8, 3
RECIPE = {
    "name": "w4",
    "steps": [{"targets": ["linear"], "quantize": {"bits": 4, "group_size": 128}, "solver": "nearest"}],
}
WAYS: dict[str, dict[str, Any]] = {
    "adamw": {},
    "adamw, checkpointing": {"checkpointing": True},
    "spsa": {"optimizer": "spsa", "rate": 1e-4},
}
INFERENCE, IMPORTS = "both models on the windows", "imports alone"


@dataclass(frozen=True)
class Row:
    """Peaks in bytes of a way of healing a model of so many blocks."""

    way: str
    blocks: int
    beyond: int
    of_all: int


class Marked(Silent):
    """Writes down when training begins and when it ends."""

    def __init__(self, events: Path) -> None:
        self.events = events

    def start(self, total_blocks: int, total_weights: int, total_bytes: int) -> None:
        mark(self.events, "imported")

    def finish(self) -> None:
        mark(self.events, "finished")


def mark(events: Path, name: str) -> None:
    with events.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"name": name, "time": time.monotonic()}) + "\n")


def child(way: str, work: Path, blocks: int) -> None:
    """What a measured process does."""
    source, out, events = work / f"dense-{blocks}", work / f"w4-{blocks}", work / "events"
    if way == IMPORTS:
        mark(events, "imported")
        time.sleep(0.1)
        mark(events, "finished")
    elif way == INFERENCE:
        models = [load(one, dtype=torch.bfloat16, device="cpu") for one in (out, source)]
        mark(events, "imported")
        tokens = torch.randint(100, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            for model in models:
                model(input_ids=tokens, use_cache=False)
        mark(events, "finished")
    else:
        common = {"tokens": STEPS * BATCH * LENGTH, "length": LENGTH, "batch": BATCH, "holdout": 2}
        heal(
            out,
            source=source,
            data="embedded",
            train=["norms"],
            settings={**common, "evaluations": 1, **WAYS[way]},
            new=work / "healed",
            overwrite=True,
            device="cpu",
            progress=Marked(events),
        )


def measured(way: str, work: Path, blocks: int) -> Row:
    command = [sys.executable, "-m", "benchmarks.heal_memory", "--child", way, str(work), str(blocks)]
    root = Path(__file__).parents[1]
    environment = {**fixed_threads(1), "PYTHONPATH": f"{root}:{root / 'kernels'}:{root / 'cli'}"}
    found = run_measured(command, environment=environment, events=work / "events", cwd=root)
    return Row(way, blocks, found.beyond_bytes, found.peak_bytes)


def main() -> None:
    """Write the models, measure every way and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--blocks", type=int, nargs="*", default=[4, 12])
    parser.add_argument("--results", default=str(RESULTS / "heal-memory.json"))
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        way, work, blocks = options.child
        child(way, Path(work), int(blocks))
        return
    words = json.loads((embedded_model() / "config.json").read_text())["vocab_size"]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for blocks in options.blocks:
            write_model(work / f"dense-{blocks}", Shape(512, 1408, 8, blocks, words), embedded_model())
            compress(work / f"dense-{blocks}", Recipe.parse(RECIPE), work / f"w4-{blocks}")
            for way in (IMPORTS, INFERENCE, *WAYS):
                rows.append(measured(way, work, blocks))
                print(json.dumps(asdict(rows[-1])), flush=True)
    Path(options.results).write_text(
        json.dumps({"machine": machine_record(), "rows": [asdict(row) for row in rows]}, indent=1) + "\n"
    )
    _print(rows)


def _print(rows: list[Row]) -> None:
    found = {(row.way, row.blocks): row for row in rows}
    for (way, blocks), row in found.items():
        if way != IMPORTS:
            above = row.of_all - found[IMPORTS, blocks].of_all
            inference = found[INFERENCE, blocks].of_all - found[IMPORTS, blocks].of_all
            print(
                f"| {way} | {blocks} | {row.beyond / 1e6:.0f} MB | {above / 1e6:.0f} MB | {above / inference:.2f} |"
            )


if __name__ == "__main__":
    main()
