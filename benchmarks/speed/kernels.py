"""Kernels: is every result right, and how fast is it beside the dense layer.

``python -m benchmarks.speed.kernels --check [--backend triton]`` runs the correctness matrix, products and their backward, and
exits with 1 if a result is wrong. ``python -m benchmarks.speed.kernels [--threads 1] [--shapes 4096x4096 …] [--rows 1 4 …]``
prints the timing table and writes ``benchmarks/results/<device>.json``. With ``TRITON_INTERPRET=1`` the Triton kernels are
checked without a GPU (fp16 and fp32: the interpreter's bf16 arithmetic is wrong).

``COMPRESS_KERNELS_ISA=avx2`` times the AVX2 kernels on a wider CPU; ``ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2`` holds
torch to the same.

Timings are medians of interleaved calls in one process; weights rotate over more than twice the last-level cache. On
one thread the clock is the thread's own CPU time, so that other processes on the machine do not count.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from compress_kernels.layouts import BLOCK_TYPES, PackedInteger
from compress_kernels.native import load
from compress_kernels.ops.dispatch import Prepared
from compress_kernels.ops.table import prepare
from torch import Tensor

from benchmarks.common import RESULTS
from benchmarks.speed.cases import (
    TOLERANCE,
    Made,
    gguf_weight,
    grid_weight,
    int8_weight,
    low_rank_weight,
    matrix,
    nf4_weight,
    sparse_weight,
)

ROTATION = 80 << 20
"""Bytes over which weights rotate: more than twice the L3 of the machine that the bars were set on."""

Run = Callable[[int, Tensor], Tensor]


def check(backend: str, device: torch.device, rows: tuple[int, ...]) -> int:
    """The correctness matrix; prints a line for each operator and returns how many results are wrong."""
    torch.manual_seed(0)
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    wrong, worst = 0, dict[tuple[str, str], float]()
    for case in matrix():
        if backend == "triton" and not case.triton:
            continue
        layout, tensors = case.make()
        prepared = prepare(layout, tensors, case.shape, device, backend)
        exact = prepare(layout, tensors, case.shape, device, "reference")
        wide = layout.decode(
            {name: tensor.to(device) for name, tensor in tensors.items()}, case.shape, torch.float64
        )
        for dtype, tolerance in TOLERANCE.items():
            if interpreted and dtype is torch.bfloat16:
                continue
            errors = {
                f"rows {count}": product_error(prepared, exact if case.loose else None, wide, count, dtype)
                for count in rows
            }
            errors["gradient"] = gradient_error(prepared, wide, dtype)
            errors["gather"] = gather_error(prepared, wide, dtype)
            key = (case.name.split()[0], str(dtype).removeprefix("torch."))
            worst[key] = max(worst.get(key, 0.0), *errors.values())
            for what, error in errors.items():
                if not error <= tolerance:
                    wrong += 1
                    print(
                        f"WRONG {case.name} {list(case.shape)} {what} {dtype}: {error:.2e}", file=sys.stderr
                    )
    for (name, dtype_name), error in sorted(worst.items()):
        print(f"{name:16} {dtype_name:9} worst relative error {error:.2e}")
    return wrong


def product_error(
    prepared: Prepared, exact: Prepared | None, weight: Tensor, rows: int, dtype: torch.dtype
) -> float:
    """Relative error of a product of a strided ``x``, against ``exact`` or the decoded ``weight`` ``[out, in]``."""
    x = torch.randn(rows, weight.shape[1] * 2, device=weight.device).to(dtype)[:, ::2]
    y = prepared(x).double()
    expected = x.double() @ weight.T if exact is None else exact(x).double()
    return float((y - expected).norm() / expected.norm()) if rows else float(y.numel())


def gradient_error(prepared: Prepared, weight: Tensor, dtype: torch.dtype) -> float:
    """Relative error of the backward by ``x``, against the decoded ``weight`` ``[out, in]``."""
    x = torch.randn(3, weight.shape[1], device=weight.device).to(dtype).requires_grad_()
    y = prepared(x)
    dy = torch.randn_like(y)
    (dx,) = torch.autograd.grad(y, x, dy)
    expected = dy.double() @ weight
    return float((dx.double() - expected).norm() / expected.norm())


def gather_error(prepared: Prepared, weight: Tensor, dtype: torch.dtype) -> float:
    """Relative error of some rows by their ids, against those of the decoded ``weight`` ``[out, in]``."""
    ids = torch.tensor([[weight.shape[0] - 1, 0, 5], [5, 1, 2]], device=weight.device)
    expected = weight[ids]
    return float((prepared.rows(ids, dtype).double() - expected).norm() / expected.norm())


def rotating(make: Callable[[], Made], shape: tuple[int, int], backend: str) -> tuple[Run, int]:
    """A packed product over copies of its weight, and the bytes of one."""
    layout, tensors = make()
    size = sum(tensor.nbytes for tensor in tensors.values())
    copies = [
        prepare(layout, {name: tensor.clone() for name, tensor in tensors.items()}, shape, backend=backend)
        for _ in range(max(2, -(-ROTATION // size)))
    ]
    return (lambda i, x: copies[i % len(copies)](x)), copies[0].nbytes


def makers(shape: tuple[int, int]) -> dict[str, Callable[[], Made]]:
    """Name → a random weight, of everything that we multiply with."""
    rank = shape[0] * shape[1] // (shape[0] + shape[1]) // 2
    four = PackedInteger(4, 128)
    return {
        **{
            f"w{bits} g128": lambda b=bits: grid_weight(shape, PackedInteger(b, 128)) for bits in (4, 8, 3, 2)
        },
        "2:4": lambda: sparse_weight(shape, "2:4"),
        "bitmask 50%": lambda: sparse_weight(shape, "bitmask"),
        "2:4 w4": lambda: sparse_weight(shape, "2:4", four),
        "bitmask w4": lambda: sparse_weight(shape, "bitmask", four),
        "low rank 50%": lambda: low_rank_weight(shape, rank),
        "w8a8": lambda: int8_weight(shape),
        "nf4": lambda: nf4_weight(shape),
        **{name: lambda n=name: gguf_weight(n, shape) for name in BLOCK_TYPES},
    }


def contenders(shape: tuple[int, int], names: Sequence[str]) -> dict[str, tuple[Run, int]]:
    """Name → product and bytes: the dense layer, then ours (all, or ``names``), then, if all, torch's own packed ones."""
    size = 2 * shape[0] * shape[1]
    dense = [torch.randn(shape).to(torch.bfloat16) for _ in range(max(2, -(-ROTATION // size)))]
    runs: dict[str, tuple[Run, int]] = {"bf16": ((lambda i, x: F.linear(x, dense[i % len(dense)])), size)}
    ours = makers(shape)
    if unknown := sorted(set(names) - ours.keys()):
        raise SystemExit(f"there is no {', '.join(unknown)}: choose from {', '.join(ours)}")
    runs |= {name: rotating(make, shape, "auto") for name, make in ours.items() if not names or name in names}
    return runs if names else runs | torch_operators(shape)


def gather_timings(repeats: int = 21) -> list[dict[str, Any]]:
    """Median milliseconds of an embedding's rows: a table of 49152 × 576 (SmolLM2's), one id and 512 ids."""
    shape = (49152, 576)
    dense = torch.randn(shape).to(torch.bfloat16)
    tables: dict[str, Callable[[Tensor], Tensor]] = {"bf16": lambda ids: F.embedding(ids, dense)}
    packed: dict[str, Made] = {
        "w4 g64": grid_weight(shape, PackedInteger(4, 64)),
        "w8 g64": grid_weight(shape, PackedInteger(8, 64)),
        "nf4": nf4_weight(shape),
        "q4_0": gguf_weight("q4_0", shape),
        "q8_0": gguf_weight("q8_0", shape),
    }
    for name, made in packed.items():
        prepared = prepare(*made, shape)
        tables[name] = lambda ids, p=prepared: p.rows(ids, torch.bfloat16)  # type: ignore[misc]
    table = []
    for count in (1, 512):
        for name, rows in tables.items():
            times = []
            for _ in range(repeats):
                ids = torch.randint(0, shape[0], (1, count))
                start = time.thread_time()
                rows(ids)
                times.append(time.thread_time() - start)
            table.append({"name": name, "ids": count, "ms": round(1e3 * statistics.median(times), 4)})
            print(f"gather {name:8} {count:4} ids {table[-1]['ms']:8.4f} ms")
    return table


def torch_operators(shape: tuple[int, int]) -> dict[str, tuple[Run, int]]:
    """torch's own packed products for the CPU."""
    out, columns = shape
    codes = torch.randint(0, 16, shape, dtype=torch.int32)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    scales = torch.rand(columns // 128, out, 2).to(torch.bfloat16)
    fours = [packed.clone() for _ in range(max(2, -(-ROTATION // packed.nbytes)))]
    bytes8 = torch.randint(-128, 128, shape, dtype=torch.int8)
    eights = [bytes8.clone() for _ in range(max(2, -(-ROTATION // bytes8.nbytes)))]
    factor = torch.rand(out).to(torch.bfloat16)
    four = torch.ops.aten._weight_int4pack_mm_for_cpu
    eight = torch.ops.aten._weight_int8pack_mm
    return {
        "torch int4": (
            (lambda i, x: four(x, fours[i % len(fours)], 128, scales)),
            packed.nbytes + scales.nbytes,
        ),
        "torch int8": (
            (lambda i, x: eight(x, eights[i % len(eights)], factor)),
            bytes8.nbytes + factor.nbytes,
        ),
    }


def measure(
    runs: dict[str, tuple[Run, int]], x: Tensor, repeats: int, clock: Callable[[], float]
) -> dict[str, float]:
    """Median seconds of each contender, calls interleaved so that all see the same machine."""
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(repeats):
        for name, (run, _) in runs.items():
            for again in range(2):
                start = clock()
                run(2 * round_ + again, x)
                samples[name].append(clock() - start)
    return {name: statistics.median(times) for name, times in samples.items()}


def timings(
    shapes: list[tuple[int, int]], rows: list[int], threads: int, seconds: float, names: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """The table, printed as it grows."""
    torch.set_num_threads(threads)
    clock = time.thread_time if threads == 1 else time.perf_counter
    table = []
    for shape in shapes:
        runs = contenders(shape, names)
        dense = runs["bf16"][1]
        print(f"\n{shape[0]}×{shape[1]}, {threads} thread(s): speed-up over bf16 (memory of bf16)")
        print(
            "rows  bf16 ms  "
            + "  ".join(f"{name} ({runs[name][1] / dense:.2f})" for name in runs if name != "bf16")
        )
        for count in rows:
            x = torch.randn(count, shape[1]).to(torch.bfloat16)
            found = measure(runs, x, 1, clock)
            repeats = max(3, min(30, int(seconds / sum(found.values()) / 2)))
            found = measure(runs, x, repeats, clock)
            base = found["bf16"]
            table += [
                {"shape": list(shape), "rows": count, "threads": threads, "name": name, "ms": round(1e3 * value, 4),
                 "speedup": round(base / value, 3), "memory": round(runs[name][1] / dense, 4)}
                for name, value in found.items()
            ]  # fmt: skip
            line = "  ".join(f"{base / v:>{len(name) + 7}.2f}" for name, v in found.items() if name != "bf16")
            print(f"{count:4}  {1e3 * base:7.3f}  {line}", flush=True)
    return table


def device_name() -> str:
    """The processor, as short as it says it itself, and the widest instructions that the kernels use."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.machine()
    isa = load().isa
    return f"{model} {isa.replace('_', '-')}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="only the correctness matrix")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shapes", nargs="+", default=["4096x4096", "11008x4096"])
    parser.add_argument("--names", nargs="+", default=[], help="of the weights to time, all unless given")
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32, 64, 128, 256])
    parser.add_argument("--seconds", type=float, default=4.0, help="for each number of rows")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    rows = (0, 3, 33) if os.environ.get("TRITON_INTERPRET") == "1" else (0, 1, 3, 17, 129)
    if wrong := check(arguments.backend, torch.device(arguments.device), rows):
        print(f"{wrong} results are wrong", file=sys.stderr)
        return 1
    if arguments.check:
        return 0
    shapes = [(int(a), int(b)) for a, b in (text.split("x") for text in arguments.shapes)]
    table = timings(shapes, arguments.rows, arguments.threads, arguments.seconds, arguments.names)
    name = device_name()
    report = {
        "device": name,
        "date": date.today().isoformat(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "kernels": load().note,
        "clock": "thread CPU time" if arguments.threads == 1 else "wall",
        "load_average_at_end": round(os.getloadavg()[0], 1),
        "timings": table,
        "gathers": gather_timings(),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"{re.sub(r'[^a-z0-9.]+', '-', name.lower())}-{arguments.threads}t.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(f"\nwritten to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
