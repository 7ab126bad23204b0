"""The servers: which formats each claims to read, and what runs it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import fixed_threads

RUNNERS = Path(__file__).parent / "runners"
SECONDS = 900
"""Limit for one checkpoint in one server."""


@dataclass(frozen=True)
class Server:
    """A program that people run checkpoints with.

    Attributes:
        name: as the tables call it.
        runner: a script of ``runners/``, and its first arguments.
        formats: what its documentation says it reads, of what we write.
        dtype: what it computes in here.
    """

    name: str
    runner: tuple[str, ...]
    formats: frozenset[str]
    dtype: str


SERVERS: Mapping[str, Server] = {
    server.name: server
    for server in (
        Server(
            "transformers",
            ("plain_transformers.py",),
            frozenset({"compressed-tensors", "bitsandbytes", "dense", "gguf", "gptq", "awq", "fp8"}),
            "fp32",
        ),
        Server(
            "vllm",
            ("vllm_cpu.py",),
            frozenset({"compressed-tensors", "dense", "gptq", "awq", "fp8", "modelopt"}),
            "bf16",
        ),
        Server("llama.cpp", ("llamacpp.py", "serve"), frozenset({"gguf"}), "fp32, activations in 8 bits"),
        Server("gptqmodel", ("gptq_model.py",), frozenset({"gptq", "awq"}), "bf16"),
        Server("mlx_lm", ("mlx_cpu.py",), frozenset({"mlx", "dense"}), "the checkpoint's"),
    )
}


@dataclass(frozen=True)
class Questions:
    """The token windows that all servers are asked about.

    Attributes:
        ids: an ``.npy`` file, int64 ``[windows, length]``.
        prompts: how many windows are continued.
        prompt: tokens of each that the server is given.
        new: tokens that it adds.
    """

    ids: Path
    prompts: int = 4
    prompt: int = 16
    new: int = 32

    def job(self, folders: Sequence[Path]) -> dict[str, Any]:
        """What a runner reads; see ``runners/children.py``."""
        asked = {"prompts": self.prompts, "prompt": self.prompt, "new": self.new}
        return {**asked, "ids": str(self.ids), "seconds": SECONDS, "folders": [str(each) for each in folders]}


def ask(
    server: Server, interpreter: Path, questions: Questions, folders: Sequence[Path], work: Path
) -> list[dict[str, Any]]:
    """The answers of a server, one for each folder.

    Raises:
        RuntimeError: the runner itself failed; the message holds the end of what it printed.
    """
    job, out = work / f"{server.name}.job.json", work / f"{server.name}.jsonl"
    job.write_text(json.dumps(questions.job(folders)), encoding="utf-8")
    out.unlink(missing_ok=True)
    first, *rest = server.runner
    command = [str(interpreter), str(RUNNERS / first), *rest, str(job), str(out)]
    done = subprocess.run(command, capture_output=True, errors="replace", check=False, env=fixed_threads(1))
    answers = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    if done.returncode or len(answers) != len(folders):
        raise RuntimeError(f"{server.name} failed:\n{(done.stderr or done.stdout)[-3000:]}")
    return answers


def run_llamacpp(interpreter: Path, *arguments: object) -> None:
    """Run a command of ``runners/llamacpp.py``.

    Raises:
        RuntimeError: it failed; the message holds the end of what it printed.
    """
    command = [str(interpreter), str(RUNNERS / "llamacpp.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, errors="replace", check=False, env=fixed_threads(1))
    if done.returncode:
        raise RuntimeError(f"llama.cpp failed at {arguments[0]}:\n{done.stderr[-2000:]}")
