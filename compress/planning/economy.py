"""A run within a bound of memory: what is given up for it, or the smallest bound that would do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from compress.errors import UserError
from compress.models.skeleton import Skeleton
from compress.planning.memory import Economy, peak_memory
from compress.planning.methods import rotation_of
from compress.recipe.recipe import Recipe
from compress.system.units import in_bytes

ALLOWANCE = 64 << 20
"""Bytes beyond the tensors that are counted: names and journals of the run, pieces that the C library keeps."""


@dataclass(frozen=True)
class MemoryBound:
    """A promise of memory.

    Attributes:
        total: bytes that the process may hold, Python and its libraries among them; mapped files are not counted.
        base: bytes that Python and its libraries take before the run.
    """

    total: int
    base: int

    @property
    def left(self) -> int:
        """Bytes for the run."""
        return self.total - self.base


@dataclass(frozen=True)
class Promised:
    """How a run keeps to a bound, and the bytes that it is expected to take with Python and its libraries."""

    bound: MemoryBound
    economy: Economy
    expected: int

    @property
    def note(self) -> str:
        """A sentence for people."""
        ways = []
        if self.economy.in_memory == 0:
            ways.append("activations in a file")
        if self.economy.windows is not None:
            ways.append("one calibration window at a time")
        if self.economy.passes > 1:
            ways.append(f"statistics of a block in {self.economy.passes} passes")
        how = f": {', '.join(ways)}" if ways else ", without giving anything up for it"
        return (
            f"about {in_bytes(self.expected)} of the {in_bytes(self.bound.total)} of --memory, of which Python and its "
            f"libraries take {in_bytes(self.bound.base)}{how}"
        )


def promise(
    bound: MemoryBound,
    skeleton: Skeleton,
    recipe: Recipe,
    needs: Mapping[str, frozenset[str]],
    dtype: torch.dtype,
    *,
    passes: bool,
    besides: int = 0,
) -> Promised:
    """The least economy with which a run keeps to a bound.

    Args:
        bound: what may be held.
        skeleton: the model.
        recipe: what is done to it.
        needs: weight → the statistics gathered for it.
        dtype: in which blocks are computed.
        passes: whether a block's statistics may be gathered part by part.
        besides: bytes that another stage of the run takes (healing), which nothing makes smaller.

    Raises:
        UserError: no economy does; the sentence says how much would.
    """
    floor = max(besides, _ends(skeleton, dtype))

    def expected(economy: Economy) -> int:
        return bound.base + ALLOWANCE + max(floor, peak_memory(skeleton, recipe, needs, dtype, economy))

    ladder = _ladder(skeleton, needs, passes=passes) if _economises(recipe) else [Economy()]
    for economy in ladder:
        if (size := expected(economy)) <= bound.total:
            return Promised(bound, economy, size)
    least = min(map(expected, ladder))
    raise UserError(
        f"--memory {in_bytes(bound.total)} is too little for this run: it takes {in_bytes(_rounded_up(least + least // 50))}, "
        f"of which Python and its libraries take {in_bytes(bound.base)}; give at least that much"
        + (", or fewer or shorter samples" if any(needs.values()) else "")
    )


def _economises(recipe: Recipe) -> bool:
    """Whether only the walk over the blocks holds activations: what prunes shapes or learns rotations walks for itself."""
    return recipe.depth_pruning is None and recipe.width_pruning is None and rotation_of(recipe) is None


def _ladder(skeleton: Skeleton, needs: Mapping[str, frozenset[str]], *, passes: bool) -> list[Economy]:
    """Economies in the order of what they cost: a file, small batches, more and more passes."""
    if not any(needs.values()):
        return [Economy()]
    small = Economy(in_memory=0, windows=1)
    counts = [0] * (len(skeleton.blocks) + 1)
    for view in skeleton.views:
        if needs.get(view.name) and view.block is not None:
            counts[view.block] += 1
    most = max(counts) if passes else 1
    steps = {2**power for power in range(1, most.bit_length())} | {most}
    return [
        Economy(),
        Economy(in_memory=0),
        small,
        *(replace(small, passes=count) for count in sorted(steps) if count > 1),
    ]


def _ends(skeleton: Skeleton, dtype: torch.dtype) -> int:
    """Bytes at both ends of a run: what is outside of the blocks is checked at the start, and verified at the end beside three
    blocks, the source's, the output's and the weight of one that is decoded."""
    inside = [
        sum(parameter.numel() for parameter in skeleton.model.get_submodule(name).parameters())
        for name in skeleton.blocks
    ]
    outside = sum(parameter.numel() for parameter in skeleton.model.parameters()) - sum(inside)
    return (2 * outside + 3 * max(inside, default=0)) * dtype.itemsize


def _rounded_up(size: int) -> int:
    """The next size that reads as it is: three digits of it, and no less."""
    step = 10 ** max(0, len(str(size)) - 3)
    return -(-size // step) * step
