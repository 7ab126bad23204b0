"""What a whole run holds at its fullest, on the host and on an accelerator."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from compress.models.skeleton import Skeleton
from compress.planning.memory import Economy, kept_activations, peak_memory
from compress.planning.model_sizes import outside_of, parameters_of
from compress.recipe.recipe import Recipe

_WITHOUT_DATA, _WITH_DATA = 20 << 20, 24 << 20
"""Bytes beyond tensors that are counted: code imported on the way (of compressed-tensors, Triton, setuptools: 17 MB), tokens,
journals, small pieces that the C library keeps."""
_TOKENIZER = 19
"""Bytes for a byte of a tokenizer's file while it is read: as Python's objects, and as its own."""


@dataclass(frozen=True)
class Held:
    """Bytes beyond the interpreter and its libraries: of the host, and of the accelerator, 0 without one."""

    host: int
    device: int = 0


@dataclass(frozen=True)
class Doing:
    """What is done to a model, as far as memory goes.

    Attributes:
        skeleton: the model.
        recipe: what is done to it.
        needs: weight → the statistics gathered for it.
        dtype: in which blocks are computed.
        solvers: weight → the classes of its solvers.
        trained: whether a solver learns all weights of a block together.
        besides: bytes that another stage of the run takes (healing), which nothing makes smaller.
        device: where blocks run: ``"cpu"`` or ``"cuda"``.
        processes: that share the work.
    """

    skeleton: Skeleton
    recipe: Recipe
    needs: Mapping[str, frozenset[str]]
    dtype: torch.dtype
    solvers: Mapping[str, Collection[str]]
    trained: bool = False
    besides: int = 0
    device: str = "cpu"
    processes: int = 1

    def held(self, economy: Economy) -> Held:
        """What a run holds that saves memory so."""
        base = _WITH_DATA if self._reads_data else _WITHOUT_DATA
        ends = ends_memory(self.skeleton, self.dtype)
        if self._reads_data:
            ends = max(ends, _TOKENIZER * _tokenizer_bytes(self.skeleton.source.path))
        blocks = peak_memory(
            self.skeleton,
            self.recipe,
            self.needs,
            self.dtype,
            economy,
            device=self.device,
            trained=self.trained,
            solvers=self.solvers,
            processes=self.processes,
        )
        if self.device == "cpu":
            return Held(base + max(ends, self.besides, blocks))
        kept = 0
        if self._reads_data:
            kept = kept_activations(self.skeleton, self.recipe, self.needs, self.dtype, trained=self.trained)
        elsewhere = economy.on_device is not None and kept > economy.on_device
        on_host = kept if elsewhere and kept <= economy.in_memory else 0
        return Held(base + max(ends, on_host), max(self.besides, blocks))

    @property
    def _reads_data(self) -> bool:
        return self.trained or any(self.needs.values())


def _tokenizer_bytes(folder: Path) -> int:
    """Bytes of the tokenizer's file, which is given back once the windows are drawn."""
    file = folder / "tokenizer.json"
    return file.stat().st_size if file.is_file() else 0


def ends_memory(skeleton: Skeleton, dtype: torch.dtype) -> int:
    """Bytes at both ends of a run, on the host: what is outside of the blocks is read, checked and put in place, and at the
    end three blocks are verified, the source's, the output's and the weight of one that is decoded."""
    outside = outside_of(skeleton)
    largest = max((parameters_of(skeleton, name) for name in skeleton.blocks), default=0)
    return max(2 * outside, outside + 3 * largest) * dtype.itemsize
