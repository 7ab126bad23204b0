"""Hidden states of a stream between two blocks, of the model as it is and of the dense one: on a device or in a file."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from compress.calibrate.hidden_states import Activations

IN_MEMORY = 1 << 30
"""Bytes of activations that are kept in memory; more of them are in a file."""


class StreamStates:
    """``[samples, length, hidden]`` of the inputs of the next block, and the dense model's.

    Args:
        device: where blocks run.
        dtype: of what is kept.
        memory_limit: bytes above which they are kept in a file.
        device_limit: bytes that an accelerator may keep; None for a quarter of its free memory.
        spill_dir: the folder for that file; None for the system's temporary folder.
        with_dense: whether the dense model's are kept, too.
    """

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype,
        *,
        memory_limit: int,
        device_limit: int | None,
        spill_dir: str | Path | None,
        with_dense: bool,
    ) -> None:
        self.with_dense = with_dense
        self._device = device
        self._dtype = dtype
        self._memory_limit = memory_limit
        self._device_limit = device_limit
        self._spill_dir = Path(spill_dir) if spill_dir is not None else Path(tempfile.gettempdir())
        self._now: Activations | None = None
        self._dense: Activations | None = None

    @property
    def filled(self) -> bool:
        """Whether there are any."""
        return self._now is not None

    @property
    def spilled(self) -> bool:
        """Whether they are in a file."""
        return self._now is not None and self._now.spilled

    @property
    def now(self) -> Activations:
        """Those of the model as it is."""
        if self._now is None:
            raise ValueError("call prepare() first")
        return self._now

    @property
    def dense(self) -> Activations:
        """Those of the dense model."""
        if not self.with_dense:
            raise ValueError("this stream keeps no dense activations; make it with dense=True")
        if self._dense is None:
            raise ValueError("call prepare() first")
        return self._dense

    def begin(self, rows: slice, hidden: Tensor, samples: int) -> None:
        """Put the inputs of the first block, of the samples ``rows``, in both places."""
        if self._now is None:
            shape = (samples, *hidden.shape[1:])
            self._now = self._allocate(shape)
            if self.with_dense:
                self._dense = self._allocate(shape)
        for states in (self._now, self._dense):
            if states is not None:
                states.write(rows, hidden)

    def close(self) -> None:
        """Free them, and the file they may be in; harmless when done twice."""
        for states in (self._now, self._dense):
            if states is not None:
                states.close()
        self._now = self._dense = None

    def _allocate(self, shape: tuple[int, ...]) -> Activations:
        nbytes = torch.Size(shape).numel() * self._dtype.itemsize * (2 if self.with_dense else 1)
        room = self._device_limit is None or nbytes <= self._device_limit
        if self._device.type == "cuda" and room and 4 * nbytes <= torch.cuda.mem_get_info(self._device)[0]:
            return Activations(shape, self._dtype, self._device)
        return Activations(
            shape, self._dtype, torch.device("cpu"), self._spill_dir if nbytes > self._memory_limit else None
        )
