"""An environment of its own for every tool that is measured: made once in the work folder, then used again.

torch is installed first and held by a constraints file, so that all tools compute with the same one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import REPOSITORY

TORCH = "torch==2.13.0"


@dataclass(frozen=True)
class Tool:
    """A tool and what `pip` installs for it.

    Attributes:
        name: how it is called on the command line and in tables.
        requirements: what pip is given; the first is the tool.
        runner: the script of ``benchmarks/peers/runners`` that runs it.
        methods: what the runner can be asked for.
        batch: calibration windows in one forward pass, the tool's own default.
        build_isolation: off where the tool's build looks for the installed torch.
    """

    name: str
    requirements: tuple[str, ...]
    runner: str
    methods: frozenset[str]
    batch: int = 1
    build_isolation: bool = True


OURS = Tool("compress", (str(REPOSITORY), "compressed-tensors==0.20.0"), "run_compress.py", frozenset())
PEERS = {
    tool.name: tool
    for tool in (
        Tool(
            "llmcompressor",
            ("llmcompressor==0.14.0.1", "transformers<=5.17"),
            "run_llmcompressor.py",
            frozenset({"rtn", "gptq", "awq", "sparsegpt", "wanda"}),
        ),
        Tool(
            "autoround",
            ("auto-round==0.16.1", "compressed-tensors==0.20.0"),
            "run_autoround.py",
            frozenset({"signround"}),
            batch=8,
        ),
        Tool(
            "gptqmodel", ("gptqmodel==7.6",), "run_gptqmodel.py", frozenset({"gptq"}), build_isolation=False
        ),
        Tool(
            "modelopt",
            ("nvidia-modelopt[hf]==0.47.0", "transformers<=5.17", "compressed-tensors==0.20.0"),
            "run_modelopt.py",
            frozenset({"ptq"}),
        ),
        Tool("hqq", ("hqq==0.2.8", "transformers", "accelerate"), "run_hqq.py", frozenset({"hqq"})),
        Tool(
            "torchao", ("torchao==0.18.0", "transformers", "accelerate"), "run_torchao.py", frozenset({"rtn"})
        ),
        Tool(
            "quanto",
            ("optimum-quanto==0.2.7", "transformers", "accelerate"),
            "run_quanto.py",
            frozenset({"rtn"}),
        ),
        Tool(
            "bitsandbytes",
            ("bitsandbytes==0.50.2", "transformers", "accelerate"),
            "run_bitsandbytes.py",
            frozenset({"nf4"}),
        ),
    )
}


def python_of(tool: Tool, work: Path, *, refresh: bool = False) -> Path:
    """The interpreter of the tool's environment in ``work/environments``, made if it is not there.

    ``refresh`` reinstalls the tool itself without its dependencies (for our own sources, which change).
    Raises ``subprocess.CalledProcessError`` when pip fails; what it said is in ``<environment>/pip.log``.
    """
    folder = (work / "environments" / tool.name).resolve()
    python = folder / "bin" / "python"
    stamp = folder / "installed.json"
    digest = hashlib.sha256(json.dumps([TORCH, tool.requirements]).encode()).hexdigest()
    if not stamp.exists() or json.loads(stamp.read_text(encoding="utf-8"))["digest"] != digest:
        print(f"making the environment of {tool.name} in {folder}", file=sys.stderr)
        _make(tool, folder, python)
        stamp.write_text(json.dumps({"digest": digest}), encoding="utf-8")
    elif refresh:
        _pip(python, folder, ["--force-reinstall", "--no-deps", tool.requirements[0]])
    return python


def _make(tool: Tool, folder: Path, python: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    constraints = folder / "constraints.txt"
    constraints.write_text(TORCH + "\n", encoding="utf-8")
    _pip(python, folder, [TORCH])
    if not tool.build_isolation:
        _pip(python, folder, ["setuptools>=77", "wheel", "ninja"])
    isolation = [] if tool.build_isolation else ["--no-build-isolation"]
    _pip(python, folder, ["-c", str(constraints), *isolation, *tool.requirements])


def _pip(python: Path, folder: Path, arguments: list[str]) -> None:
    with (folder / "pip.log").open("a", encoding="utf-8") as log:
        subprocess.run(
            [str(python), "-m", "pip", "install", *arguments],
            check=True,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": ""},
        )


def package_of(tool: Tool) -> str:
    """The name of the tool's own package, without extras and version."""
    return re.split(r"[\[=<> ]", tool.requirements[0], maxsplit=1)[0]


def installed(tool: Tool, python: Path) -> dict[str, str]:
    """Name → version in the environment of a tool: its own package, torch, transformers and compressed-tensors."""
    names = ("torch", "transformers", "compressed-tensors", package_of(tool))
    listing = subprocess.run(
        [str(python), "-m", "pip", "list", "--format", "json"],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": ""},
    )
    versions = {row["name"].lower().replace("_", "-"): row["version"] for row in json.loads(listing.stdout)}
    return {name: versions[name] for name in names if name in versions}
