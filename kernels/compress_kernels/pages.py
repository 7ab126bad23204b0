"""Memory in huge pages, for weights that every token reads: looking up small pages takes a third as long again as the reading.

Needs torch alone.
"""

from __future__ import annotations

import mmap
import sys

import torch
from torch import Tensor

HUGE = 2 << 20
"""Bytes of a huge page on x86-64, and on ARM with small pages of 4 KiB."""

_REGION = 32 * HUGE
_ALIGNMENT = 64


class HugePages:
    """Copies of tensors, one after the other in regions for which the system is asked for huge pages.

    A region takes memory as far as it is filled, and is given back with the last of its tensors. Where there are no huge pages
    to ask for (``madvise`` of Linux) copies are plain ones.
    """

    def __init__(self) -> None:
        self._region: mmap.mmap | None = None
        self._next = 0

    def copy(self, tensor: Tensor) -> Tensor:
        """A contiguous copy of ``tensor``, of any dtype and device, in a storage of its own."""
        if sys.platform != "linux" or tensor.device.type != "cpu" or not tensor.numel():
            return tensor.clone(memory_format=torch.contiguous_format)
        region, start = self._room(tensor.nbytes)
        taken = torch.frombuffer(region, dtype=torch.uint8, count=tensor.nbytes, offset=start)
        return taken.view(tensor.dtype).view(tensor.shape).copy_(tensor)

    def _room(self, nbytes: int) -> tuple[mmap.mmap, int]:
        """A region and where in it ``nbytes`` are free."""
        if self._region is None or self._next + nbytes > len(self._region):
            size = max(_REGION, -(-nbytes // HUGE) * HUGE) + HUGE
            self._region = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            self._region.madvise(mmap.MADV_HUGEPAGE)
            self._next = -torch.frombuffer(self._region, dtype=torch.uint8).data_ptr() % HUGE
        start = self._next
        self._next = start + -(-nbytes // _ALIGNMENT) * _ALIGNMENT
        return self._region, start
