"""The C++ compiler: every source with flags of its own, linked into one library.

``torch.utils.cpp_extension`` compiles all sources of a library with the same flags. Here each instruction set has files of its
own, so that one library holds kernels for several and chooses when it runs.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Unit:
    """A source and the flags that it is compiled with beyond those of all."""

    source: Path
    flags: tuple[str, ...] = ()


def compile_library(
    units: Sequence[Unit], flags: Sequence[str], library: Path, *, jobs: int, timeout: float = 900.0
) -> None:
    """Compile ``units``, ``jobs`` at once, and link them in their order.

    The order matters: a function that several units have is taken from the first of them, which therefore has to be the one
    with the fewest instruction sets.

    Raises:
        RuntimeError: the compiler failed; the message is what it said.
    """
    from torch.utils import cpp_extension  # noqa: PLC0415 (it imports setuptools)

    compiler = os.environ.get("CXX", "c++")
    torch_folder = Path(torch.__file__).parent
    includes = [f"-I{path}" for path in cpp_extension.include_paths()]
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    objects = [library.parent / f"{number}-{unit.source.stem}.o" for number, unit in enumerate(units)]

    def compile(unit: Unit, made: Path) -> None:
        _run(
            [
                compiler, "-c", str(unit.source), "-o", str(made), "-fPIC", "-fopenmp",
                *flags, *unit.flags, abi, *includes,
            ],
            timeout,
        )  # fmt: skip

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(compile, units, objects))
    links = ["-lc10", "-ltorch_cpu", "-ltorch"]
    _run(
        [
            compiler, "-shared", "-fopenmp", *map(str, objects), "-o", str(library),
            f"-L{torch_folder / 'lib'}", *links,
        ],
        timeout,
    )  # fmt: skip


def _run(command: list[str], timeout: float) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip() or f"{command[0]} ended with {done.returncode}")
