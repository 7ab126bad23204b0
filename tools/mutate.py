"""Mutation testing: ``python -m tools.mutate [--only TEXT] [--seconds N] [--no-write]``.

Each mutation of ``tests/mutants.py`` replaces one line of the sources in a scratch copy of the repository; the tests that the
mutation names must then fail. Mutations that no test notices (survivors) are printed, and the status is 1 if there are any.
The result goes to ``benchmarks/results/mutants.json``. Every mutation runs in a process forked from one that has imported the
libraries, so that a mutation takes little more than its tests. Not part of ``make test``: it takes minutes.
"""

from __future__ import annotations

import argparse
import compileall
import datetime
import importlib.metadata
import importlib.util
import json
import multiprocessing
import os
import platform
import py_compile
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

REPOSITORY = Path(__file__).resolve().parent.parent
RESULT = REPOSITORY / "benchmarks" / "results" / "mutants.json"
LIBRARIES = (
    "torch",
    "torch._dynamo",
    "transformers.generation",
    "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto",
    "transformers.pytorch_utils",
    "transformers.tokenization_utils_tokenizers",
    "accelerate",
    "hypothesis",
    "tokenizers",
    "safetensors.torch",
    "pydantic",
    "pytest",
    "numpy",
    "yaml",
    "rich",
)
"""Imported once, before the processes of the mutations are forked."""

PASSED, FAILED = 0, 1
"""pytest's exit statuses: all tests passed, some test failed."""

State = Literal["killed", "survived", "error"]


@dataclass(frozen=True)
class Outcome:
    """What became of one mutation: ``error`` where the tests could not be collected, or none was selected."""

    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    state: State
    seconds: float


def load_mutants(path: Path) -> tuple[Any, ...]:
    """The ``MUTANTS`` of a module that is no part of a package."""
    spec = importlib.util.spec_from_file_location("mutants", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutants"] = module
    spec.loader.exec_module(module)
    mutants: tuple[Any, ...] = module.MUTANTS
    return mutants


def mutated(text: str, old: str, new: str) -> str:
    """``text`` with the line ``old`` (without its indentation) replaced by ``new``.

    Raises:
        ValueError: the line does not occur exactly once.
    """
    lines = text.splitlines(keepends=True)
    places = [number for number, line in enumerate(lines) if line.strip() == old]
    if len(places) != 1:
        raise ValueError(f"the line occurs {len(places)} times: {old}")
    line = lines[places[0]]
    lines[places[0]] = line.replace(old, new)
    return "".join(lines)


def copy_repository(folder: Path) -> None:
    """Put the tracked and the new files of the repository into ``folder``."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout.split(
        "\n"
    )
    for name in filter(None, names):
        if (REPOSITORY / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, folder / name)
    # Compiled once for all mutations; by their contents, as a mutation may fall within the second of the one before.
    checked = py_compile.PycInvalidationMode.CHECKED_HASH
    for package in ("compress", "kernels", "cli"):
        compileall.compile_dir(folder / package, quiet=2, invalidation_mode=checked)


def run_tests(copy: Path, tests: Sequence[str], seconds: float) -> int | None:
    """pytest's exit status on ``tests`` in ``copy``; ``None`` where they took longer than ``seconds``."""
    process = multiprocessing.get_context("fork").Process(target=_pytest, args=(copy, tests))
    process.start()
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
        return None
    return process.exitcode


def _pytest(copy: Path, tests: Sequence[str]) -> None:
    """Run pytest on the copy, and end the process with its status."""
    import pytest  # noqa: PLC0415 (imported by the parent already)

    os.chdir(copy)
    sys.path[:0] = [str(copy), str(copy / "kernels"), str(copy / "cli")]
    sys.dont_write_bytecode = True
    with open(os.devnull, "w") as silence:
        os.dup2(silence.fileno(), 1)
        os.dup2(silence.fileno(), 2)
        status = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--no-header", "--tb=no", *tests])
    os._exit(int(status))


def try_mutant(copy: Path, mutant: Any, seconds: float) -> Outcome:
    """Apply ``mutant`` to ``copy``, run its tests, and take it back."""
    path = copy / mutant.file
    original = path.read_text(encoding="utf-8")
    started = time.monotonic()
    path.write_text(mutated(original, mutant.old, mutant.new), encoding="utf-8")
    try:
        status = run_tests(copy, mutant.tests, seconds)
    finally:
        path.write_text(original, encoding="utf-8")
    # A mutation that never ends is noticed by everybody.
    state: State = "survived" if status == PASSED else "killed" if status in (FAILED, None) else "error"
    return Outcome(
        mutant.file, mutant.old, mutant.new, tuple(mutant.tests), state, round(time.monotonic() - started, 1)
    )


def record(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What is written: when, with which versions, how many survived, and every mutation."""
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "pytest")}
    return {
        "day": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "python": platform.python_version(),
        "versions": versions,
        "mutants": len(outcomes),
        "survivors": sum(outcome.state != "killed" for outcome in outcomes),
        "outcomes": [asdict(outcome) for outcome in outcomes],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the mutations; 0 where every one was noticed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--only", default="", help="mutations whose file or lines contain this text")
    parser.add_argument("--seconds", type=float, default=300.0, help="limit for the tests of one mutation")
    parser.add_argument("--no-write", action="store_true", help="leave benchmarks/results as it is")
    options = parser.parse_args(arguments)
    mutants = load_mutants(REPOSITORY / "tests" / "mutants.py")
    chosen = [m for m in mutants if options.only in f"{m.file} {m.old} {m.new}"]
    for name in LIBRARIES:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        copy = Path(name)
        copy_repository(copy)
        tests = sorted({test for mutant in chosen for test in mutant.tests})
        if run_tests(copy, tests, 10 * options.seconds) != PASSED:
            print("the tests do not pass without any mutation", file=sys.stderr)
            return 1
        outcomes = [_reported(try_mutant(copy, mutant, options.seconds)) for mutant in chosen]
    failed = [outcome for outcome in outcomes if outcome.state != "killed"]
    print(f"{len(outcomes) - len(failed)} of {len(outcomes)} mutations were noticed")
    if len(chosen) == len(mutants) and not options.no_write:
        RESULT.write_text(json.dumps(record(outcomes), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 1 if failed else 0


def _reported(outcome: Outcome) -> Outcome:
    print(f"{outcome.state:8} {outcome.seconds:6.1f} s  {outcome.file}: {outcome.new}", flush=True)
    return outcome


if __name__ == "__main__":
    sys.exit(main())
