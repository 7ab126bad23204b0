"""Roofline on paper of the GPU kernels of words: what bounds a product of few rows on an H100, an A100 or an L4.

``python -m benchmarks.roofline`` compiles the kernel for each kind of weight, counts the machine instructions of its inner
loop, and prints the least microseconds that memory, instruction issue and the matrix units allow, beside what was measured
where ``benchmarks/results/nvidia-h200.json`` has it. Needs no GPU.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton

from benchmarks.common import RESULTS, table
from tools.aot import WORDS, Words, compile_case, few_rows_case, plane_bits

SHAPES = ((4096, 4096), (14336, 4096), (4096, 14336))
LANES = 128
"""Lanes of a multiprocessor that an instruction can be issued to in a cycle."""
_INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?);", re.MULTILINE)
_BRANCH = re.compile(r"\bBRA\b.*?(0x[0-9a-f]+)")


@dataclass(frozen=True)
class Chip:
    """What a maker's datasheet says.

    Attributes:
        capability: of CUDA, without the dot.
        processors: multiprocessors.
        gigahertz: boost clock.
        gigabytes: per second of its memory.
        teraflops: of dense bf16 products.
    """

    capability: int
    processors: int
    gigahertz: float
    gigabytes: float
    teraflops: float


CHIPS = {
    "H200": Chip(90, 132, 1.98, 4800, 989),
    "H100": Chip(90, 132, 1.98, 3350, 989),
    "A100": Chip(80, 108, 1.41, 2039, 312),
    "L4": Chip(89, 58, 2.04, 300, 121),
}


@dataclass(frozen=True)
class Loop:
    """The inner loop of a compiled kernel: warp instructions of one pass, and the weights that a pass decodes."""

    instructions: int
    weights: int
    warps: int

    @property
    def per_weight(self) -> float:
        """Lane instructions for each weight."""
        return self.instructions * self.warps * 32 / self.weights


def loops(text: str) -> list[int]:
    """Instructions of each loop of a disassembly: from the target of a backward branch to the branch."""
    lines = [(int(at, 16), operation) for at, operation in _INSTRUCTION.findall(text)]
    found = []
    for at, operation in lines:
        branch = _BRANCH.search(operation)
        if branch and int(branch[1], 16) < at:
            found.append(sum(int(branch[1], 16) <= place <= at for place, _ in lines))
    return found


def disassembled(cubin: bytes) -> str:
    """Machine code as text, by the ``cuobjdump`` that comes with Triton."""
    folder = Path(triton.__file__).parent / "backends/nvidia/bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(folder / "cuobjdump"), "-sass", file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def inner_loop(weight: Words, capability: int, rows: int) -> Loop:
    """The longest loop of the kernel that multiplies a few rows."""
    case = few_rows_case(weight, "bf16", rows)
    compiled = compile_case(case, capability)
    found = loops(disassembled(compiled.asm["cubin"]))
    per = 32 // plane_bits(weight.bits)[0]
    return Loop(max(found), case.tuning["BN"] * 16 * per, case.tuning["num_warps"])


def moved_bytes(weight: Words, shape: tuple[int, int], rows: int) -> float:
    """Bytes that a product reads and writes: codes, scales, x and y, each once."""
    out, columns = shape
    codes = out * columns * weight.bits / 8
    scale = {0: 2, 1: 1, 2: 1}[weight.scale] + weight.zero + 4 * weight.offset
    return codes + out * columns / weight.group * scale + 2 * rows * (out + columns)


def bounds(weight: Words, loop: Loop, chip: Chip, shape: tuple[int, int], rows: int) -> dict[str, float]:
    """The least microseconds by each resource."""
    weights = shape[0] * shape[1]
    return {
        "memory": moved_bytes(weight, shape, rows) / chip.gigabytes / 1e3,
        "issue": weights * loop.per_weight / (LANES * chip.processors * chip.gigahertz * 1e3),
        "matrix": 2 * weights * max(rows, 16) / chip.teraflops / 1e6,
    }


def measured(path: Path) -> dict[tuple[str, tuple[int, int], int], float]:
    """(weight, shape, rows) → microseconds of a result of ``benchmarks.gpu``, the faster of called and replayed."""
    if not path.is_file():
        return {}
    rows = json.loads(path.read_text(encoding="utf-8"))["parts"]["timing"]["rows"]
    return {
        (row["weight"], (row["shape"][0], row["shape"][1]), line["rows"]): 1e3
        * min(value for value in (line["ms"], line["graph_ms"]) if value is not None)
        for row in rows
        for line in row.get("table", [])
    }


def lines(name: str, rows: int, path: Path) -> Iterator[list[Any]]:
    """The table of a chip."""
    chip, known = CHIPS[name], measured(path)
    names = {"fp8": "fp8 channel"}
    for weight in WORDS:
        loop = inner_loop(weight, chip.capability, rows)
        for shape in SHAPES:
            least = bounds(weight, loop, chip, shape, rows)
            by = max(least, key=lambda resource: least[resource])
            taken = known.get((names.get(weight.name, weight.name), shape, rows))
            bf16 = 2 * shape[0] * shape[1] / chip.gigabytes / 1e3
            yield [
                f"{weight.name} {shape[0]}x{shape[1]}", round(loop.per_weight, 1), *(round(v, 1) for v in least.values()),
                by, round(bf16 / least[by], 2), taken and round(taken, 1), taken and round(least[by] / taken, 2),
            ]  # fmt: skip


def main() -> int:
    """Print the table of each chip."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--chips", nargs="+", choices=list(CHIPS), default=list(CHIPS))
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS / "nvidia-h200.json", help="of the chip H200")
    arguments = parser.parse_args()
    headers = [
        "weight",
        "instructions a weight",
        "memory us",
        "issue us",
        "matrix us",
        "bound",
        "over bf16 at most",
    ]
    for name in arguments.chips:
        print(f"\n{name}, {arguments.rows} row(s) of x")
        path = arguments.results if name == "H200" else Path("no such file")
        print(
            table([*headers, "measured us", "of the bound"], list(lines(name, arguments.rows, path))),
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
