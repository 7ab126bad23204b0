"""The C++ kernels for the CPU: built the first time they are needed, by whatever compiler the machine has.

``load()`` compiles the sources beside this file through ``torch.utils.cpp_extension`` into torch's extension cache
(``TORCH_EXTENSIONS_DIR``), once for each version of the sources, of torch and of the CPU's instruction set.
Without a compiler or ninja
it returns ``None`` with a reason, and the operators take their pure-torch road.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import shutil
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

try:
    from fcntl import LOCK_EX, flock
except ImportError:  # not a POSIX system
    flock = None  # type: ignore[assignment]

_HERE = Path(__file__).parent
_SOURCES = ("bindings.cpp", "portable.cpp", "packed.cpp", "sparse.cpp", "dense.cpp", "int8.cpp")
_AVX512 = (
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512dq",
    "avx512vbmi",
    "avx512vbmi2",
    "avx512bf16",
    "avx512vnni",
)
# As Linux spells them in /proc/cpuinfo.
_CPUINFO = {"avx512vbmi2": "avx512_vbmi2", "avx512bf16": "avx512_bf16", "avx512vnni": "avx512_vnni"}


@dataclass(frozen=True)
class Native:
    """What came of loading: whether the operators exist, whether they use AVX-512, and why not."""

    loaded: bool
    vectorised: bool
    note: str


def cpu_flags() -> frozenset[str]:
    """The instruction sets that this CPU says it has, as Linux spells them; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return next(
        (frozenset(line.split(":")[1].split()) for line in lines if line.startswith("flags")), frozenset()
    )


def compile_flags() -> list[str]:
    """Compiler flags for the widest kernels that this CPU can run."""
    flags = ["-O3", "-std=c++20", "-Wno-uninitialized", "-Wno-maybe-uninitialized"]
    if platform.machine() not in ("x86_64", "AMD64"):
        return flags
    found = cpu_flags()
    base = [f"-m{name}" for name in ("avx2", "fma", "f16c", "bmi2", "popcnt") if name in found]
    if all(_CPUINFO.get(name, name) in found for name in _AVX512) and "bmi2" in found:
        tiles = ["-DCK_AMX"] if "amx_bf16" in found else []  # not compiled for, but oneDNN will use them
        return [*flags, *base, *(f"-m{name}" for name in _AVX512), "-DCK_AVX512", *tiles]
    return [*flags, *base]


@functools.cache
def load() -> Native:
    """Build (once) and load the operators ``torch.ops.compress_kernels.native_*``; never raises."""
    if os.environ.get("COMPRESS_KERNELS_NATIVE") == "0":
        return Native(False, False, "switched off by COMPRESS_KERNELS_NATIVE=0")
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None:
        return Native(False, False, f"no C++ compiler ({compiler}) on this machine")
    try:
        _build()
        _register_fakes()
    except Exception as error:  # whatever a foreign toolchain does, the slower road still works
        lines = str(error).strip().splitlines() or [type(error).__name__]
        said = next((line for line in lines if "error:" in line), lines[0])
        note = f"building the CPU kernels failed: {said[:300]}"
        warnings.warn(
            f"{note}; packed layers run on the slower pure-torch road", RuntimeWarning, stacklevel=2
        )
        return Native(False, False, note)
    vectorised = bool(torch.ops.compress_kernels.native_vectorised())
    return Native(
        True,
        vectorised,
        "AVX-512 kernels" if vectorised else "portable kernels: this CPU lacks AVX-512 with bf16",
    )


def _build() -> None:
    from torch.utils import cpp_extension  # noqa: PLC0415 (it imports setuptools: only where something is built)

    flags = compile_flags()
    texts = {name: (_HERE / name).read_bytes() for name in (*_SOURCES, "common.h", "gemm.h")}
    digest = hashlib.sha256(
        b"".join([*texts.values(), " ".join(flags).encode(), torch.__version__.encode()])
    ).hexdigest()[:12]
    os.environ.setdefault("MAX_JOBS", "2")
    name = f"compress_kernels_native_{digest}"
    root = os.environ.get("TORCH_EXTENSIONS_DIR") or cpp_extension.get_default_build_root()
    folder = Path(root) / "compress_kernels" / name
    folder.mkdir(parents=True, exist_ok=True)
    with _one_at_a_time(folder / "building"):
        _copy(texts, folder)
        # torch waits for ever while this file is there, and a build that was killed leaves it.
        (folder / "lock").unlink(missing_ok=True)
        cpp_extension.load(
            name=name,
            sources=[str(folder / source) for source in _SOURCES],
            extra_cflags=[*flags, "-fopenmp"],
            extra_ldflags=["-fopenmp"],
            build_directory=str(folder),
            is_python_module=False,
        )


def _copy(texts: Mapping[str, bytes], folder: Path) -> None:
    """Put the sources beside what is built of them: two checkouts of the same sources share one build."""
    for name, text in texts.items():
        if not (folder / name).is_file() or (folder / name).read_bytes() != text:
            (folder / name).write_bytes(text)


@contextlib.contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Lock a file against other processes, where the system can; it lifts the lock when the process ends, however that ends."""
    with path.open("w") as file:
        if flock is not None:
            flock(file, LOCK_EX)
        yield


def _register_fakes() -> None:
    """Shapes of the results, so that torch.compile and export see one operator."""

    def like(x: torch.Tensor, out_features: int, out: torch.dtype | None) -> torch.Tensor:
        return x.new_empty((*x.shape[:-1], out_features), dtype=out or x.dtype)

    @torch.library.register_fake("compress_kernels::native_packed")
    def packed(x, codes, scale, zero, bits, group, k, bias, residual, out):  # type: ignore[no-untyped-def]
        return like(x, codes.shape[0], out)

    @torch.library.register_fake("compress_kernels::native_nf4")
    def nf4(x, codes, absmax, table, bias, residual, out):  # type: ignore[no-untyped-def]
        return like(x, codes.shape[0], out)

    @torch.library.register_fake("compress_kernels::native_sparse")
    def sparse(x, mask, start, values, bits, scale, zero, group, k, bias, residual, out):  # type: ignore[no-untyped-def]
        return like(x, mask.shape[0], out)

    @torch.library.register_fake("compress_kernels::native_int8")
    def int8(x, weight, scale, bias, residual, out):  # type: ignore[no-untyped-def]
        return like(x, weight.shape[0], out)

    @torch.library.register_fake("compress_kernels::native_dense")
    def dense(x, weight, bias, residual, out):  # type: ignore[no-untyped-def]
        return like(x, weight.shape[0], out)
