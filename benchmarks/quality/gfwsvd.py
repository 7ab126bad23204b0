"""Which factors of the Fisher matrix truncation wants: ``python -m benchmarks.quality.gfwsvd MODEL``.

GFWSVD truncates in the metric ``tr(L Δ R Δᵀ)`` of a Kronecker approximation of the Fisher matrix. Three ways to the factors,
all at the same bytes: K-FAC (``L = E[δ δᵀ]``, ``R = E[x xᵀ]``), the leading singular triple of the Fisher matrix with labels
drawn from the model, and the paper's, the triple of the *observed* Fisher matrix, whose labels are the text's. Each with few
and with many windows of gradients, since a triple has more to estimate. SVD-LLM, without gradients, stands beside them.
Figures go to ``benchmarks/results/gfwsvd-<model>.json``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import table, write_results
from benchmarks.quality.low_rank import earlier, over_seeds, recipe_of, truncations
from benchmarks.quality.recipes import run_seed

METHODS = ("SVD-LLM", "GFWSVD", "GFWSVD, leading triple", "GFWSVD, the paper's")
CONDITIONS = ("length", "windows", "window_length")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("model", help="a folder, or 'embedded'")
    parser.add_argument("--calibration", default="embedded", help="text file, or 'embedded'")
    parser.add_argument("--heldout", default="embedded", help="text file, or 'embedded'")
    parser.add_argument("--ratios", default="0.8,0.6")
    parser.add_argument("--gradients", default="128,512", help="windows of calibration, comma-separated")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--length", type=int, default=256, help="of the calibration windows")
    parser.add_argument("--windows", type=int, default=80)
    parser.add_argument("--window-length", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("build/gfwsvd"))
    return parser.parse_args()


def measure(arguments: argparse.Namespace, samples: int, seed: int) -> dict[str, Any]:
    """Every method at every ratio with ``samples`` windows; figures by ``RATIO METHOD, SAMPLES windows``."""
    recipes = {
        f"{float(ratio):.0%} {method}, {samples} windows": recipe_of(
            method, truncations(float(ratio))[method]
        )
        for ratio in arguments.ratios.split(",")
        for method in METHODS
    }
    asked = argparse.Namespace(**{**vars(arguments), "samples": samples})
    asked.gradients = arguments.work / f"gradients-{samples}"
    return run_seed(recipes, seed, asked)


def main() -> None:
    """Run, print, record."""
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    name = f"gfwsvd-{Path(arguments.model).name}"
    conditions = {key: getattr(arguments, key) for key in CONDITIONS} | {
        "calibration": Path(arguments.calibration).name,
        "heldout": Path(arguments.heldout).name,
    }
    cells: dict[str, dict[str, float]] = {}
    for seed in arguments.seeds.split(","):
        for samples in (int(one) for one in arguments.gradients.split(",")):
            measured = measure(arguments, samples, int(seed))
            runs = earlier(name, conditions)
            runs[seed] = {**runs.get(seed, {}), **measured}
            cells = over_seeds(runs)
            seeds = sorted(int(one) for one in runs)
            write_results(name, {**conditions, "seeds": seeds, "cells": cells, "runs": runs})
    print(
        table(["", "KL", "top-1", "seeds"], [[k, c["kl"], c["top1"], c["seeds"]] for k, c in cells.items()])
    )


if __name__ == "__main__":
    main()
