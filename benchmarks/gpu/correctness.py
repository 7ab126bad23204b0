"""Correctness matrix: every operator, layout, width, group and dtype against a float64 product on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from compress_kernels.ops.dispatch import BackendError, Prepared
from compress_kernels.ops.table import prepare
from torch import Tensor

from benchmarks.gpu.weights import Weight, exact, weights
from benchmarks.gpu.work import Item, Request, attempt, is_sticky, synchronize
from benchmarks.speed.cases import TOLERANCE

BACKENDS = ("triton", "reference", "bitsandbytes", "auto")
ROWS, QUICK_ROWS = (1, 8, 64, 512), (1, 17)
SECONDS, PROCESSES = 150, 14


def items(request: Request) -> list[Item]:
    """A weight, all backends that the device has for it."""
    every = list(weights())
    return [
        Item(weight.name, partial(_check, weight, request))
        for weight in (every[::9] if request.quick else every)
    ]


def _check(weight: Weight, request: Request) -> dict[str, Any]:
    torch.manual_seed(0)
    layout, tensors = weight.make()
    wide = exact(layout, tensors, weight.shape)
    integer = prepare(layout, tensors, weight.shape, "cpu", "reference") if weight.loose else None
    placed = {name: tensor.to(request.device) for name, tensor in tensors.items()}
    backends: dict[str, Any] = {}
    for backend in BACKENDS:
        try:
            prepared = prepare(layout, placed, weight.shape, request.device, backend)
        except BackendError as error:
            if backend != "auto" and "has no backend" not in str(error):
                backends[backend] = {"absent": str(error)[:200]}
            continue
        rows = QUICK_ROWS if request.quick else ROWS
        backends[backend] = attempt(partial(_errors, prepared, wide, integer, rows, request.device))
        backends[backend]["note"] = prepared.note
        if is_sticky(backends[backend]):
            break
    wrong = sorted(name for name, row in backends.items() if row.get("wrong") or "error" in row)
    return {"backends": backends, "wrong": wrong}


def _errors(
    prepared: Prepared, wide: Tensor, integer: Prepared | None, rows: tuple[int, ...], device: str
) -> dict[str, Any]:
    """The worst relative error (2-norm) of each dtype, and what is beyond its tolerance."""
    worst: dict[str, float] = {}
    wrong: list[str] = []
    for dtype, tolerance in TOLERANCE.items():
        name = str(dtype).removeprefix("torch.")
        for what, check in _checks(prepared, wide, integer, rows, device, dtype):
            got = attempt(lambda run=check: {"value": run()})
            if "error" in got:
                wrong.append(f"{name} {what}: {got['error']} | {' '.join(got['trace'][-3:-1])}")
                if is_sticky(got):
                    return {"worst": worst, "wrong": wrong}
                continue
            worst[name] = max(worst.get(name, 0.0), got["value"])
            if not got["value"] <= tolerance:
                wrong.append(f"{name} {what}: {got['value']:.2e}")
    return {"worst": {name: float(f"{value:.2e}") for name, value in worst.items()}, "wrong": wrong}


def _checks(
    prepared: Prepared,
    wide: Tensor,
    integer: Prepared | None,
    rows: tuple[int, ...],
    device: str,
    dtype: torch.dtype,
) -> Iterator[tuple[str, Callable[[], float]]]:
    for count in rows:
        yield f"{count} rows", partial(_product, prepared, wide, integer, count, device, dtype)
    yield "bias and residual", partial(_epilogue, prepared, wide, integer, device, dtype)
    yield "gradient", partial(_gradient, prepared, wide, device, dtype)
    yield "gather", partial(_gather, prepared, wide, device, dtype)


def _expected(x: Tensor, wide: Tensor, integer: Prepared | None) -> Tensor:
    """``x`` as the device has it, on the CPU, times the weight."""
    here = x.cpu()
    return here.double() @ wide.T if integer is None else integer(here.float()).double()


def _product(
    prepared: Prepared, wide: Tensor, integer: Prepared | None, rows: int, device: str, dtype: torch.dtype
) -> float:
    x = torch.randn(rows, wide.shape[1] * 2).to(dtype).to(device)[:, ::2]
    return _relative(prepared(x), _expected(x, wide, integer), device)


def _epilogue(
    prepared: Prepared, wide: Tensor, integer: Prepared | None, device: str, dtype: torch.dtype
) -> float:
    x = torch.randn(2, 3, wide.shape[1]).to(dtype).to(device)
    bias, residual = torch.randn(wide.shape[0]), torch.randn(2, 3, wide.shape[0])
    y = prepared(x, bias.to(device), residual.to(device), torch.float32)
    return _relative(y, _expected(x, wide, integer) + bias + residual, device)


def _gradient(prepared: Prepared, wide: Tensor, device: str, dtype: torch.dtype) -> float:
    x = torch.randn(3, wide.shape[1]).to(dtype).to(device).requires_grad_()
    y = prepared(x)
    dy = torch.randn(y.shape).to(y.dtype).to(device)
    (dx,) = torch.autograd.grad(y, x, dy)
    return _relative(dx, dy.cpu().double() @ wide, device)


def _gather(prepared: Prepared, wide: Tensor, device: str, dtype: torch.dtype) -> float:
    ids = torch.tensor([[wide.shape[0] - 1, 0, 5], [5, 1, 2]])
    return _relative(prepared.rows(ids.to(device), dtype), wide[ids], device)


def _relative(got: Tensor, expected: Tensor, device: str) -> float:
    synchronize(device)
    return float((got.detach().cpu().double() - expected).norm() / expected.norm())


def summary(rows: list[dict[str, Any]]) -> list[str]:
    """Lines for people: what is wrong, then the worst error of each backend and dtype."""
    lines = [
        f"{row['name']}: {row['error']} {' / '.join(row.get('trace', [])[-3:])}"
        for row in rows
        if "error" in row
    ]
    worst: dict[tuple[str, str], float] = {}
    for row in rows:
        for backend, found in row.get("backends", {}).items():
            problems = found.get("wrong", []) or ([found["error"]] if "error" in found else [])
            lines += [f"WRONG {row['name']} {backend} {problem}"[:400] for problem in problems[:3]]
            if len(problems) > 3:
                lines.append(f"      and {len(problems) - 3} more")
            for dtype, value in found.get("worst", {}).items():
                worst[backend, dtype] = max(worst.get((backend, dtype), 0.0), value)
    lines += [
        f"worst {backend:12} {dtype:9} {value:.1e}" for (backend, dtype), value in sorted(worst.items())
    ]
    done = [row for row in rows if "backends" in row]
    right = sum(not row["wrong"] for row in done)
    return [*lines, f"{right} of {len(rows)} weights right on every backend"]
