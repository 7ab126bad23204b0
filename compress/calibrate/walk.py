"""The walk over a model's blocks: one block in memory at a time, and the calibration inputs moved on from block to block."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.calibrate.capture import CannotStream
from compress.calibrate.simulate import Simulation
from compress.calibrate.stream import BlockStream
from compress.calibrate.stream_states import IN_MEMORY
from compress.calibrate.whole_model import WholeModelStream, check_fits
from compress.errors import UserError
from compress.models.skeleton import Skeleton
from compress.system.ranks import Ranks

OnBlock = Callable[[int], object]
"""Called with the index of a block."""


@dataclass(frozen=True)
class BlockWalk:
    """The blocks of a walk as an iterator of their indices; each block is in memory until the next one is asked for.

    Attributes:
        stream: the inputs of the current block.
    """

    stream: BlockStream
    _indices: Iterator[int]

    def __iter__(self) -> Iterator[int]:
        return self._indices


@contextmanager
def walk_blocks(
    skeleton: Skeleton,
    tokens: Tensor,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    blocks: Sequence[int] | None = None,
    through_last: bool = False,
    batch_size: int | None = None,
    memory_limit: int = IN_MEMORY,
    device_limit: int | None = None,
    spill_dir: str | Path | None = None,
    dense: bool = False,
    images: Sequence[Mapping[str, Tensor]] | None = None,
    load: OnBlock | None = None,
    release: OnBlock | None = None,
    step: Callable[[str], AbstractContextManager[object]] = nullcontext,
    simulation: Simulation | None = None,
    ranks: Ranks | None = None,
) -> Iterator[BlockWalk]:
    """Go through the blocks from the first to the last with the activations of ``tokens``.

    For every block: load it, hand it to the caller, replace the activations by its outputs with the weights that it has
    then, release it. A model whose blocks cannot be run one by one is in memory as a whole. When the context ends, by an
    exception or otherwise, what is in memory is released and the activations are freed.

    Args:
        skeleton: the model; no block may be loaded.
        tokens: int64 ``[samples, length]``.
        device, dtype: where and in what blocks are computed.
        blocks: which blocks, rising; the activations skip all others. None for all.
        through_last: also compute the outputs of the last block.
        batch_size, memory_limit, device_limit, spill_dir, dense, images: as for
            :class:`~compress.calibrate.stream.BlockStream`.
        load, release: as for :func:`loaded_blocks`.
        step: opened around ``"embed"`` and ``"advance"``, to time them.
        simulation, ranks: as for :class:`~compress.calibrate.stream.BlockStream`.

    Raises:
        UserError: the model can be run neither block by block nor, for lack of memory, as a whole; activations are not
            finite; or the disk is full.
    """
    indices = range(len(skeleton.blocks)) if blocks is None else blocks
    device = torch.device(device)
    options: dict[str, Any] = {
        "device": device,
        "dtype": dtype,
        "batch_size": batch_size,
        "memory_limit": memory_limit,
        "device_limit": device_limit,
        "spill_dir": spill_dir,
        "dense": dense,
        "images": images,
        "simulation": simulation,
        "ranks": ranks,
    }
    stream = BlockStream(skeleton, tokens, **options)

    def advance(index: int) -> None:
        if through_last or index != indices[-1]:
            with step("advance"):
                stream.advance(index)

    with stream:
        try:
            with step("embed"):
                stream.prepare()
        except CannotStream as error:
            if images is not None:
                raise UserError(
                    f"Images cannot be followed through this model ({error}): calibrate it by text."
                ) from error
            cannot = error
        else:
            with loaded_blocks(
                skeleton, indices, device=device, dtype=dtype, load=load, release=release, leave=advance
            ) as loaded:
                yield BlockWalk(stream, loaded)
            return
    if blocks is not None:
        raise CannotStream(f"{cannot}: blocks cannot be left out of it")
    check_fits(skeleton, device, dtype, str(cannot))
    with _whole_model(skeleton, tokens, options, load, release, step) as walk:
        yield walk


@contextmanager
def _whole_model(
    skeleton: Skeleton,
    tokens: Tensor,
    options: dict[str, Any],
    load: OnBlock | None,
    release: OnBlock | None,
    step: Callable[[str], AbstractContextManager[object]],
) -> Iterator[BlockWalk]:
    """The walk with all blocks loaded from its beginning to its end."""
    indices = range(len(skeleton.blocks))
    free = release or skeleton.release_block
    try:
        for index in indices:
            if load is None:
                skeleton.load_block(index, device=options["device"], dtype=options["dtype"])
            else:
                load(index)
        with WholeModelStream(skeleton, tokens, **options) as stream:
            with step("embed"):
                stream.prepare()
            yield BlockWalk(stream, iter(indices))
    finally:
        for index in indices:
            free(index)


@contextmanager
def loaded_blocks(
    skeleton: Skeleton,
    blocks: Iterable[int],
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    load: OnBlock | None = None,
    release: OnBlock | None = None,
    leave: OnBlock | None = None,
) -> Iterator[Iterator[int]]:
    """Go through ``blocks`` in their order, each in memory until the next one is asked for or the context ends.

    Args:
        skeleton: the model.
        blocks: indices of blocks, in any order.
        device, dtype: where and in what they are loaded.
        load, release: what brings a block into memory and frees it; None for those of the skeleton.
        leave: called before a block is released, unless the walk ends there before its time.
    """

    def from_disk(index: int) -> None:
        skeleton.load_block(index, device=device, dtype=dtype)

    indices = _one_by_one(blocks, load or from_disk, release or skeleton.release_block, leave)
    with closing(indices):
        yield indices


def _one_by_one(
    blocks: Iterable[int], load: OnBlock, release: OnBlock, leave: OnBlock | None
) -> Generator[int]:
    for index in blocks:
        try:
            load(index)
            yield index
            if leave is not None:
                leave(index)
        finally:
            release(index)
