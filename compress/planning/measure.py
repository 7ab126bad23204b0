"""Some seconds of measurements of this machine, for ``compress plan --measure``: products, memory, disk, solvers.

Every figure is the best of a few short tries, which is that of an idle machine even where others compute beside it.
"""

from __future__ import annotations

import datetime
import logging
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from compress.planning.solver_costs import solver_cost
from compress.recipe.registry import find
from compress.score.metric import Kron, Side
from compress.score.statistics import Statistics
from compress.solvers.base import Problem, nearest_point
from compress.structures.base import Structure
from compress.structures.grids.integer import IntegerGrid
from compress.structures.sparse.masked import Masked
from compress.structures.sparse.patterns import Unstructured
from compress.system.machine import Machine, cpu_name
from compress.system.rate import measure_products, wait

_LOG = logging.getLogger(__name__)
_COPIED = 1 << 27
_FILE = 1 << 27
_TRIES = 3
_SHAPE = (256, 256)
_STARTED = frozenset({"coordinate_descent", "group_scales", "adaround"})
"""Solvers that go on from another one's weight."""
MEASURED = {
    "nearest": "searched",
    "gptq": "quantize",
    "coordinate_descent": "quantize",
    "group_scales": "quantize",
    "adaround": "quantize",
    "sparsegpt": "prune",
    "awp": "prune",
}
"""Solver → the structure that it is tried on."""


def measure_machine(device: torch.device, folder: Path | None = None) -> Machine:
    """Measure this machine, in some seconds.

    Args:
        device: where blocks are computed.
        folder: of the disk that is measured; the system's temporary folder if None.
    """
    _LOG.info("measuring products")
    products = measure_products(device, (torch.float32, torch.bfloat16, torch.float16))
    _LOG.info("measuring memory and disk")
    bandwidth = _bandwidth(device)
    read, write = _disk(folder or Path(tempfile.gettempdir()))
    plain = Machine(products, bandwidth, read, write)
    solvers = {}
    for name, kind in MEASURED.items():
        _LOG.info("measuring solver %s", name)
        label = find("solver", name).__name__
        expected = solver_cost(label, _SHAPE).at(plain)
        solvers[label] = _solver_seconds(name, kind, device) / expected
    return Machine(
        products,
        bandwidth,
        read,
        write,
        solvers,
        cpu=cpu_name(),
        threads=torch.get_num_threads(),
        device=device.type,
        day=datetime.datetime.now(datetime.UTC).date().isoformat(),
    )


def _best(work: Callable[[], object], device: torch.device, tries: int = _TRIES) -> float:
    """Seconds of the quickest of a few tries; the first is not counted."""
    best = float("inf")
    for attempt in range(tries + 1):
        wait(device)
        start = time.perf_counter()
        work()
        wait(device)
        if attempt:
            best = min(best, time.perf_counter() - start)
    return max(best, 1e-9)


def _bandwidth(device: torch.device) -> float:
    source = torch.ones(_COPIED // 4, device=device)
    target = torch.empty_like(source)
    return 2 * _COPIED / _best(lambda: target.copy_(source), device)


def _disk(folder: Path) -> tuple[float, float]:
    """Bytes in a second, read and written; what is read is dropped from the system's cache first, where it lets us."""
    block = os.urandom(1 << 20)
    with tempfile.NamedTemporaryFile(dir=folder, prefix="compress-measure-") as file:
        start = time.perf_counter()
        for _ in range(_FILE // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        written = time.perf_counter() - start
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        start = time.perf_counter()
        while file.read(len(block)):
            pass
        read = time.perf_counter() - start
    return _FILE / max(read, 1e-9), _FILE / max(written, 1e-9)


def _solver_seconds(name: str, kind: str, device: torch.device) -> float:
    """The time of one solver for a weight of random numbers, its factors included."""
    problem = _problem(kind, device)
    start = nearest_point(problem, problem.target) if name in _STARTED else None
    solver = find("solver", name)()

    def solve() -> None:
        problem.factors.clear()
        solver.solve(problem, start)

    return _best(solve, device, tries=2)


def _problem(kind: str, device: torch.device) -> Problem[Any]:
    out, columns = _SHAPE
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    inputs = draw(2 * columns, columns)
    gram = (inputs.T @ inputs / len(inputs)).to(device)
    statistics = Statistics(tokens=len(inputs), gram=gram, diagonal=gram.diagonal().clone())
    weight = (0.05 * draw(out, columns)).to(device)
    return Problem(weight, _structure(kind), Kron(right=Side(gram)), statistics)


def _structure(kind: str) -> Structure:
    if kind == "prune":
        return Masked(Unstructured(0.5, "layer"), torch.bfloat16)
    scales: Literal["minmax", "mse"] = "mse" if kind == "searched" else "minmax"
    return IntegerGrid(4, 64, symmetric=True, scales=scales, scale_dtype=torch.bfloat16)
