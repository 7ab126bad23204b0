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
        packs_embeddings: it reads packed embeddings beside weights of several schemes.
    """

    name: str
    format: str
    server: str = ""
    fuses: bool = False
    experts_alike: bool = False
    packs_embeddings: bool = True


RUNTIMES = {
    runtime.name: runtime
    for runtime in (
        Runtime("transformers", "compressed-tensors", "transformers", True, True, packs_embeddings=False),
        Runtime("vllm", "compressed-tensors", "vllm", True, True, packs_embeddings=False),
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
