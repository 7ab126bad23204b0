"""Servers that read an output, by its format and by what its weights are.

vLLM's rules were read from its code (0.32) and from what it refused; what has run is in ``benchmarks/results/servers.json``. A
kernel for the machine at hand may be missing all the same: vLLM's build for CPUs has none for eight bits by channel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from compress_kernels.layouts import Layout, PackedInteger

from compress.models.views import WeightView


class Written(Protocol):
    """A weight and the layout that it is written in."""

    @property
    def view(self) -> WeightView:
        """The weight in the model."""
        ...

    @property
    def layout(self) -> Layout:
        """How it is stored."""
        ...


SERVERS: dict[str, tuple[str, ...]] = {
    "compressed-tensors": ("transformers", "vllm"),
    "bitsandbytes": ("transformers",),
    "dense": ("transformers", "vllm"),
    "gguf": ("llama.cpp",),
    "gptq": ("transformers", "vllm", "gptqmodel"),
    "awq": ("transformers", "vllm", "gptqmodel"),
    "mlx": ("mlx",),
    "fp8": ("transformers", "vllm"),
    "modelopt": ("vllm",),
    "native": (),
}
"""Format → the servers that read some of it."""

_GROUPS = (32, 64, 128, "channel")
"""Columns that share a scale in the kernels of vLLM for packed integers."""
_BITS = (4, 8)
"""Their bits: vLLM's build for CPUs finds no kernel for two and three bits; on a GPU they were not tried."""


def servers_of(format: str, weights: Sequence[Written]) -> tuple[str, ...]:
    """The servers that read a checkpoint of ``format`` with these weights.

    Raises:
        KeyError: there is no such format.
    """
    return tuple(
        server
        for server in SERVERS[format]
        if all(_READS[server](format, weight) for weight in weights if server in _READS)
    )


def _vllm_reads(format: str, weight: Written) -> bool:
    """Whether vLLM reads a weight: packed integers by their groups and bits, all else that the format holds as it is."""
    layout = weight.layout
    if format == "dense" or not isinstance(layout, PackedInteger):
        return True
    if layout.group_size not in _GROUPS or layout.bits not in _BITS:
        return False
    if format == "gptq":
        return layout.symmetric
    if weight.view.kind == "embedding":
        return layout.symmetric
    return True


_READS: dict[str, Callable[[str, Written], bool]] = {"vllm": _vllm_reads}
"""Server → whether it reads a weight of a format."""
