"""Runtimes: the programs that an output is made for, and what each asks of it."""

from __future__ import annotations

from dataclasses import dataclass

from compress.errors import UserError
from compress.recipe.registry import did_you_mean

AUTO = "auto"
"""The runtime that is chosen by the budget."""
TRIALS = 24
"""Allocations that a refinement measures, unless it is told otherwise."""


@dataclass(frozen=True)
class Runtime:
    """A program that runs the output.

    Attributes:
        name: as ``--runtime`` takes it.
        format: the form of the output.
        server: its name in :data:`compress.formats.servers.SERVERS`; empty for Compress.
        fuses: it runs q, k and v, and gate and up, as one weight, which need one scheme.
        experts_alike: all experts of a model need one scheme.
    """

    name: str
    format: str
    server: str = ""
    fuses: bool = False
    experts_alike: bool = False


RUNTIMES = {
    runtime.name: runtime
    for runtime in (
        Runtime("transformers", "compressed-tensors", "transformers", fuses=True, experts_alike=True),
        Runtime("vllm", "compressed-tensors", "vllm", fuses=True, experts_alike=True),
        Runtime("llama.cpp", "gguf", "llama.cpp"),
        Runtime("mlx", "mlx", "mlx"),
        Runtime("native", "native"),
    )
}


def find_runtime(name: str) -> Runtime:
    """The runtime of a name.

    Raises:
        UserError: there is none; the sentence names the nearest.
    """
    if name not in RUNTIMES:
        raise UserError(f"--runtime: there is no '{name}'{did_you_mean(name, RUNTIMES)}")
    return RUNTIMES[name]
