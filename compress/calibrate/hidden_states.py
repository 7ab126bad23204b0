"""Storage of hidden states: in memory, or in a file that is deleted with the process; and the refusal of those that are not
finite."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from compress.errors import UserError
from compress.models.skeleton import Skeleton


class Activations:
    """Hidden states `[samples, length, hidden]` of one dtype, rewritten in place batch by batch.

    Args:
        shape: of the whole.
        dtype: of what is stored.
        device: where it is stored when it is stored in memory.
        spill_dir: the folder of the file that holds it instead; None keeps it in memory.

    Raises:
        UserError: the disk is too full for the file, or the folder cannot be written.
    """

    def __init__(
        self, shape: Sequence[int], dtype: torch.dtype, device: torch.device, spill_dir: Path | None = None
    ) -> None:
        self._file: Path | None = None
        if spill_dir is None:
            self.data = torch.empty(tuple(shape), dtype=dtype, device=device)
        else:
            self.data = self._mapped(tuple(shape), dtype, spill_dir)

    @property
    def spilled(self) -> bool:
        """Whether the states are on disk."""
        return self._file is not None

    def read(self, rows: slice, device: torch.device, dtype: torch.dtype) -> Tensor:
        """A copy of some samples `[b, length, hidden]`."""
        return self.data[rows].to(device=device, dtype=dtype, copy=True)

    def write(self, rows: slice, hidden: Tensor) -> None:
        """Overwrite some samples."""
        self.data[rows].copy_(hidden)

    def close(self) -> None:
        """Free the memory or the file; harmless when done twice."""
        self.data = torch.empty(0)
        if self._file is not None:
            with contextlib.suppress(FileNotFoundError):
                self._file.unlink()

    def _mapped(self, shape: tuple[int, ...], dtype: torch.dtype, folder: Path) -> Tensor:
        size = prod(shape)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=".activations-", dir=folder)
            self._file = Path(name)
            try:
                # Reserve the space now: a write into a mapped hole on a full disk would kill the process.
                _reserve(handle, size * dtype.itemsize)
            finally:
                os.close(handle)
            data = torch.from_file(name, shared=True, size=size, dtype=dtype).view(shape)
        except OSError as error:
            self.close()
            raise UserError(
                f"The {size * dtype.itemsize / 2**30:.1f} GiB of activations do not fit into {folder} "
                f"({error.strerror}); free space there or use fewer samples."
            ) from error
        if os.name == "posix":
            # The mapping keeps the file alive; nameless, it cannot outlive the process, however that ends.
            self._file.unlink()
        return data


def _reserve(handle: int, nbytes: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(handle, 0, nbytes)
    else:
        os.truncate(handle, nbytes)


def is_finite(hidden: Tensor) -> bool:
    """Whether no hidden state is NaN or infinite."""
    # One NaN or infinity anywhere makes the sum no number, at the price of one reading.
    return bool(torch.isfinite(hidden.sum(dtype=torch.float32)))


def refuse_not_finite(skeleton: Skeleton, dtype: torch.dtype, block: int | None) -> NoReturn:
    """Refuse hidden states that are not finite; where a tensor of the source is not, by its name.

    Args:
        skeleton: the model.
        dtype: what they were computed in.
        block: the block that they are the outputs of; None for the embedding.

    Raises:
        UserError: always.
    """
    if block is None:
        skeleton.load_rest(device="cpu", dtype=skeleton.dtype, check=True)
    else:
        skeleton.load_block(block, device="cpu", dtype=skeleton.dtype, check=True)
    where = "the embedding" if block is None else skeleton.blocks[block]
    raise UserError(
        f"The hidden states after {where} are NaN or infinite in {str(dtype).removeprefix('torch.')}; "
        "run in bf16 or fp32, or check the weights before it."
    )
