"""Where tensors are that a training reads once a step or less: in memory, or in a mapped file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from compress.checkpoint.output import FULL, disk_errors

PAGE = 1 << 16
"""Tensors begin at multiples of so many bytes."""


class Shelf:
    """Named tensors, in a file that the system takes out of memory and reads again as it likes.

    Args:
        path: of the file, which is made anew: it is no state that a killed training goes on from. With ``None`` all stays in
            memory, where it is.

    Raises:
        UserError: it cannot be written.
    """

    def __init__(self, path: Path | None) -> None:
        self._path, self._end = path, 0
        self._places: dict[str, Tensor] = {}
        if path is not None:
            with disk_errors(path, 0):
                path.write_bytes(b"")

    def place(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor as it is copied to the file; one of the same name, shape and dtype is written over.

        Raises:
            UserError: the disk is full.
        """
        if self._path is None or not tensor.numel():
            return tensor
        place = self._places.get(name)
        if place is None or (place.shape, place.dtype) != (tensor.shape, tensor.dtype):
            place = self._places[name] = self._room(self._path, tensor)
        return place.copy_(tensor.detach())

    def place_all(self, group: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Named tensors, placed."""
        return {name: self.place(f"{group}:{name}", tensor) for name, tensor in tensors.items()}

    def copies(self, group: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same of tensors that will change: also what stays in memory is copied."""
        if self._path is None:
            return {name: tensor.clone() for name, tensor in tensors.items()}
        return self.place_all(group, tensors)

    def _room(self, path: Path, like: Tensor) -> Tensor:
        size = like.numel() * like.element_size()
        with disk_errors(path, self._end + size), path.open("r+b") as file:
            _reserve(file.fileno(), self._end, size)
        mapped = np.memmap(path, np.uint8, "r+", offset=self._end, shape=(size,))
        self._end += -(-size // PAGE) * PAGE
        return torch.from_numpy(mapped).view(like.dtype).view(like.shape)


IN_MEMORY = Shelf(None)


def _reserve(descriptor: int, offset: int, size: int) -> None:
    """Real blocks where the file system can: a write to a mapped hole of a full disk would end the process."""
    try:
        os.posix_fallocate(descriptor, offset, size)
    except OSError as error:
        if error.errno in FULL:
            raise
        os.ftruncate(descriptor, offset + size)
