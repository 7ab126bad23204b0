"""Low rank side by side: ``python -m benchmarks.quality.low_rank MODEL --calibration TEXT --heldout TEXT``.

At each ratio of the linear layers' parameters: SVD, FWSVD, ASVD, SVD-LLM and GFWSVD with uniform ranks, ranks by layer,
shared input factors, LOST and OATS at the same bytes, all with uniform and with chosen shares; narrower FFNs and dropped
blocks; then grids of few bits with and without a low-rank part. Every cell is run once by
calibration seed through the Python API and evaluated as ``benchmarks.quality.recipes`` does it. Prints the medians and each
bar with its measured value, and writes ``benchmarks/results/lowrank-<model>.json`` after every seed; a second call adds
seeds.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import RESULTS, write_results
from benchmarks.quality.recipes import Bar, medians, run_seed, shown
from compress import Recipe

CONDITIONS = ("samples", "length", "windows", "window_length")

SHAPES: dict[str, dict[str, Any]] = {
    "neurons 75%": {"width_pruning": {"neurons": 0.75}},
    "neurons 50%": {"width_pruning": {"neurons": 0.5}},
    "neurons 75% by Fisher": {"width_pruning": {"neurons": 0.75, "allocate": "fisher"}},
    "neurons 50% by Fisher": {"width_pruning": {"neurons": 0.5, "allocate": "fisher"}},
    "groups 50%": {"width_pruning": {"groups": 0.5}},
    "one block fewer": {"depth_pruning": {"blocks": 1}},
}
"""Plain smaller models, by label."""


def pure(ratio: float, **lowrank: Any) -> dict[str, Any]:
    """A step of truncation."""
    return {"lowrank": {"ratio": ratio, **lowrank}, "solver": "weighted_svd"}


def truncations(ratio: float) -> dict[str, dict[str, Any]]:
    """Label → step, for factors and sums at one ratio. A mask costs a sixteenth of the weight beside its values."""
    low, mask = ratio / 4, 1 / 16
    sparse = {"sparsity": round(1 - (ratio - low - mask), 4)}
    triple = {"name": "fisher", "factors": "triple", "inputs": "dense", "damping": 0.0}
    fisher: dict[str, Any] = {"score": {"name": "fisher", "damping": 0.0}}
    by_fisher = {"ratio": ratio, "allocate": "fisher"}
    return {
        "SVD": {**pure(ratio), "score": "magnitude"},
        "ASVD": {**pure(ratio), "score": "input-scale"},
        "FWSVD": {**pure(ratio), "score": "fisher-rows"},
        "SVD-LLM": pure(ratio),
        "SVD-LLM, true input target": {**pure(ratio), "true_input_target": True, "solver": "weighted_svd"},
        "SVD-LLM, factors on 8 bits": pure(ratio, bits=8, group_size="channel"),
        "GFWSVD": {**pure(ratio), **fisher},
        "GFWSVD, leading triple": {**pure(ratio), "score": triple},
        "GFWSVD, the paper's": {**pure(ratio), "score": triple, "calibrate": {"labels": "data"}},
        "SVD-LLM, ranks by energy": pure(ratio, allocate="energy"),
        "SVD-LLM, ranks by truncation": pure(ratio, allocate="truncation"),
        "SVD-LLM, ranks by truncation, shared": pure(ratio, allocate="truncation", share=True),
        "GFWSVD, ranks by Fisher": {**pure(ratio, allocate="fisher"), **fisher},
        "GFWSVD, ranks by Fisher, shared": {**pure(ratio, allocate="fisher", share=True), **fisher},
        "LOST": {"lowrank": {"ratio": ratio, "columns": 0.02}, "solver": "lost"},
        "LOST by Fisher": {"lowrank": {**by_fisher, "columns": 0.02}, "solver": "lost", **fisher},
        "LOST by Fisher, shared": {
            "lowrank": {**by_fisher, "columns": 0.02, "share": True},
            "solver": "lost",
            **fisher,
        },
        "LOST by Fisher, shared, true input target": {
            "lowrank": {**by_fisher, "columns": 0.02, "share": True},
            "true_input_target": True,
            "solver": "lost",
            **fisher,
        },
        "GFWSVD, ranks by Fisher, shared, true input target": {
            **pure(ratio, allocate="fisher", share=True),
            "true_input_target": True,
            "solver": "weighted_svd",
            **fisher,
        },
        "OATS by Fisher, shared, true input target": {
            "lowrank": {"ratio": low, "allocate": "fisher", "share": True},
            "prune": sparse,
            "true_input_target": True,
            "solver": "oats",
            **fisher,
        },
        "OATS": {"lowrank": {"ratio": low}, "prune": sparse, "solver": "oats"},
        "OATS by Fisher": {
            "lowrank": {"ratio": low, "allocate": "fisher"},
            "prune": sparse,
            "solver": "oats",
            **fisher,
        },
        "OATS by Fisher, shared": {
            "lowrank": {"ratio": low, "allocate": "fisher", "share": True},
            "prune": sparse,
            "solver": "oats",
            **fisher,
        },
    }


def grids(bits: int) -> dict[str, dict[str, Any]]:
    """Label → step: bits alone at rising bytes, and with sixteen ranks, of numbers and on four bits."""
    alone = {
        f"group {group}": {
            "quantize": {"bits": bits, "group_size": group, "symmetric": False},
            "solver": "gptq",
        }
        for group in (128, 64, 32)
    }
    quantize = {"bits": bits, "group_size": 128, "symmetric": False}
    return {
        **alone,
        "EoRA 16": {"quantize": quantize, "lowrank": {"rank": 16}, "solver": ["gptq", "eora"]},
        "EoRA 16 on 4 bits": {
            "quantize": quantize,
            "lowrank": {"rank": 16, "bits": 4},
            "solver": ["gptq", "eora"],
        },
        "in turn 16 on 4 bits": {
            "quantize": quantize,
            "lowrank": {"rank": 16, "bits": 4},
            "solver": ["gptq", "eora", "gptq", "eora"],
        },
    }


def cells_of(ratios: list[float], bits: list[int]) -> dict[str, Recipe]:
    """Label → recipe, all of them."""
    steps: dict[str, dict[str, Any]] = {}
    for ratio in ratios:
        steps |= {f"{ratio:.0%} {label}": step for label, step in truncations(ratio).items()}
    for width in bits:
        steps |= {f"{width} bit {label}": step for label, step in grids(width).items()}
    found = {label: recipe_of(label, step) for label, step in steps.items()}
    if ratios:
        found |= {label: Recipe.parse({"name": label, **shape}) for label, shape in SHAPES.items()}
    return found


def recipe_of(label: str, step: dict[str, Any]) -> Recipe:
    """One step; weights that make up for those before them are solved in the order in which data meets them."""
    order = {"true_sequential": True} if step.get("true_input_target") else {}
    whole = {key: step[key] for key in step if key in Recipe.model_fields}
    rest = {key: step[key] for key in step if key not in whole}
    return Recipe.parse({"name": label, "steps": [rest], **order, **whole})


def bars_of(ratios: list[float], bits: list[int]) -> list[Bar]:
    """What is asked of the methods, relative to each other."""
    bars = []
    for ratio in ratios:
        at = f"{ratio:.0%} "
        llm, whole = f"{at}SVD-LLM", f"{at}GFWSVD"
        best = f"{whole}, ranks by Fisher"
        bars += [
            Bar(llm, 0.5, f"{at}SVD"),
            Bar(f"{llm}, ranks by truncation", 0.5, f"{at}SVD"),
            Bar(whole, 0.95, llm),
            Bar(whole, 0.9, f"{at}FWSVD"),
            Bar(f"{llm}, ranks by energy", 0.9, llm),
            Bar(f"{llm}, ranks by truncation", 0.9, llm),
            Bar(best, 0.9, whole),
            Bar(f"{llm}, ranks by truncation, shared", 1.0, f"{llm}, ranks by truncation"),
            Bar(f"{best}, shared", 1.0, best),
            Bar(f"{at}LOST", 1.0, llm),
            Bar(f"{at}LOST by Fisher", 1.0, best),
            Bar(f"{at}LOST by Fisher, shared", 1.0, f"{best}, shared"),
            Bar(f"{at}OATS", 1.0, whole),
            Bar(f"{at}OATS by Fisher", 1.0, best),
            Bar(f"{at}OATS by Fisher, shared", 1.0, f"{best}, shared"),
            *(
                Bar(
                    f"{at}{one} by Fisher, shared, true input target",
                    1.0,
                    f"{best}, shared, true input target",
                )
                for one in ("LOST", "OATS")
            ),
        ]
    for width in bits:
        bars += [
            Bar(f"{width} bit EoRA 16", 0.9, f"{width} bit group 128"),
            Bar(f"{width} bit EoRA 16 on 4 bits", 0.9, f"{width} bit group 128"),
        ]
    return bars


def at_equal_bytes(cells: Mapping[str, Mapping[str, float]], bits: list[int]) -> list[str]:
    """The KL of a sum beside that of the bits alone at its bytes, between two group sizes by interpolation.

    A sum larger than the finest groups is held against those, which take fewer bytes.
    """
    lines = []
    for width in bits:
        alone = sorted(
            (c["bytes"], c["kl"]) for label, c in cells.items() if label.startswith(f"{width} bit group")
        )
        for label, cell in cells.items():
            if not label.startswith(f"{width} bit ") or "16" not in label:
                continue
            if alone and cell["bytes"] > alone[-1][0]:
                verdict = "met" if cell["kl"] <= alone[-1][1] else "NOT MET"
                lines.append(
                    f"{label}: KL {cell['kl']:.4g}; bits alone at fewer bytes {alone[-1][1]:.4g}: {verdict}"
                )
            for (low, worse), (high, better) in zip(alone, alone[1:], strict=False):
                if low <= cell["bytes"] <= high:
                    between = worse + (better - worse) * (cell["bytes"] - low) / (high - low)
                    verdict = "met" if cell["kl"] <= between else "NOT MET"
                    lines.append(
                        f"{label}: KL {cell['kl']:.4g}; bits alone at its bytes {between:.4g}: {verdict}"
                    )
    return lines


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("model", help="a folder, or 'embedded'")
    parser.add_argument("--calibration", default="embedded", help="text file, or 'embedded'")
    parser.add_argument("--heldout", default="embedded", help="text file, or 'embedded'")
    parser.add_argument("--ratios", default="0.8,0.6")
    parser.add_argument("--bits", default="3,2")
    parser.add_argument("--only", default="", help="cells whose label holds this")
    parser.add_argument("--skip", default="", help="no cells whose label this regular expression finds")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--length", type=int, default=256, help="of the calibration windows")
    parser.add_argument("--windows", type=int, default=80)
    parser.add_argument("--window-length", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("build/lowrank"))
    arguments = parser.parse_args()
    arguments.gradients = arguments.work / "gradients"  # one pass serves all cells of a seed
    return arguments


def main() -> None:
    """Run, print, record."""
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    ratios = [float(ratio) for ratio in arguments.ratios.split(",") if ratio]
    bits = [int(width) for width in arguments.bits.split(",") if width]
    recipes = {
        label: recipe
        for label, recipe in cells_of(ratios, bits).items()
        if arguments.only in label and not (arguments.skip and re.search(arguments.skip, label))
    }
    if not recipes:
        sys.exit(f"no cell is called '{arguments.only}'")
    name = f"lowrank-{Path(arguments.model).name}"
    conditions = {key: getattr(arguments, key) for key in CONDITIONS} | {
        "calibration": Path(arguments.calibration).name,
        "heldout": Path(arguments.heldout).name,
    }
    for seed in arguments.seeds.split(","):
        measured = run_seed(recipes, int(seed), arguments)
        runs = earlier(name, conditions)
        runs[seed] = {**runs.get(seed, {}), **measured}
        cells = over_seeds(runs)
        checked = [line for bar in bars_of(ratios, bits) if (line := bar.check(cells))]
        checked += at_equal_bytes(cells, bits)
        seeds = sorted(int(one) for one in runs)
        write_results(name, {**conditions, "seeds": seeds, "cells": cells, "runs": runs, "bars": checked})
    print(shown(cells, list(runs.values())))
    print("\n" + "\n".join(checked))


def over_seeds(runs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Label → medians over the seeds that it was run with, and their number."""
    labels = dict.fromkeys(label for run in runs.values() for label in run)
    found = {}
    for label in labels:
        own = [{label: run[label]} for run in runs.values() if label in run]
        found[label] = medians(own)[label] | {"seeds": len(own)}
    return found


def earlier(name: str, conditions: Mapping[str, Any]) -> dict[str, Any]:
    """Seed → cells of earlier calls under the same conditions."""
    path = RESULTS / f"{name}.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    same = all(found.get(key) == value for key, value in conditions.items())
    runs: dict[str, Any] = found["runs"] if same and found else {}
    return runs


if __name__ == "__main__":
    main()
