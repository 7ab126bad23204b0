"""How memory grows: with the number of blocks, on a checkpoint larger than memory would hold, and beside a peer.

``python -m benchmarks.speed.scaling blocks`` compresses two random models that differ only in their number of blocks,
``large`` a random checkpoint of 8 GB, ``peers`` a few blocks with us and with llm-compressor. Models are written into
the work folder and deleted afterwards. Every figure is a peak of anonymous memory beyond what stands after the imports,
sampled from outside every 5 ms.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.common import REPOSITORY, Measured, megabytes, table, write_results
from benchmarks.peers.environments import OURS, PEERS, python_of
from benchmarks.peers.jobs import Entry, Setting, draw, our_entry, run_entry
from benchmarks.speed.random_models import Shape, write_model

EMBEDDED = REPOSITORY / "compress" / "assets" / "embedded"
BLOCK = Shape(hidden=2048, ffn=6144, heads=16, blocks=6, vocabulary=8192)
LARGE = Shape(hidden=4096, ffn=11008, heads=32, blocks=20, vocabulary=8192)
GROWTH_BAR, LARGE_BAR_BYTES, PEER_BAR = 1.10, 3e9, 0.6


def measure(
    entry: Entry, shape: Shape, arguments: argparse.Namespace, samples: int, length: int, keep: bool = False
) -> Measured:
    """Write the random model, run the tool once on it, delete what it wrote and (unless ``keep``) the model."""
    work = arguments.work.resolve()
    model = work / "models" / f"random-{shape.hidden}-{shape.blocks}"
    if not (model / "model.safetensors.index.json").exists():
        write_model(model, shape, arguments.tokenizer)
    setting = Setting(model, arguments.calibration, samples=samples, length=length, threads=arguments.threads)
    try:
        measured, out, _ = run_entry(entry, setting, work, draw(setting, work))
        shutil.rmtree(out)
    finally:
        if not keep:
            shutil.rmtree(model)
    print(
        f"{entry.label} on {shape.blocks} blocks of {megabytes(shape.block_bytes)} MB: "
        f"{megabytes(measured.beyond_bytes)} MB beyond imports, {measured.proper:.0f} s",
        flush=True,
    )
    return measured


def row(label: str, shape: Shape, measured: Measured) -> list[object]:
    """One line of the table."""
    return [
        label,
        shape.blocks,
        megabytes(shape.block_bytes),
        megabytes(shape.blocks * shape.block_bytes),
        megabytes(measured.beyond_bytes),
        measured.proper,
        measured.cpu_seconds,
    ]


def blocks(arguments: argparse.Namespace) -> tuple[list[list[object]], dict[str, Any]]:
    """Peak on 24 blocks against the peak on 6 of the same width."""
    few, many = BLOCK, replace(BLOCK, blocks=24)
    entry = our_entry(arguments.recipe, _grid(arguments))
    runs = {
        shape.blocks: measure(entry, shape, arguments, arguments.samples, arguments.length)
        for shape in (few, many)
    }
    growth = runs[24].beyond_bytes / runs[6].beyond_bytes
    print(_verdict("peak on 24 blocks against 6", growth, GROWTH_BAR))
    rows = [row(arguments.recipe, shape, runs[shape.blocks]) for shape in (few, many)]
    return rows, {"growth": growth, "bar": GROWTH_BAR}


def large(arguments: argparse.Namespace) -> tuple[list[list[object]], dict[str, Any]]:
    """The 8 GB checkpoint, rounded to nearest and with GPTQ."""
    rows: list[list[object]] = []
    peaks: dict[str, float] = {}
    for recipe in arguments.recipe.split(","):
        entry = our_entry(recipe, _grid(arguments))
        run = measure(entry, LARGE, arguments, arguments.samples, arguments.length, keep=True)
        rows.append(row(recipe, LARGE, run))
        peaks[recipe] = run.beyond_bytes
        print(_verdict(f"peak of {recipe} on 8 GB, bytes", run.beyond_bytes, LARGE_BAR_BYTES))
    shutil.rmtree(arguments.work.resolve() / "models" / f"random-{LARGE.hidden}-{LARGE.blocks}")
    return rows, {"peak_bytes": peaks, "bar_bytes": LARGE_BAR_BYTES}


def peers(arguments: argparse.Namespace) -> tuple[list[list[object]], dict[str, Any]]:
    """Peak and time of ours against llm-compressor's GPTQ on two blocks."""
    shape = replace(BLOCK, blocks=2)
    entries = [our_entry(arguments.recipe, _grid(arguments)), Entry(PEERS["llmcompressor"], "gptq")]
    runs = [
        measure(entry, shape, arguments, arguments.samples, arguments.length, keep=True) for entry in entries
    ]
    shutil.rmtree(arguments.work.resolve() / "models" / f"random-{shape.hidden}-{shape.blocks}")
    memory = runs[0].beyond_bytes / runs[1].beyond_bytes
    seconds = runs[0].proper / runs[1].proper
    print(_verdict("memory against llm-compressor", memory, PEER_BAR))
    print(_verdict("seconds against llm-compressor", seconds, 0.25))
    rows = [row(entry.label, shape, run) for entry, run in zip(entries, runs, strict=True)]
    return rows, {"memory": memory, "seconds": seconds, "phases": [asdict(run)["phases"] for run in runs]}


def _grid(arguments: argparse.Namespace) -> Setting:
    return Setting(
        Path(), arguments.calibration, bits=4, group=128, symmetric=True, threads=arguments.threads
    )


def _verdict(what: str, value: float, bar: float) -> str:
    return f"{what}: {value:.4g} (bar {bar:.4g}): {'met' if value <= bar else 'NOT MET'}"


EXPERIMENTS: dict[str, Callable[[argparse.Namespace], tuple[list[list[object]], dict[str, Any]]]] = {
    "blocks": blocks,
    "large": large,
    "peers": peers,
}
DEFAULTS = {
    "blocks": ("w4-gptq", 32, 512),
    "large": ("w4-rtn,w4-gptq", 8, 512),
    "peers": ("w4-gptq", 32, 512),
}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; what is not given is the experiment's own default."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("--recipe", default=None)
    parser.add_argument("--calibration", default="embedded", help="text file, or 'embedded'")
    parser.add_argument(
        "--tokenizer", type=Path, default=EMBEDDED, help="folder whose tokenizer the random models get"
    )
    parser.add_argument("--samples", type=int, default=None)
    parser.add_argument("--length", type=int, default=None)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("build/peers"))
    parsed = parser.parse_args(arguments)
    recipe, samples, length = DEFAULTS[parsed.experiment]
    parsed.recipe = parsed.recipe or recipe
    parsed.samples, parsed.length = parsed.samples or samples, parsed.length or length
    return parsed


def main() -> None:
    """Run one experiment, print it, record it."""
    arguments = parse()
    arguments.work.mkdir(parents=True, exist_ok=True)
    python_of(OURS, arguments.work.resolve(), refresh=True)
    if arguments.experiment == "peers":
        python_of(PEERS["llmcompressor"], arguments.work.resolve())
    rows, figures = EXPERIMENTS[arguments.experiment](arguments)
    headers = ["", "blocks", "MB a block", "MB of blocks", "peak MB beyond imports", "seconds", "cpu seconds"]
    print("\n" + table(headers, rows))
    conditions = {"samples": arguments.samples, "length": arguments.length, "threads": arguments.threads}
    write_results(
        f"scaling-{arguments.experiment}", {**conditions, "columns": headers, "rows": rows, **figures}
    )


if __name__ == "__main__":
    main()
