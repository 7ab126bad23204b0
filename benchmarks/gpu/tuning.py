"""Tile sizes: every setting of the space of ``compress_kernels.ops.tuning`` compiled in many processes, then timed in one.

The best of each operator and regime, by the geometric mean over shapes and rows, is what a file of settings should hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from compress_kernels.layouts import PackedInteger
from compress_kernels.ops.table import prepare
from compress_kernels.ops.tuning import candidates, using

from benchmarks.gpu.timing import milliseconds
from benchmarks.gpu.work import Item, Request, attempt
from benchmarks.speed.cases import Made, Shape, grid_weight, int8_weight, sparse_weight

SHAPES: tuple[Shape, ...] = ((4096, 4096), (14336, 4096), (4096, 14336))
SECONDS, PROCESSES = 120, 1
COMPILE_SECONDS, COMPILE_PROCESSES = 90, 15


@dataclass(frozen=True)
class Kind:
    """A weight that stands for an operator; ``rows``: regime → rows of x."""

    operator: str
    name: str
    make: Callable[[Shape], Made]
    rows: dict[str, tuple[int, ...]]


KINDS = (
    Kind(
        "words",
        "w4",
        lambda shape: grid_weight(shape, PackedInteger(4, 128)),
        {"decode": (1, 16), "middle": (32, 64)},
    ),
    Kind("words", "w4 rows", lambda shape: grid_weight(shape, PackedInteger(4, 128)), {"rows": (256,)}),
    Kind(
        "sparse_matmul",
        "2:4 w4",
        lambda shape: sparse_weight(shape, "2:4", PackedInteger(4, 128)),
        {"rows": (16,)},
    ),
    Kind("int8_matmul", "w8a8", int8_weight, {"decode": (1, 16), "prefill": (256, 2048)}),
)


def items(request: Request) -> list[Item]:
    """Phase ``compile``: a candidate each; otherwise an operator's regime with all of its candidates."""
    shapes = ((256, 512),) if request.quick else SHAPES
    every = []
    for kind in KINDS:
        for regime in kind.rows:
            space = candidates(kind.operator, regime)[: 2 if request.quick else None]
            if request.phase == "compile":
                every += [
                    Item(
                        f"{kind.name} {regime} {n}",
                        partial(_compile, kind, regime, settings, shapes[0], request),
                    )
                    for n, settings in enumerate(space)
                ]
            elif space:
                every.append(
                    Item(f"{kind.name} {regime}", partial(_best, kind, regime, space, shapes, request))
                )
    return every


def _compile(
    kind: Kind, regime: str, settings: dict[str, Any], shape: Shape, request: Request
) -> dict[str, Any]:
    prepared, x = _operands(kind, shape, kind.rows[regime][0], request)
    with using(kind.operator, regime, settings, torch.device(request.device)):
        prepared(x)
    return {}


def _operands(kind: Kind, shape: Shape, rows: int, request: Request) -> tuple[Any, torch.Tensor]:
    torch.manual_seed(0)
    with torch.device(request.device):
        layout, tensors = kind.make(shape)
        x = torch.randn(rows, shape[1]).bfloat16()
    return prepare(layout, tensors, shape, request.device), x


def _best(
    kind: Kind, regime: str, space: list[dict[str, Any]], shapes: tuple[Shape, ...], request: Request
) -> dict[str, Any]:
    problems = [_operands(kind, shape, rows, request) for shape in shapes for rows in kind.rows[regime]]
    table = [
        {"settings": settings, **attempt(partial(_measure, kind, regime, settings, problems, request))}
        for settings in space
    ]
    good = sorted((row for row in table if "mean_ms" in row), key=lambda row: row["mean_ms"])
    return {
        "operator": kind.operator,
        "regime": regime,
        "best": good[0]["settings"] if good else None,
        "table": table,
    }


def _measure(
    kind: Kind, regime: str, settings: dict[str, Any], problems: list[Any], request: Request
) -> dict[str, Any]:
    taken = []
    with using(kind.operator, regime, settings, torch.device(request.device)), torch.no_grad():
        for prepared, x in problems:
            found = milliseconds(partial(prepared, x), request.device)
            taken.append(min(value for value in found.values() if value is not None))
    mean = math.exp(sum(map(math.log, taken)) / len(taken))
    return {"mean_ms": round(mean, 5), "ms": [round(value, 5) for value in taken]}


def summary(rows: list[dict[str, Any]]) -> list[str]:
    """Lines for people: the best three settings of each operator and regime, and the first of the space."""
    lines = []
    for row in rows:
        if "table" not in row:
            if "error" in row:
                lines.append(f"{row['name']}: {row['error'][:300]}")
            continue
        good = sorted(
            (entry for entry in row["table"] if "mean_ms" in entry), key=lambda entry: entry["mean_ms"]
        )
        lines.append(f"{row['name']}: {len(good)} of {len(row['table'])} settings ran")
        shown = [*good[:3], *(entry for entry in row["table"][:1] if "mean_ms" in entry)]
        lines += [f"   {entry['mean_ms']:.4f} ms {entry['settings']} {entry['ms']}" for entry in shown]
        failed = [entry["error"] for entry in row["table"] if "error" in entry]
        lines += [f"   failed: {text[:200]}" for text in failed[:2]]
    return lines
