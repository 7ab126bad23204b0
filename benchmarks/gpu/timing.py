"""Timing table: each operator at the shapes of Llama models, beside torch's bf16 product and the measured copy bandwidth."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from compress_kernels.layouts import PackedInteger
from compress_kernels.ops.table import prepare
from torch import Tensor

from benchmarks.gpu.work import Item, Request
from benchmarks.speed.cases import (
    Made,
    Shape,
    corrected_weight,
    float_weight,
    gguf_weight,
    grid_weight,
    int8_weight,
    low_rank_weight,
    nf4_weight,
    sparse_weight,
)

SHAPES: tuple[Shape, ...] = ((4096, 4096), (14336, 4096), (4096, 14336))
ROWS = (1, 16, 256, 2048)
SECONDS, PROCESSES = 120, 1
COMPILE_SECONDS, COMPILE_PROCESSES = 40, 14
COPIED = 1 << 30


def makers(shape: Shape) -> dict[str, Callable[[], Made]]:
    """Name → a random weight."""
    four = PackedInteger(4, 128)
    rank = shape[0] * shape[1] // (shape[0] + shape[1]) // 2
    return {
        **{f"w{bits}": partial(grid_weight, shape, PackedInteger(bits, 128)) for bits in (4, 8, 3, 2)},
        "w4 + rank 32": partial(corrected_weight, shape, 32),
        "w8a8": partial(int8_weight, shape),
        "2:4": partial(sparse_weight, shape, "2:4"),
        "bitmask 50%": partial(sparse_weight, shape, "bitmask"),
        "2:4 w4": partial(sparse_weight, shape, "2:4", four),
        "bitmask w4": partial(sparse_weight, shape, "bitmask", four),
        "low rank 50%": partial(low_rank_weight, shape, rank),
        "fp8 channel": partial(float_weight, shape, "fp8", "channel"),
        "fp8 block": partial(float_weight, shape, "fp8", "block"),
        "mxfp4": partial(float_weight, shape, "mxfp4"),
        "nvfp4": partial(float_weight, shape, "nvfp4"),
        "nf4": partial(nf4_weight, shape),
        "q4_k": partial(gguf_weight, "q4_k", shape),
    }


def items(request: Request) -> list[Item]:
    """The bandwidth, then a kind of weight at a shape, for all numbers of rows; phase ``compile`` times nothing."""
    shapes = ((256, 512),) if request.quick else SHAPES
    if request.phase == "compile":
        return [
            Item(name, partial(_compile, make, shapes[0], request))
            for name, make in makers(shapes[0]).items()
        ]
    every = [Item("copy", partial(_bandwidth, request))]
    for shape in shapes:
        every.append(Item(f"bf16 {shape[0]}x{shape[1]}", partial(_dense, shape, request)))
        for name, make in makers(shape).items():
            if request.quick and name.startswith(("2:4", "bitmask")):
                continue
            every.append(Item(f"{name} {shape[0]}x{shape[1]}", partial(_packed, name, make, shape, request)))
    return every


def milliseconds(run: Callable[[], Any], device: str) -> dict[str, float | None]:
    """Median time of a call with the weight out of the cache; ``graph``: replayed, without the time that Python takes."""
    if torch.device(device).type != "cuda":
        from time import perf_counter  # noqa: PLC0415 (only where there is no GPU)

        start = perf_counter()
        run()
        return {"ms": 1e3 * (perf_counter() - start), "graph_ms": None}
    from triton.testing import do_bench, do_bench_cudagraph  # noqa: PLC0415 (triton is optional)

    run()
    torch.cuda.synchronize()
    called = float(do_bench(run, warmup=4, rep=16, return_mode="median"))
    try:
        with torch.cuda.stream(torch.cuda.Stream()):
            graph = float(do_bench_cudagraph(run, rep=8, return_mode="median"))
    except Exception:  # what reads a value on the host cannot be captured; the row then has no such figure
        torch.cuda.synchronize()
        graph = None
    return {"ms": called, "graph_ms": graph}


def _bandwidth(request: Request) -> dict[str, Any]:
    size = 1 << 20 if request.quick else COPIED
    source = torch.empty(size, dtype=torch.uint8, device=request.device)
    into = torch.empty_like(source)
    taken = milliseconds(lambda: into.copy_(source), request.device)
    assert taken["ms"] is not None
    return {**taken, "gb_per_s": 2 * size / taken["ms"] / 1e6}


def _rows(request: Request) -> tuple[int, ...]:
    return (1, 16) if request.quick else ROWS


def _row(count: int, shape: Shape, nbytes: int, taken: dict[str, float | None]) -> dict[str, Any]:
    moved = nbytes + 2 * count * sum(shape)
    best = min(value for value in taken.values() if value is not None)
    return {
        "rows": count,
        **{name: None if value is None else round(value, 5) for name, value in taken.items()},
        "gb_per_s": round(moved / best / 1e6, 1),
        "tflop_per_s": round(2 * count * shape[0] * shape[1] / best / 1e9, 2),
    }


def _dense(shape: Shape, request: Request) -> dict[str, Any]:
    weight = torch.randn(shape, device=request.device).bfloat16()
    table = []
    for count in _rows(request):
        x = torch.randn(count, shape[1], device=request.device).bfloat16()
        table.append(
            _row(count, shape, weight.nbytes, milliseconds(lambda x=x: F.linear(x, weight), request.device))
        )
    return {"shape": shape, "weight": "bf16", "nbytes": weight.nbytes, "table": table}


def _compile(make: Callable[[], Made], shape: Shape, request: Request) -> dict[str, Any]:
    with torch.device(request.device), torch.no_grad():
        layout, tensors = make()
        prepared = prepare(layout, tensors, shape, request.device)
        for count in (ROWS[0], ROWS[2]):
            prepared(torch.randn(count, shape[1]).bfloat16())
    return {}


def _packed(name: str, make: Callable[[], Made], shape: Shape, request: Request) -> dict[str, Any]:
    torch.manual_seed(0)
    with torch.device(request.device):
        layout, tensors = make()
    prepared = prepare(layout, tensors, shape, request.device)
    table = []
    for count in _rows(request):
        x = torch.randn(count, shape[1], device=request.device).bfloat16()
        table.append(_row(count, shape, prepared.nbytes, _timed(prepared, x, request)))
    return {"shape": shape, "weight": name, "note": prepared.note, "nbytes": prepared.nbytes, "table": table}


def _timed(prepared: Callable[[Tensor], Tensor], x: Tensor, request: Request) -> dict[str, float | None]:
    with torch.no_grad():
        return milliseconds(lambda: prepared(x), request.device)


def summary(rows: list[dict[str, Any]]) -> list[str]:
    """Lines for people: milliseconds (called / replayed), speed-up over bf16 and the share of the copy bandwidth."""
    copy = next((row.get("gb_per_s") for row in rows if row["name"] == "copy"), None)
    lines = [f"copy {copy and round(copy)} GB/s"]
    lines += [
        f"{row['name']}: {row['error']} {' / '.join(row.get('trace', [])[-3:])}"[:500]
        for row in rows
        if "error" in row
    ]
    dense = {
        (tuple(row["shape"]), line["rows"]): _best(line)
        for row in rows
        for line in row.get("table", [])
        if row["weight"] == "bf16"
    }
    for row in rows:
        cells = []
        for line in row.get("table", []):
            base = dense.get((tuple(row["shape"]), line["rows"]))
            speed = f"{base / _best(line):.2f}x" if base else "-"
            share = f"{100 * line['gb_per_s'] / copy:.0f}%" if copy else "-"
            graph = "-" if line["graph_ms"] is None else f"{1e3 * line['graph_ms']:.0f}"
            cells.append(
                f"{line['rows']}: {1e3 * line['ms']:.0f}/{graph}us {speed} {share} {line['tflop_per_s']:.0f}T"
            )
        if cells:
            lines.append(f"{row['name']:28} " + "  ".join(cells))
    return lines


def _best(line: dict[str, Any]) -> float:
    return min(value for value in (line["ms"], line["graph_ms"]) if value is not None)
