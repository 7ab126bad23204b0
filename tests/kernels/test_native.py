"""Building the C++ kernels: once for all processes, whatever becomes of the process that builds them."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from compress_kernels import native
from compress_kernels.native.build_once import load_or_build
from compress_kernels.native.compiler import Unit, compile_library
from torch.utils import cpp_extension

FORK = multiprocessing.get_context("fork")
WHOLE = "whole library"


def load(path: Path) -> None:
    """What loading does to a file: damaged ones raise ``OSError``."""
    if path.read_text() != WHOLE:
        raise OSError(f"{path.name}: file too short")


def build(folder: Path) -> Path:
    made = folder / "made.so"
    made.write_text(WHOLE)
    return made


def refuse(folder: Path) -> Path:
    raise AssertionError("it is built already")


def test_a_library_is_built_once_and_nothing_else_is_left(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    library = tmp_path / "folder" / "native.so"
    load_or_build(library, load, build)
    assert "building the CPU kernels" in capfd.readouterr().err
    load_or_build(library, load, refuse)
    assert capfd.readouterr().err == ""
    assert library.read_text() == WHOLE
    assert {path.name for path in library.parent.iterdir()} <= {"native.so", "build.lock", "owner"}


def test_a_damaged_library_is_built_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    library = tmp_path / "native.so"
    library.write_text("whole lib")
    load_or_build(library, load, build)
    assert library.read_text() == WHOLE
    assert "file too short" in capfd.readouterr().err


def test_a_build_that_fails_leaves_no_library(tmp_path: Path) -> None:
    def fail(folder: Path) -> Path:
        (folder / "half.o").touch()
        raise RuntimeError("no compiler")

    library = tmp_path / "native.so"
    with pytest.raises(RuntimeError, match="no compiler"):
        load_or_build(library, load, fail)
    assert not library.exists()
    assert not list(tmp_path.glob(".building-*"))
    load_or_build(library, load, build)


def _build_until_killed(library: Path, ready: Any) -> None:
    def never_done(folder: Path) -> Path:
        (folder / "half.o").touch()
        (folder / "lock").touch()  # as torch leaves it
        ready.set()
        time.sleep(120)
        return folder

    load_or_build(library, load, never_done)


def test_a_build_killed_half_way_does_not_block_the_next(tmp_path: Path) -> None:
    library, ready = tmp_path / "native.so", FORK.Event()
    process = FORK.Process(target=_build_until_killed, args=(library, ready))
    process.start()
    assert ready.wait(90)
    process.kill()
    process.join(30)
    assert list(tmp_path.glob(".building-*"))
    load_or_build(library, load, build, patience=5)
    assert library.read_text() == WHOLE
    assert not list(tmp_path.glob(".building-*"))


def test_a_living_owner_is_named_and_waited_for_only_so_long(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    library, ready = tmp_path / "native.so", FORK.Event()
    process = FORK.Process(target=_build_until_killed, args=(library, ready))
    process.start()
    try:
        assert ready.wait(90)
        with pytest.raises(TimeoutError, match=f"process {process.pid} has held"):
            load_or_build(library, load, refuse, patience=0.2)
        assert f"waiting for process {process.pid}" in capfd.readouterr().err
    finally:
        process.kill()
        process.join(30)


def _build_slowly(library: Path, log: Path) -> None:
    def slow(folder: Path) -> Path:
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(0.5)
        return build(folder)

    load_or_build(library, load, slow)


def test_processes_at_once_build_once(tmp_path: Path) -> None:
    library, log = tmp_path / "native.so", tmp_path / "log"
    processes = [FORK.Process(target=_build_slowly, args=(library, log)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    assert len(log.read_text().splitlines()) == 1
    assert library.read_text() == WHOLE


def test_objects_lie_in_the_private_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    folders: list[Path] = []

    def compile(units: list[Unit], flags: list[str], library: Path, *, jobs: int) -> None:
        folders.append(library.parent)
        (library.parent / "bindings.o").touch()
        library.write_text(WHOLE)

    monkeypatch.setattr(native, "compile_library", compile)
    monkeypatch.setattr(native.torch.ops, "load_library", lambda path: load(Path(path)))
    native._build()
    (folder,) = folders
    assert not folder.exists()
    assert [path.name for path in folder.parent.glob("native*")] == [f"native{cpp_extension.LIB_EXT}"]


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [("COMPRESS_KERNELS_NATIVE", "0", "switched off"), ("CXX", "no-such-compiler", "no C++ compiler")],
)
def test_why_there_are_no_kernels_is_said(variable: str, value: str, reason: str) -> None:
    code = "from compress_kernels import native; print(native.load())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), variable: value},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "loaded=False" in done.stdout
    assert reason in done.stdout


CARRIED = """
import sys
from pathlib import Path
from compress_kernels import native
native.PREBUILT = Path(sys.argv[1])
native._build = None  # nothing is compiled
print(native.load(), native.prebuilt().name)
"""


def _loaded(folder: Path) -> subprocess.CompletedProcess[str]:
    """The kernels of a process that has no compiler, and a folder of libraries that a wheel carries."""
    paths = os.pathsep.join(filter(None, sys.path))
    return subprocess.run(
        [sys.executable, "-c", CARRIED, str(folder)],
        env={**os.environ, "PYTHONPATH": paths, "CXX": "no-such-compiler"},
        capture_output=True,
        text=True,
        check=True,
    )


def test_a_library_that_a_wheel_carries_needs_no_compiler(tmp_path: Path) -> None:
    if not native.load().loaded:
        pytest.skip("no kernels on this machine")
    code = "from compress_kernels import native; native.load(); print(open('/proc/self/maps').read())"
    maps = subprocess.run(  # another process: the one that built the library has it from another folder
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    (built,) = {line.split()[-1] for line in maps.splitlines() if "/native" in line}
    (tmp_path / native.prebuilt().name).symlink_to(built)
    said = _loaded(tmp_path).stdout
    assert f"isa='{native.load().isa}'" in said


def test_a_library_of_other_sources_is_left_and_a_damaged_one_is_told(tmp_path: Path) -> None:
    name = native.prebuilt().name
    (tmp_path / "native-torch0.0.0-000000000000.so").write_text(WHOLE)
    assert "no C++ compiler" in _loaded(tmp_path).stdout
    (tmp_path / name).write_text(WHOLE)
    done = _loaded(tmp_path)
    assert "no C++ compiler" in done.stdout
    assert f"{name} of the wheel cannot be loaded" in done.stderr


def test_a_carried_library_has_the_kernels_of_every_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Unit] = []

    def compile(units: list[Unit], flags: list[str], library: Path, *, jobs: int) -> None:
        seen.extend(units)
        library.write_text(WHOLE)

    monkeypatch.setattr(native, "PREBUILT", tmp_path / "prebuilt")
    monkeypatch.setattr(native, "compile_library", compile)
    monkeypatch.setattr(native, "cpu_flags", lambda: frozenset())
    monkeypatch.setattr(native.platform, "machine", lambda: "x86_64")
    made = native.prebuild()
    assert made == native.prebuilt()
    assert [path.name for path in made.parent.iterdir()] == [made.name]
    names = {unit.source.name for unit in seen}
    assert {"packed_avx2.cpp", "packed_vnni.cpp", "portable.cpp"} <= names
    assert not {"packed_avx2.cpp", "packed_vnni.cpp"} & {unit.source.name for unit in native.units()}


AVX2 = frozenset({"avx2", "fma", "f16c", "bmi2", "popcnt"})
ICE_LAKE = AVX2 | {
    "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512vbmi", "avx512_vbmi2", "avx512_vnni",
}  # fmt: skip
ZEN_4 = ICE_LAKE | {"avx512_bf16"}


@pytest.mark.parametrize(
    ("machine", "flags", "built"),
    [
        ("x86_64", ZEN_4, ["avx2", "avx512_bf16"]),
        ("x86_64", ICE_LAKE, ["avx2", "avx512"]),
        ("x86_64", AVX2 | {"avx512f"}, ["avx2"]),
        ("x86_64", frozenset({"avx2", "fma"}), []),
        ("aarch64", ZEN_4, []),
    ],
)
def test_files_and_flags_follow_the_cpu(
    machine: str, flags: frozenset[str], built: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native.platform, "machine", lambda: machine)
    monkeypatch.setattr(native, "cpu_flags", lambda: flags)
    _check_units(native.units(), built)
    assert native.may_multiply_bf16() == ("avx512_bf16" in built)


def test_a_library_for_every_cpu_has_all_instruction_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(native, "cpu_flags", lambda: frozenset())
    _check_units(native.units(every_cpu=True), list(native.ISAS[1:]))


def _check_units(units: list[Unit], built: list[str]) -> None:
    """The sources and flags of the portable kernels and of the instruction sets ``built``."""
    macros = {f"-DCK_BUILT_{isa.upper()}" for isa in built}
    assert all(set(unit.flags) == macros for unit in units if unit.source.name == "dispatch.cpp")
    of = {isa: {unit.source.name for unit in units if f"-DCK_ISA={isa}" in unit.flags} for isa in native.ISAS}
    assert all("step.cpp" in of[isa] for isa in ("portable", *built))
    assert ("packed_avx2.cpp" in of["avx2"]) == ("avx2" in built)
    for isa in ("avx512", "avx512_bf16"):
        assert ("packed.cpp" in of[isa]) == (isa in built)
    for unit in units:
        wide = any(isa in flag for isa in ("=avx512", "=avx512_bf16") for flag in unit.flags)
        assert any(flag.startswith("-mavx512") for flag in unit.flags) == wide
        assert ("-mavx512bf16" in unit.flags) == ("-DCK_ISA=avx512_bf16" in unit.flags)
    # The linker takes a function that several files have from the first of them.
    widths = [sum(flag.startswith("-m") for flag in unit.flags) for unit in units]
    assert widths == sorted(widths)


def test_every_source_is_compiled_somewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(native, "cpu_flags", lambda: ZEN_4)
    assert {unit.source for unit in native.units()} == set(Path(native.__file__).parent.glob("*.cpp"))


def test_sources_are_compiled_with_their_own_flags(tmp_path: Path) -> None:
    texts = {
        "one": "int value_one() { return ONE; }",
        "two": 'int value_one(); extern "C" int total() { return value_one() + TWO; }',
    }
    units = []
    for number, (name, text) in enumerate(texts.items(), 1):
        source = tmp_path / f"{name}.cpp"
        source.write_text(text)
        units.append(Unit(source, (f"-D{name.upper()}={number}",)))
    library = tmp_path / "made.so"
    compile_library(units, ["-O1"], library, jobs=2)
    assert ctypes.CDLL(str(library)).total() == 3
    (tmp_path / "one.cpp").write_text("no C++")
    with pytest.raises(RuntimeError, match=r"one\.cpp.*error"):
        compile_library(units, ["-O1"], library, jobs=1)


def test_one_source_may_be_compiled_with_several_flags(tmp_path: Path) -> None:
    source = tmp_path / "same.cpp"
    source.write_text('extern "C" int NAME() { return NUMBER; }')
    units = [Unit(source, (f"-DNAME={name}", f"-DNUMBER={number}")) for name, number in (("a", 1), ("b", 2))]
    library = tmp_path / "made.so"
    compile_library(units, ["-O1"], library, jobs=2)
    made = ctypes.CDLL(str(library))
    assert (made.a(), made.b()) == (1, 2)


def test_an_instruction_set_can_be_chosen() -> None:
    before = native.load().isa
    assert before == (os.environ.get("COMPRESS_KERNELS_ISA") or native.available()[-1])
    for isa in native.available():
        with native.using(isa):
            assert native.load().isa == isa
            assert native.load().vectorised == isa.startswith("avx512")
            assert not native.multiplies_bf16() or isa == "avx512_bf16"
    assert native.load().isa == before
    with (
        pytest.raises(ValueError, match="portable, avx2, avx512, avx512_bf16, not for 'neon'"),
        native.using("neon"),
    ):
        raise AssertionError
    assert native.load().isa == before


def test_the_variable_names_an_instruction_set() -> None:
    code = "from compress_kernels import native; print(native.load())"
    paths = os.pathsep.join(filter(None, sys.path))
    for value, expected in (("portable", "isa='portable'"), ("neon", "not for 'neon'")):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": paths, "COMPRESS_KERNELS_ISA": value},
            capture_output=True,
            text=True,
            check=False,
        )
        assert expected in (done.stdout if value == "portable" else done.stderr)


def test_without_setuptools_nothing_is_built_and_the_remedy_is_told() -> None:
    code = "import sys; sys.modules['setuptools'] = None; from compress_kernels import native; print(native.load())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "loaded=False" in done.stdout
    assert "pip install setuptools" in done.stdout
    assert "Warning" not in done.stderr
