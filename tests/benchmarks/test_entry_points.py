"""Benchmarks and tools start from the top of the repository, and find the files that they run in other environments."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.common import REPOSITORY, RESULTS
from benchmarks.peers import jobs
from benchmarks.peers.environments import OURS, PEERS
from benchmarks.speed import peers, scaling
from tools import readme

COMMANDS = [
    "benchmarks.fuzz",
    "benchmarks.heal_entries",
    "benchmarks.heal_table",
    "benchmarks.train_methods",
    "benchmarks.gpu.__main__",
    "benchmarks.gpu.worker",
    "benchmarks.peers.table",
    "benchmarks.roofline",
    "benchmarks.quality.experts",
    "benchmarks.quality.low_rank",
    "benchmarks.quality.methods",
    "benchmarks.quality.recipes",
    "benchmarks.quality.upcycled",
    "benchmarks.servers.gguf_bars",
    "benchmarks.servers.gguf_models",
    "benchmarks.servers.gguf_tokenizers",
    "benchmarks.servers.matrix",
    "benchmarks.speed.decode",
    "benchmarks.speed.kernels",
    "benchmarks.speed.peers",
    "benchmarks.speed.ranks",
    "benchmarks.speed.scaling",
    "benchmarks.speed.table",
    "benchmarks.speed.turns",
    "benchmarks.zoo.__main__",
    "tools.aot",
    "tools.readme",
    "tools.train_embedded",
]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_can_be_imported_and_has_a_main(name: str) -> None:
    assert callable(importlib.import_module(name).main)


def test_what_is_run_in_other_environments_is_there() -> None:
    for tool in (OURS, *PEERS.values()):
        assert (jobs.RUNNERS / tool.runner).is_file(), tool.name
    assert (jobs.SCRIPTS / "draw.py").is_file()
    assert (jobs.SCRIPTS / "evaluate.py").is_file()
    assert peers.RUNNER.is_file()
    assert (scaling.EMBEDDED / "config.json").is_file()
    assert readme.README.is_file()
    assert RESULTS == REPOSITORY / "benchmarks" / "results"


def test_no_runner_hides_the_library_that_it_runs() -> None:
    """The folder of a script comes first in its search path: a runner called as its tool would import itself."""
    names = {path.stem for path in jobs.RUNNERS.glob("*.py")}
    assert not names & {"autoround", "bitsandbytes", "compress", "gptqmodel", "hqq", "quanto", "torchao"}


def test_our_runner_imports_the_package_in_a_process_of_its_own(tmp_path: Path) -> None:
    code = "import runpy, sys; runpy.run_path(sys.argv[1]); import compress; print(compress.__file__)"
    runner = jobs.RUNNERS / OURS.runner
    paths = os.pathsep.join([str(runner.parent), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", code, str(runner)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert Path(done.stdout.strip().splitlines()[-1]).parent.name == "compress"


@pytest.mark.parametrize(
    ("changes", "label"),
    [
        ({}, "w4-sym-g128-64x512-1t"),
        ({"bits": None, "sparsity": 0.5}, "sparse50-64x512-1t"),
        ({"sparsity": 0.5, "pattern": "2:4", "symmetric": False, "group": 32}, "2of4-w4-asym-g32-64x512-1t"),
    ],
)
def test_settings_have_labels(changes: dict[str, object], label: str) -> None:
    assert jobs.Setting(Path("model"), "text", **changes).label == label  # type: ignore[arg-type]
