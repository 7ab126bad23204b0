"""Quality of recipes on one model: ``python -m benchmarks.quality.recipes MODEL --calibration TEXT --heldout TEXT [--bars]``.

Every recipe is run once by calibration seed through the Python API and evaluated in fp32 on the first consecutive
windows of the held-out text: KL(dense ‖ compressed) in nats by token, top-1 agreement, perplexity, bytes, seconds. The
grid that is always there is nearest and GPTQ, each with min-max and with MSE scales, at the asked-for bits;
``--recipes`` adds shipped ones or files as they are. Prints the table (medians over the seeds) and writes
``benchmarks/results/quality-<model>.json``.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import megabytes, table, write_results
from compress import Recipe, compress, evaluate

Cells = Mapping[str, Mapping[str, float]]
"""Label of a recipe → figure → its median."""


@dataclass(frozen=True)
class Bar:
    """A figure that must not be exceeded: KL of one cell, as it is or as a multiple of another cell's."""

    cell: str
    bound: float
    relative_to: str | None = None

    def check(self, cells: Cells) -> str | None:
        """One line with the measured value and the verdict; None where a cell was not measured."""
        if self.cell not in cells or (self.relative_to is not None and self.relative_to not in cells):
            return None
        value = cells[self.cell]["kl"]
        against = ""
        if self.relative_to is not None:
            value /= cells[self.relative_to]["kl"]
            against = f" / KL of {self.relative_to}"
        verdict = "met" if value <= self.bound else "NOT MET"
        return f"KL of {self.cell}{against} = {value:.4g} (bar {self.bound}): {verdict}"


def bars_of(model: str) -> list[Bar]:
    """The bars at 3 and 2 bits, group 128, asymmetric; absolute ones only for the model they were set on."""
    relative = [
        bar
        for bits in (3, 2)
        for bar in (
            Bar(f"w{bits}-gptq", 0.45, f"{bits} bit nearest min-max"),
            Bar(f"{bits} bit GPTQ min-max", 0.45, f"{bits} bit nearest min-max"),
            Bar(f"{bits} bit nearest MSE", 1.0, f"{bits} bit nearest min-max"),
        )
    ]
    absolute = [Bar("w3-gptq", 0.0120), Bar("w2-gptq", 0.062)]
    return relative + (absolute if model == "docs-llama-13m" else [])


def grid(bits: Sequence[int], group: int, symmetric: bool) -> dict[str, Recipe]:
    """Nearest and GPTQ with both kinds of scales at each number of bits, by label."""
    found = {}
    for width in bits:
        for solver, name in (("nearest", "nearest"), ("gptq", "GPTQ")):
            for scales, kind in (("minmax", "min-max"), ("mse", "MSE")):
                quantize = {"bits": width, "group_size": group, "symmetric": symmetric, "scales": scales}
                data = {
                    "name": f"w{width}-{solver}-{scales}",
                    "steps": [{"quantize": quantize, "solver": solver}],
                }
                found[f"{width} bit {name} {kind}"] = Recipe.parse(data)
    return found


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("model", help="a folder, or 'embedded'")
    parser.add_argument("--calibration", default="embedded", help="text file, or 'embedded'")
    parser.add_argument("--heldout", default="embedded", help="text file, or 'embedded'")
    parser.add_argument(
        "--recipes", default="w4-gptq,w3-gptq,w2-gptq", help="shipped names or files, comma-separated"
    )
    parser.add_argument("--bits", default="4,3,2", help="of the grid; empty for none")
    parser.add_argument("--group", type=int, default=128)
    parser.add_argument("--symmetric", action="store_true")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--length", type=int, default=256, help="of the calibration windows")
    parser.add_argument("--windows", type=int, default=80)
    parser.add_argument("--window-length", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bars", action="store_true", help="print each bar with its measured value")
    parser.add_argument("--work", type=Path, default=Path("build/quality"))
    return parser.parse_args()


def run_seed(
    recipes: Mapping[str, Recipe], seed: int, arguments: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """Compress with every recipe and evaluate all of them beside the dense model; figures by label."""
    outputs, seconds = {}, {}
    for label, recipe in recipes.items():
        out = arguments.work / f"{label.replace(' ', '-')}-{seed}"
        shutil.rmtree(out, ignore_errors=True)
        start = time.perf_counter()
        compress(
            arguments.model,
            recipe,
            out,
            data=arguments.calibration,
            samples=arguments.samples,
            length=arguments.length,
            seed=seed,
            device="cpu",
            gradients=getattr(arguments, "gradients", None),
        )
        outputs[label], seconds[label] = out, time.perf_counter() - start
        print(f"seed {seed}: {label}, {seconds[label]:.1f} s", file=sys.stderr, flush=True)
    measured = evaluate(
        arguments.model,
        list(outputs.values()),
        text=arguments.heldout,
        length=arguments.window_length,
        limit=arguments.windows,
        dtype="fp32",
        device="cpu",
        speed=False,
    )
    figures = {}
    for label, row in zip(outputs, measured.candidates, strict=True):
        figures[label] = {
            "kl": row.kl,
            "top1": row.top1,
            "perplexity": row.perplexity,
            "bytes": row.bytes_on_disk,
            "bits_per_weight": row.bits_per_weight,
            "seconds": seconds[label],
            "dense_perplexity": measured.reference.perplexity,
        }
        shutil.rmtree(outputs[label])
    return figures


def medians(runs: Sequence[Cells]) -> dict[str, dict[str, float]]:
    """The median over the seeds of every figure of every recipe."""
    return {
        label: {name: statistics.median(run[label][name] for run in runs) for name in runs[0][label]}
        for label in runs[0]
    }


def shown(cells: Cells, runs: Sequence[Cells]) -> str:
    """The table; the range of the KL over the seeds stands beside its median."""
    rows = []
    for label, cell in cells.items():
        spread = [run[label]["kl"] for run in runs if label in run]
        rows.append(
            [
                label,
                cell["kl"],
                f"{min(spread):.4g}–{max(spread):.4g}",
                cell["top1"],
                cell["perplexity"],
                megabytes(cell["bytes"]),
                cell["bits_per_weight"],
                cell["seconds"],
            ]
        )
    return table(["", "KL", "over seeds", "top-1", "perplexity", "MB", "bits per weight", "seconds"], rows)


def main() -> None:
    """Run, print, record."""
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    recipes = grid(
        [int(bits) for bits in arguments.bits.split(",") if bits], arguments.group, arguments.symmetric
    )
    recipes |= {Path(name).stem: Recipe.load(name) for name in arguments.recipes.split(",") if name}
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    runs = [run_seed(recipes, seed, arguments) for seed in seeds]
    cells = medians(runs)
    name = Path(arguments.model).name
    dense = next(iter(cells.values()))["dense_perplexity"]
    print(
        f"\n{name}: calibration {arguments.samples} x {arguments.length} tokens, seeds {seeds}; evaluated on "
        f"{arguments.windows} x {arguments.window_length} tokens, fp32; dense perplexity {dense:.2f}\n"
    )
    print(shown(cells, runs))
    checked = [line for line in (bar.check(cells) for bar in bars_of(name)) if line] if arguments.bars else []
    print("\n" + "\n".join(checked))
    conditions: dict[str, Any] = {
        key: getattr(arguments, key)
        for key in ("samples", "length", "windows", "window_length", "group", "threads")
    }
    write_results(
        f"quality-{name}", {**conditions, "seeds": seeds, "cells": cells, "runs": runs, "bars": checked}
    )


if __name__ == "__main__":
    main()
