"""The kernel times that ship with the package, from the measurements in ``benchmarks/results``: what a budget of time goes by.

    python -m benchmarks.kernel_times

A time of one product with one row is ``base + per_weight · numbers``: on a GPU a line through the least and the largest shape
that were measured, on a CPU, which launches nothing, their mean time for a number.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
OUT = Path(__file__).parents[1] / "compress" / "assets" / "kernel_times.json"
KERNELS = {
    "bf16": "dense",
    "w2": "int2",
    "w3": "int3",
    "w4": "int4",
    "w8": "int8",
    "bitmask w4": "sparse50",
}
"""Names of the measurements, without the group, and what labels of candidates begin with."""


def line(points: dict[int, float]) -> dict[str, float]:
    """Seconds as ``base + per_weight · numbers``, from milliseconds by numbers of two shapes."""
    (few, fast), (many, slow) = min(points.items()), max(points.items())
    slope = (slow - fast) / (many - few)
    return {"base": max(0.0, fast - slope * few) / 1e3, "per_weight": slope / 1e3}


def proportional(points: dict[int, float]) -> dict[str, float]:
    """Seconds as ``per_weight · numbers``."""
    return {
        "base": 0.0,
        "per_weight": sum(ms / numbers for numbers, ms in points.items()) / len(points) / 1e3,
    }


def cpu() -> dict[str, Any]:
    """One core with AVX-512."""
    data = json.loads((RESULTS / "amd-epyc-avx512-bf16-1t.json").read_text(encoding="utf-8"))
    points: dict[str, dict[int, float]] = {}
    for row in data["timings"]:
        if row["rows"] == 1 and row["threads"] == 1:
            name = row["name"].removesuffix(" g128")
            points.setdefault(name, {})[row["shape"][0] * row["shape"][1]] = row["ms"]
    return {
        "device": f"one core of {data['device']}",
        "date": data["date"],
        "kernels": named(points, proportional),
    }


def gpu() -> dict[str, Any]:
    """One H200, products within a CUDA graph."""
    data = json.loads((RESULTS / "nvidia-h200.json").read_text(encoding="utf-8"))
    points: dict[str, dict[int, float]] = {}
    for row in data["parts"]["timing"]["rows"]:
        if "table" in row:
            numbers = row["shape"][0] * row["shape"][1]
            points.setdefault(row["weight"], {})[numbers] = row["table"][0]["graph_ms"]
    machine = data["machine"]
    return {"device": machine["device"], "date": machine["day"], "kernels": named(points, line)}


def named(
    points: dict[str, dict[int, float]], fitted: Callable[[dict[int, float]], dict[str, float]]
) -> dict[str, dict[str, float]]:
    """Beginning of a label → its line."""
    return {
        KERNELS[name]: {key: float(f"{value:.3g}") for key, value in fitted(own).items()}
        for name, own in points.items()
        if name in KERNELS
    }


def main() -> None:
    """Write the table."""
    OUT.write_text(json.dumps({"cpu": cpu(), "h200": gpu()}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
