"""Compile every Triton kernel ahead of time for sm_80, sm_90 and sm_100, no GPU needed, and hold it to bounds.

``python -m tools.aot`` prints registers, shared memory and spills for each kernel, dtype and tuning,
and exits with
1 when one no longer compiles, spills more than its bound, or asks for more shared memory than the chip has.
"""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from compress_kernels.ops.int8_matmul import triton_kernel as int8
from compress_kernels.ops.sparse_matmul import triton_kernel as sparse
from compress_kernels.ops.tuning import table
from compress_kernels.ops.words import triton_kernel as words
from compress_kernels.ops.words.launch import (
    DECODE_ROWS,
    E2M1,
    E4M3,
    E8M0,
    GROUPS,
    INTEGER,
    NESTED,
    PLAIN,
    RANKS,
    block_rows,
)
from compress_kernels.ops.words.order import plane_bits
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

SHARED = {80: 166912, 90: 232448, 100: 232448}
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


@dataclass(frozen=True)
class Words:
    """A weight in words: bits of a code, what codes and scales are, columns of a group."""

    name: str
    bits: int
    kind: int = INTEGER
    scale: int = PLAIN
    group: int = 128
    zero: bool = False
    offset: bool = False
    ranks: int = 0


WORDS = (
    *(Words(f"w{bits}", bits) for bits in (2, 3, 4, 8)),
    Words("w4 groups of 32", 4, group=32),
    Words("w4 zero", 4, zero=True),
    Words("w4 offset", 4, offset=True),
    Words("w4 + low rank", 4, ranks=RANKS),
    Words("fp8", 8, E4M3),
    Words("mxfp8", 8, E4M3, E8M0, 32),
    Words("mxfp4", 4, E2M1, E8M0, 32),
    Words("nvfp4", 4, E2M1, NESTED, 16),
)

MIDDLE = ("w4", "w4 zero", "nvfp4")
"""Weights whose kernel for more rows is compiled too: it differs from that for few in its block alone."""


def cases() -> Iterator[Case]:
    """Every operator, regime and dtype, and the weights whose code differs."""
    tunings = table("default")
    for dtype, weights in (("bf16", WORDS), ("fp16", WORDS[2:3]), ("fp32", WORDS[2:3])):
        for weight in weights:
            yield few_rows_case(weight, dtype, 1)
            if weight.name in MIDDLE:
                yield few_rows_case(weight, dtype, 64)
            yield _rows(f"{weight.name} rows {dtype}", dtype, weight, tunings["words"]["rows"])
    for dtype in ("bf16", "fp16"):
        for bits in (16, 4):
            yield from _sparse(dtype, bits, tunings["sparse_matmul"]["rows"])
        for regime in ("decode", "prefill"):
            yield _int8(f"int8 {regime} {dtype}", dtype, tunings["int8_matmul"][regime])
        yield _round(f"int8 round {dtype}", dtype, tunings["int8_matmul"]["round"])


def _shared(weight: Words, dtype: str) -> tuple[dict[str, str], dict[str, Any]]:
    """Pointers and constants that both kernels of words take."""
    first, second, third = plane_bits(weight.bits)
    pointers = {
        **{f"plane{n}": "*i32" for n in range(3)},
        "scale": "*bf16" if weight.scale == PLAIN else "*u8",
        "outer": "*fp32" if weight.scale == NESTED else "constexpr",
        "zero": "*u8" if weight.zero else "constexpr",
        "offset": "*fp32" if weight.offset else "constexpr",
        "y": f"*{dtype}",
    }
    constants = {
        "B0": first,
        "B1": second,
        "B2": third,
        "KIND": weight.kind,
        "SCALE": weight.scale,
        "ROWS_PER_SCALE": 1,
        "MIDDLE": 1 << (weight.bits - 1),
        "HAS_ZERO": weight.zero,
        "HAS_OFFSET": weight.offset,
    }
    return pointers, constants


def few_rows_case(weight: Words, dtype: str, rows: int) -> Case:
    """The product of ``rows`` rows of x with a weight in words, in the default tuning of its regime."""
    regime = "decode" if rows <= DECODE_ROWS else "middle"
    block = block_rows(rows, {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[dtype])
    return _few_rows(
        f"{weight.name} {regime} {dtype}", dtype, weight, block, table("default")["words"][regime]
    )


def _few_rows(name: str, dtype: str, weight: Words, block: int, tuning: dict[str, Any]) -> Case:
    pointers, constants = _shared(weight, dtype)
    adds = weight.zero or weight.offset
    pointers |= {
        "x": f"*{dtype}",
        "sums": "*fp32" if adds else f"*{dtype}",
        "partial": "*fp32",
        "arrived": "*i32",
    }
    pointers |= (
        {"inner": f"*{dtype}", "left": "*bf16"}
        if weight.ranks
        else {"inner": "constexpr", "left": "constexpr"}
    )
    pointers |= {"bias": "*bf16", "residual": "*fp32"}
    per = 32 // constants["B0"]
    constants |= {"RUN": math.gcd(per, weight.group // 16), "BG": GROUPS if adds else 0, "BR": weight.ranks}
    constants |= {"HAS_BIAS": True, "HAS_ADDEND": True, "SPLIT": True, "BM": block}
    kept = {key: value for key, value in tuning.items() if key != "PROGRAMS"}
    return Case(name, words.few_rows_kernel, pointers, constants, kept)


def _rows(name: str, dtype: str, weight: Words, tuning: dict[str, Any]) -> Case:
    pointers, constants = _shared(weight, dtype)
    return Case(
        name, words.decode_kernel, {**pointers, "ids": "*i64"}, {**constants, "HAS_IDS": True}, tuning
    )


def _sparse(dtype: str, bits: int, tuning: dict[str, Any]) -> Iterator[Case]:
    grid = bits != 16
    pointers = {"ids": "*i64", "values": "*i32" if grid else "*bf16", "y": f"*{dtype}", "zero": "constexpr"}
    pointers["scale"] = "*bf16" if grid else "constexpr"
    flags = {"BITS": bits, "HAS_IDS": True, "HAS_ZERO": False}
    masked = {**pointers, "mask": "*u8", "checkpoint": "*i64"}
    yield Case(
        f"bitmask {bits}-bit {dtype}", sparse.mask_rows_kernel, masked, {**flags, "STRIDE": 1024}, tuning
    )
    launch = {key: value for key, value in tuning.items() if key != "BK"} | {"BG": tuning["BK"] // 4}
    places = {**flags, "NK": 2, "MK": 4, "INDEX_BITS": 2}
    yield Case(
        f"2:4 {bits}-bit {dtype}", sparse.nm_rows_kernel, {**pointers, "indices": "*i32"}, places, launch
    )


def _round(name: str, dtype: str, tuning: dict[str, Any]) -> Case:
    return Case(name, int8.round_kernel, {"x": f"*{dtype}", "codes": "*i8", "token": "*fp32"}, {}, tuning)


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
        or name in ("K", "N", "words0", "words1", "words2", "group", "groups", "scale_stride", "value_stride")
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
    """Compile every case for every chip, print what each takes, and return 1 if one fails, spills or asks for too much."""
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
