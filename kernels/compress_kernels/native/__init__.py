"""The C++ kernels for the CPU: built the first time they are needed, by the compiler of the machine.

``load()`` compiles the sources beside this file into torch's extension cache (``TORCH_EXTENSIONS_DIR``), once for each version
of the sources, of torch and of the CPU's instruction sets. Without a compiler it says why, and the operators compute with
plain torch. A wheel may carry the library for one version of torch (``make wheel-native``), built for every x86-64 CPU:
:func:`prebuilt` says where, and nothing is compiled then.

Instruction sets: ``avx512_bf16``, ``avx512`` (with VBMI2 and VNNI, without bf16), ``avx2`` (with FMA) and ``portable``. Each
has files and flags of its own, but that the two of AVX-512 share their files; which one runs is chosen when the library is
loaded, by what the CPU says that it has. ``COMPRESS_KERNELS_ISA`` names a narrower one, and :func:`using` does so for a while.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

from .build_once import load_or_build
from .compiler import Unit, compile_library
from .fakes import register_fakes

_HERE = Path(__file__).parent
_PORTABLE = (
    "bindings.cpp",
    "program.cpp",
    "dispatch.cpp",
    "portable.cpp",
)
_EACH = ("step.cpp", "columns.cpp", "rounding_errors.cpp", "scale_search.cpp")
_AVX2 = ("packed_avx2.cpp", "blocks_avx2.cpp", "dense_avx2.cpp")
_AVX512 = (
    "packed.cpp",
    "packed_vnni.cpp",
    "interleaved.cpp",
    "sparse_interleaved.cpp",
    "pairs.cpp",
    "pair_up.cpp",
    "sparse.cpp",
    "sparse_vnni.cpp",
    "dense.cpp",
    "int8.cpp",
    "moments.cpp",
    "prompt_attention.cpp",
    "blocks_avx512.cpp",
)
_AVX2_FLAGS = ("avx2", "fma", "f16c", "bmi2", "popcnt")
_AVX512_FLAGS = (
    *_AVX2_FLAGS,
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512dq",
    "avx512vbmi",
    "avx512vbmi2",
    "avx512vnni",
)
# What each instruction set beyond the portable one has: sources beside those of each, and the flags of the compiler.
_SETS = {
    "avx2": (_AVX2, _AVX2_FLAGS),
    "avx512": (_AVX512, _AVX512_FLAGS),
    "avx512_bf16": (_AVX512, (*_AVX512_FLAGS, "avx512bf16")),
}
# As Linux spells them in /proc/cpuinfo.
_CPUINFO = {"avx512vbmi2": "avx512_vbmi2", "avx512bf16": "avx512_bf16", "avx512vnni": "avx512_vnni"}
PREBUILT = _HERE / "prebuilt"
"""The folder of libraries that a wheel carries."""
_FLAGS = ("-O3", "-std=c++20", "-Wno-uninitialized", "-Wno-maybe-uninitialized")
ISAS = ("portable", "avx2", "avx512", "avx512_bf16")
"""The instruction sets that there are kernels for, narrowest first."""


@dataclass(frozen=True)
class Native:
    """Result of loading: whether the operators exist, the instruction set that they use, and a note that says why not."""

    loaded: bool
    isa: str
    note: str

    @property
    def vectorised(self) -> bool:
        """Whether the kernels that need AVX-512 run."""
        return self.isa in ("avx512", "avx512_bf16")


def cpu_flags() -> frozenset[str]:
    """The instruction sets that this CPU says it has, as Linux spells them; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return next(
        (frozenset(line.split(":")[1].split()) for line in lines if line.startswith("flags")), frozenset()
    )


def units(*, every_cpu: bool = False) -> list[Unit]:
    """What is compiled: portable sources, then those of the instruction sets that this CPU has, or (``every_cpu``) of all.

    For this CPU alone only the wider one of the two of AVX-512 is.
    """
    x86 = platform.machine() in ("x86_64", "AMD64")
    isas = _isas(cpu_flags() if x86 else frozenset(), every_cpu=x86 and every_cpu)
    built = tuple(f"-DCK_BUILT_{isa.upper()}" for isa in isas)
    made = [Unit(_HERE / name, built) for name in _PORTABLE]
    for isa in ("portable", *isas):
        sources, flags = _SETS.get(isa, ((), ()))
        given = (f"-DCK_ISA={isa}", *(f"-m{name}" for name in flags))
        made += [Unit(_HERE / name, given) for name in (*sources, *_EACH)]
    return made


def _isas(available: frozenset[str], *, every_cpu: bool) -> list[str]:
    """The instruction sets that are built beside the portable one."""
    found = [
        isa
        for isa, (_, flags) in _SETS.items()
        if every_cpu or all(_CPUINFO.get(name, name) in available for name in flags)
    ]
    narrower = not every_cpu and "avx512_bf16" in found
    return [isa for isa in found if not (narrower and isa == "avx512")]


def load() -> Native:
    """Build (once) and load the operators ``torch.ops.compress_kernels.native_*``; never raises but for a wrong variable.

    Raises:
        ValueError: ``COMPRESS_KERNELS_ISA`` names an instruction set that there is not or that this CPU lacks.
    """
    refusal = _load()
    if refusal is not None:
        return Native(False, "none", refusal)
    return _describe(torch.ops.compress_kernels.native_isa())


def multiplies_bf16() -> bool:
    """Whether the kernels' own products of bf16 are faster than torch's: AVX-512 multiplies it, and there is no AMX."""
    return load().isa == "avx512_bf16" and not torch.ops.compress_kernels.native_has_tiles()


def attends_prompts() -> bool:
    """Whether attention of a whole prompt in bf16 is faster by the kernel than by torch: with AVX-512, and without AMX."""
    return load().vectorised and not torch.ops.compress_kernels.native_has_tiles()


def may_multiply_bf16() -> bool:
    """What :func:`multiplies_bf16` will say on this CPU once the kernels are built, by its flags alone."""
    wide = any("-DCK_BUILT_AVX512_BF16" in unit.flags for unit in units())
    return wide and "amx_bf16" not in cpu_flags()


@functools.lru_cache(len(ISAS))
def _describe(isa: str) -> Native:
    names = {"avx512_bf16": "AVX-512", "avx512": "AVX-512", "avx2": "AVX2", "portable": "portable"}
    return Native(True, isa, f"{names[isa]} kernels")


@contextmanager
def using(isa: str) -> Iterator[None]:
    """Use the kernels of one of :data:`ISAS` meanwhile, in all threads; for tests and for measuring.

    Raises:
        ValueError: there is none of that name, or this CPU does not run it.
    """
    before = load().isa
    _use(isa)
    try:
        yield
    finally:
        _use(before)


def available() -> tuple[str, ...]:
    """Those of :data:`ISAS` that this CPU runs, narrowest first; none where the kernels were not built."""
    loaded = load()
    return _running() if loaded.loaded else ()


@functools.cache
def _running() -> tuple[str, ...]:
    before = str(torch.ops.compress_kernels.native_isa())
    found = [isa for isa in ISAS if torch.ops.compress_kernels.native_use_isa(isa)]
    torch.ops.compress_kernels.native_use_isa(before)
    return tuple(found)


def _use(isa: str) -> None:
    if isa not in ISAS:
        raise ValueError(f"there are kernels for {', '.join(ISAS)}, not for {isa!r}")
    if not torch.ops.compress_kernels.native_use_isa(isa):
        raise ValueError(f"this CPU does not run the {isa} kernels")


@functools.cache
def _load() -> str | None:
    """Build and load; why there are no operators, or ``None``."""
    if os.environ.get("COMPRESS_KERNELS_NATIVE") == "0":
        return "switched off by COMPRESS_KERNELS_NATIVE=0"
    compiler, carried = os.environ.get("CXX", "c++"), _carried()
    if not carried and shutil.which(compiler) is None:
        return f"no C++ compiler ({compiler}) on this machine"
    if not carried and find_spec("setuptools") is None:
        return "setuptools is not installed, which building the CPU kernels needs: pip install setuptools"
    try:
        if not carried:
            _build()
        register_fakes()
    except Exception as error:  # whatever a foreign toolchain does, plain torch still works
        lines = str(error).strip().splitlines() or [type(error).__name__]
        said = next((line for line in lines if "error:" in line), lines[0])
        note = f"building the CPU kernels failed: {said[:300]}"
        warnings.warn(
            f"{note}; packed layers and compressing are slower, with plain torch",
            RuntimeWarning,
            stacklevel=3,
        )
        return note
    if wanted := os.environ.get("COMPRESS_KERNELS_ISA"):
        _use(wanted)
    return None


def prebuilt() -> Path:
    """Where a wheel carries the library of these sources for every x86-64 CPU and this torch; it need not be there."""
    public = torch.__version__.partition("+")[
        0
    ]  # builds for CPU and GPU of one version have the same interface
    return PREBUILT / f"native-torch{public}-{_digest(units(every_cpu=True), public)}.so"


def prebuild() -> Path:
    """Compile :func:`prebuilt`; the library.

    Raises:
        RuntimeError: the compiler failed.
    """
    made = prebuilt()
    made.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=made.parent) as folder:
        library = Path(folder) / made.name
        compile_library(units(every_cpu=True), _FLAGS, library, jobs=min(4, os.cpu_count() or 1))
        os.replace(library, made)
    return made


def _carried() -> bool:
    """Load the library that a wheel carries, if there is one that fits."""
    try:
        library = prebuilt()
        if not library.is_file():
            return False
        torch.ops.load_library(str(library))
    except OSError as error:
        said = str(error).strip().splitlines()[0][:200]
        warnings.warn(f"{library.name} of the wheel cannot be loaded: {said}", RuntimeWarning, stacklevel=4)
        return False
    return True


def _digest(parts: list[Unit], version: str) -> str:
    """A hash of the sources, the flags and the version of torch."""
    texts = [path.read_bytes() for path in sorted([*_HERE.glob("*.cpp"), *_HERE.glob("*.h")])]
    said = repr([(unit.source.name, unit.flags) for unit in parts]) + " ".join(_FLAGS) + version
    return hashlib.sha256(b"".join([*texts, said.encode()])).hexdigest()[:12]


def _build() -> None:
    """Load the library of these sources, this torch and this CPU; build it if nobody has yet."""
    from torch.utils import cpp_extension  # noqa: PLC0415 (it imports setuptools)

    parts = units()
    name = f"compress_kernels_native_{_digest(parts, torch.__version__)}"
    root = os.environ.get("TORCH_EXTENSIONS_DIR") or cpp_extension.get_default_build_root()

    def build(folder: Path) -> Path:
        made = folder / f"{name}{cpp_extension.LIB_EXT}"
        compile_library(parts, _FLAGS, made, jobs=min(4, os.cpu_count() or 1))
        torch.ops.load_library(str(made))
        return made

    library = Path(root) / "compress_kernels" / name / f"native{cpp_extension.LIB_EXT}"
    load_or_build(library, lambda path: torch.ops.load_library(str(path)), build)
