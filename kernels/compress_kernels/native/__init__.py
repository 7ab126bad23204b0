"""The C++ kernels for the CPU: built the first time they are needed, by the compiler of the machine.

``load()`` compiles the sources beside this file through ``torch.utils.cpp_extension`` into torch's extension cache
(``TORCH_EXTENSIONS_DIR``), once for each version of the sources, of torch and of the CPU's instruction set.
Without a compiler or ninja it says why, and the operators compute with plain torch.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

from .build_once import load_or_build

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
    """Result of loading: whether the operators exist, whether they use AVX-512, and a note that says why not."""

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
    available = cpu_flags()
    base = [f"-m{name}" for name in ("avx2", "fma", "f16c", "bmi2", "popcnt") if name in available]
    if all(_CPUINFO.get(name, name) in available for name in _AVX512) and "bmi2" in available:
        tiles = ["-DCK_AMX"] if "amx_bf16" in available else []  # not compiled for, but oneDNN will use them
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
    except Exception as error:  # whatever a foreign toolchain does, plain torch still works
        lines = str(error).strip().splitlines() or [type(error).__name__]
        said = next((line for line in lines if "error:" in line), lines[0])
        note = f"building the CPU kernels failed: {said[:300]}"
        warnings.warn(f"{note}; packed layers run slower, with plain torch", RuntimeWarning, stacklevel=2)
        return Native(False, False, note)
    vectorised = bool(torch.ops.compress_kernels.native_vectorised())
    return Native(
        True,
        vectorised,
        "AVX-512 kernels" if vectorised else "portable kernels: this CPU lacks AVX-512 with bf16",
    )


def _build() -> None:
    """Load the library of these sources, this torch and this CPU; build it if nobody has yet."""
    from torch.utils import cpp_extension  # noqa: PLC0415 (it imports setuptools)

    flags = compile_flags()
    texts = [(_HERE / name).read_bytes() for name in (*_SOURCES, "common.h", "gemm.h")]
    digest = hashlib.sha256(
        b"".join([*texts, " ".join(flags).encode(), torch.__version__.encode()])
    ).hexdigest()[:12]
    name = f"compress_kernels_native_{digest}"
    root = os.environ.get("TORCH_EXTENSIONS_DIR") or cpp_extension.get_default_build_root()

    def build(folder: Path) -> Path:
        os.environ.setdefault("MAX_JOBS", "2")
        cpp_extension.load(
            name=name,
            sources=[str(_HERE / source) for source in _SOURCES],
            extra_cflags=[*flags, "-fopenmp"],
            extra_ldflags=["-fopenmp"],
            build_directory=str(folder),
            is_python_module=False,
        )
        return folder / f"{name}{cpp_extension.LIB_EXT}"

    library = Path(root) / "compress_kernels" / name / f"native{cpp_extension.LIB_EXT}"
    load_or_build(library, lambda path: torch.ops.load_library(str(path)), build)


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
