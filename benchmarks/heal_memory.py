"""Memory of healing: ``python -m benchmarks.heal_memory [--blocks 4 12]``.

Random Llamas of 4 bits are healed for a few steps, each in a process forked for it, whose anonymous memory is sampled every
5 ms. ``beyond`` is the peak beyond what stands when training begins (both models and what is trained); ``of_all`` is the peak
beyond what stands after the fork. SPSA is held against a process that loads both models and runs them on the same windows.
Adds a run to ``benchmarks/results/heal-memory.json``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import RESULTS, anonymous_bytes, machine_record
from benchmarks.speed.random_models import Shape, write_model
from compress import Recipe, compress, heal, load
from compress.assets import embedded_model
from compress.system.progress import Silent

LENGTH, BATCH, STEPS = 256, 4, 1
RECIPE = {
    "name": "w4",
    "steps": [{"targets": ["linear"], "quantize": {"bits": 4, "group_size": 64}, "solver": "nearest"}],
}
WAYS: dict[str, dict[str, Any]] = {
    "adamw": {},
    "adamw, checkpointing": {"checkpointing": True},
    "spsa": {"optimizer": "spsa", "rate": 1e-4},
}
INFERENCE = "both models on the windows"


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
        mark(self.events)

    def finish(self) -> None:
        mark(self.events)


def mark(events: Path) -> None:
    with events.open("a", encoding="utf-8") as file:
        file.write(f"{time.monotonic()}\n")


def child(way: str, work: Path, blocks: int) -> None:
    """What a measured process does."""
    source, out, events = work / f"dense-{blocks}", work / f"w4-{blocks}", work / "events"
    if way == INFERENCE:
        models = [load(one, dtype=torch.bfloat16, device="cpu") for one in (out, source)]
        mark(events)
        tokens = torch.randint(100, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            for model in models:
                model(input_ids=tokens, use_cache=False)
        mark(events)
        return
    common = {"tokens": STEPS * BATCH * LENGTH, "length": LENGTH, "batch": BATCH, "holdout": 1}
    heal(
        out,
        source=source,
        data="embedded",
        train=["norms"],
        settings={**common, "evaluations": 1, **WAYS.get(way, {})},
        new=work / "healed",
        overwrite=True,
        device="cpu",
        progress=Marked(events),
    )


def measured(way: str, work: Path, blocks: int) -> Row:
    """Fork, let the child do it, and watch its memory."""
    events, samples = work / "events", []
    events.unlink(missing_ok=True)
    process = get_context("fork").Process(target=child, args=(way, work, blocks))
    process.start()
    assert process.pid is not None
    while process.is_alive():
        samples.append((time.monotonic(), anonymous_bytes(process.pid)))
        time.sleep(0.005)
    if process.exitcode:
        raise RuntimeError(f"{way} ended with {process.exitcode}")
    begin, end = (float(line) for line in events.read_text().split())
    first = next(size for _, size in samples if size)
    before = [size for at, size in samples if at <= begin and size][-1]
    peak = max(size for at, size in samples if begin <= at <= end)
    return Row(way, blocks, max(0, peak - before), peak - first)


def main() -> None:
    """Write the models, measure every way and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--blocks", type=int, nargs="*", default=[4, 12])
    parser.add_argument("--ways", nargs="*", choices=[*WAYS], default=[*WAYS])
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--results", default=str(RESULTS / "heal-memory.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    words = json.loads((embedded_model() / "config.json").read_text())["vocab_size"]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for blocks in options.blocks:
            shape = Shape(options.hidden, 11 * options.hidden // 4, options.hidden // 64, blocks, words)
            write_model(work / f"dense-{blocks}", shape, embedded_model())
            compress(work / f"dense-{blocks}", Recipe.parse(RECIPE), work / f"w4-{blocks}")
            for way in (INFERENCE, *options.ways):
                rows.append(measured(way, work, blocks))
                print(json.dumps(asdict(rows[-1])), flush=True)
    run = {"hidden": options.hidden, "tokens": BATCH * LENGTH, "rows": [asdict(row) for row in rows]}
    path = Path(options.results)
    runs = json.loads(path.read_text())["runs"] if path.exists() else []
    path.write_text(json.dumps({"machine": machine_record(), "runs": [*runs, run]}, indent=1) + "\n")
    _print(rows)


def _print(rows: list[Row]) -> None:
    found = {(row.way, row.blocks): row for row in rows}
    for (way, blocks), row in found.items():
        ratio = row.of_all / found[INFERENCE, blocks].of_all
        print(f"| {way} | {blocks} | {row.beyond / 1e6:.0f} MB | {row.of_all / 1e6:.0f} MB | {ratio:.2f} |")


if __name__ == "__main__":
    main()
