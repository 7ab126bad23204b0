"""Compile every Triton kernel ahead of time for sm_80 and sm_90, no GPU needed, and hold it to bounds.

``python -m tools.aot`` prints registers, shared memory and spills for each kernel, dtype and tuning,
and exits with
1 when one no longer compiles, spills more than its bound, or asks for more shared memory than the chip has.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from compress_kernels.ops.int8_matmul import triton_kernel as int8
from compress_kernels.ops.packed_matmul import triton_kernel as packed
from compress_kernels.ops.packed_matmul.triton_backend import GATHER, RANKS
from compress_kernels.ops.sparse_matmul import triton_kernel as sparse
from compress_kernels.ops.tuning import table
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

SHARED = {80: 166912, 90: 232448}
"""Bytes of shared memory that one block may have."""
REGISTERS = 255
SPILL = 0
"""Bytes a thread may spill."""


@dataclass(frozen=True)
class Case:
    """One specialisation of a kernel: pointers by dtype, constants, and a tuning."""

    name: str
    kernel: Any
    pointers: dict[str, str]
    constants: dict[str, Any]
    tuning: dict[str, Any]


def cases() -> Iterator[Case]:
    """Every operator, regime and dtype, and the widths whose code differs."""
    tunings = table("default")
    for dtype, widths in (
        ("bf16", {2: (2, 0, 0), 3: (2, 1, 0), 4: (4, 0, 0), 8: (8, 0, 0)}),
        ("fp16", {4: (4, 0, 0)}),
    ):
        for regime, tuning in tunings["packed_matmul"].items():
            for bits, planes in widths.items():
                for zero in (False, True):
                    yield _packed(
                        f"packed w{bits}{'z' if zero else ''} {regime} {dtype}", dtype, planes, zero, tuning
                    )
            yield _packed(f"packed w4 + low rank {regime} {dtype}", dtype, (4, 0, 0), False, tuning, RANKS)
        for bits, planes in widths.items():
            yield _gather(f"gather w{bits} {dtype}", dtype, planes)
        for regime, tuning in tunings["sparse_matmul"].items():
            for bits in (16, 4):
                yield _mask(f"bitmask {bits}-bit {regime} {dtype}", dtype, bits, tuning)
                yield _nm(f"2:4 {bits}-bit {regime} {dtype}", dtype, bits, tuning)
        for regime, tuning in tunings["int8_matmul"].items():
            yield _int8(f"int8 {regime} {dtype}", dtype, tuning)


def _ends(tuning: dict[str, Any], dtype: str) -> tuple[dict[str, str], dict[str, Any]]:
    last = tuning.get("SPLIT", 1) == 1
    pointers = {
        "bias": "*fp32" if last else "constexpr",
        "residual": "constexpr",
        "y": f"*{dtype}" if last else "*fp32",
    }
    return pointers, {"HAS_BIAS": last, "HAS_ADDEND": False}


def _packed(
    name: str, dtype: str, planes: tuple[int, int, int], zero: bool, tuning: dict[str, Any], ranks: int = 0
) -> Case:
    ends, flags = _ends(tuning, dtype)
    pointers = {"x": f"*{dtype}", "plane0": "*i32", "plane1": "*i32", "plane2": "*i32", "scale": "*bf16"}
    constants = {"B0": planes[0], "B1": planes[1], "B2": planes[2], "BR": ranks, "HAS_ZERO": zero, **flags}
    both = {"inner": f"*{dtype}", "left": "*bf16"} if ranks else {"inner": "constexpr", "left": "constexpr"}
    return Case(
        name,
        packed.packed_kernel,
        {**pointers, "zero": "*u8" if zero else "constexpr", **both, **ends},
        constants,
        tuning,
    )


def _gather(name: str, dtype: str, planes: tuple[int, int, int]) -> Case:
    words = {"plane0": "*i32", "plane1": "*i32", "plane2": "*i32"}
    pointers = {"ids": "*i64", **words, "scale": "*bf16", "zero": "*u8", "y": f"*{dtype}"}
    constants = {"B0": planes[0], "B1": planes[1], "B2": planes[2], "HAS_ZERO": True}
    return Case(name, packed.gather_kernel, pointers, constants, GATHER)


def _grid(bits: int) -> dict[str, str]:
    scale = "*bf16" if bits != 16 else "constexpr"
    return {"values": "*i32" if bits != 16 else "*bf16", "scale": scale, "zero": "constexpr"}


def _mask(name: str, dtype: str, bits: int, tuning: dict[str, Any]) -> Case:
    ends, flags = _ends(tuning, dtype)
    pointers = {"x": f"*{dtype}", "mask": "*u8", "checkpoint": "*i64", **_grid(bits), **ends}
    constants = {"BITS": bits, "STRIDE": 1024, "HAS_ZERO": False, **flags}
    return Case(name, sparse.sparse_kernel, pointers, constants, tuning)


def _nm(name: str, dtype: str, bits: int, tuning: dict[str, Any]) -> Case:
    ends, flags = _ends(tuning, dtype)
    constants = {"BITS": bits, "NK": 2, "MK": 4, "INDEX_BITS": 2, "HAS_ZERO": False, **flags}
    return Case(
        name,
        sparse.nm_kernel,
        {"x": f"*{dtype}", "indices": "*i32", **_grid(bits), **ends},
        constants,
        tuning,
    )


def _int8(name: str, dtype: str, tuning: dict[str, Any]) -> Case:
    pointers = {
        "x": "*i8",
        "token": "*fp32",
        "weight": "*i8",
        "scale": "*bf16",
        "bias": "*fp32",
        "residual": "constexpr",
    }
    constants = {"HAS_BIAS": True, "HAS_ADDEND": False}
    return Case(name, int8.int8_kernel, {**pointers, "y": f"*{dtype}"}, constants, tuning)


def compile_case(case: Case, capability: int) -> Any:
    """The compiled kernel of one case for one chip."""
    launch = {"num_warps", "num_stages"}
    constants = {**case.constants, **{key: value for key, value in case.tuning.items() if key not in launch}}
    kernel = case.kernel if isinstance(case.kernel, JITFunction) else JITFunction(case.kernel.fn)
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else case.pointers.get(name, "i32") for name in names}
    absent = {name: None for name in names if signature[name] == "constexpr" and name not in constants}
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(names)
        if signature[name].startswith("*")
        or name in ("K", "N", "words0", "words1", "words2", "group", "value_stride")
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs={**constants, **absent}, attrs=aligned)
    options = {key: case.tuning[key] for key in launch}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def resources(cubin: bytes) -> tuple[int, int]:
    """Registers and spilled bytes of a thread, from ``cuobjdump -res-usage``."""
    tool = shutil.which("cuobjdump") or str(Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [tool, "-res-usage", file.name], check=True, capture_output=True, text=True
        ).stdout
    registers = max(int(value) for value in re.findall(r"REG:(\d+)", text))
    local = max(int(value) for value in re.findall(r"LOCAL:(\d+)", text))
    stack = max(int(value) for value in re.findall(r"STACK:(\d+)", text))
    return registers, max(local, stack)


def main() -> int:
    failures = []
    print(f"{'kernel':34} {'chip':>5} {'registers':>9} {'shared':>8} {'spilled':>8}")
    for case in cases():
        for capability, most in SHARED.items():
            try:
                compiled = compile_case(case, capability)
                registers, spilled = resources(compiled.asm["cubin"])
            except Exception as error:  # one kernel that does not compile must not hide the others
                failures.append(f"{case.name} sm_{capability}: {type(error).__name__}: {str(error)[:300]}")
                print(f"{case.name:34} sm_{capability} does not compile")
                continue
            shared = compiled.metadata.shared
            print(f"{case.name:34} sm_{capability} {registers:9} {shared:8} {spilled:8}", flush=True)
            if shared > most or spilled > SPILL or registers > REGISTERS:
                failures.append(
                    f"{case.name} sm_{capability}: {registers} registers, {shared} shared, {spilled} spilled"
                )
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
