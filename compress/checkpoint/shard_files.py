"""The bytes of an unfinished output: tensors written to, read from and hashed at the places that the plan gave them."""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from .output import FULL
from .shards import Shard, Slot

_CHUNK = 8 << 20


class Places:
    """The files of ``shards`` in ``folder``, opened when they are needed."""

    def __init__(self, folder: Path, shards: Sequence[Shard]) -> None:
        self._folder = folder
        self._shards = tuple(shards)
        self._slots = {slot.name: (shard, slot) for shard in shards for slot in shard.slots}
        self._files: dict[str, int] = {}
        self._maps: dict[str, tuple[mmap.mmap, Tensor]] = {}

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Every tensor's place."""
        return tuple(slot for _, slot in self._slots.values())

    def slot(self, name: str) -> Slot:
        """A tensor's place; raises ``ValueError`` for a name that the plan does not have."""
        return self._find(name)[1]

    def create(self) -> None:
        """Make the files at full length, then write their headers: a full disk is found before anything else."""
        for shard in self._shards:
            self._files[shard.filename] = os.open(
                self._folder / shard.filename, os.O_RDWR | os.O_CREAT, 0o666
            )
            _reserve(self._files[shard.filename], shard.nbytes)
        for shard in self._shards:
            _pwrite(self._files[shard.filename], memoryview(shard.header), 0)

    def stand(self) -> bool:
        """Whether the files are there, at full length and with their headers."""
        for shard in self._shards:
            path = self._folder / shard.filename
            if not path.is_file() or path.stat().st_size != shard.nbytes:
                return False
            with path.open("rb") as file:
                if file.read(len(shard.header)) != shard.header:
                    return False
        return True

    def write(self, name: str, data: memoryview, progress: Callable[[int], None] | None = None) -> str:
        """Write all bytes of a tensor; returns their SHA-256. ``progress`` is told the bytes of each piece."""
        shard, slot = self._find(name)
        if data.nbytes != slot.nbytes:
            raise ValueError(f"{name}: the plan has {slot.nbytes} bytes, not {data.nbytes}")
        digest = hashlib.sha256()
        for start in range(0, slot.nbytes, _CHUNK):
            piece = data[start : start + _CHUNK]
            digest.update(piece)
            _pwrite(self._open(shard), piece, slot.offset + start)
            if progress is not None:
                progress(piece.nbytes)
        return digest.hexdigest()

    def map(self, name: str) -> Tensor:
        """A tensor that is the file: what is written to it is on disk once :meth:`settle` returns."""
        if name not in self._maps:
            shard, slot = self._find(name)
            start = slot.offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
            area = mmap.mmap(self._open(shard), slot.offset + slot.nbytes - start, offset=start)
            count = slot.nbytes // slot.spec.dtype.itemsize
            flat = torch.frombuffer(area, dtype=slot.spec.dtype, count=count, offset=slot.offset - start)
            self._maps[name] = (area, flat.view(slot.spec.shape))
        return self._maps[name][1]

    def settling(self) -> Callable[[], dict[str, str]]:
        """What puts on disk all that was written until now, while more is being written; it returns the SHA-256 of the tensors
        that were mapped."""
        maps, self._maps = self._maps, {}
        descriptors = tuple(self._files.values())

        def settle() -> dict[str, str]:
            for area, _ in maps.values():
                area.flush()
            hashes = {name: self.sha256(name) for name in maps}
            for descriptor in descriptors:
                os.fsync(descriptor)
            return hashes

        return settle

    def settle(self) -> dict[str, str]:
        """The same at once."""
        return self.settling()()

    def read(self, name: str) -> Tensor:
        """A copy of a tensor."""
        shard, slot = self._find(name)
        if not slot.nbytes:
            return torch.empty(slot.spec.shape, dtype=slot.spec.dtype)
        data = bytearray(slot.nbytes)
        view = memoryview(data)
        position = 0
        while position < slot.nbytes:
            position += os.preadv(self._open(shard), [view[position:]], slot.offset + position)
        return torch.frombuffer(data, dtype=slot.spec.dtype).view(slot.spec.shape)

    def sha256(self, name: str) -> str:
        """SHA-256 of a tensor's bytes as they are in the file."""
        shard, slot = self._find(name)
        digest = hashlib.sha256()
        for start in range(0, slot.nbytes, _CHUNK):
            digest.update(os.pread(self._open(shard), min(_CHUNK, slot.nbytes - start), slot.offset + start))
        return digest.hexdigest()

    def close(self) -> None:
        """Close the files."""
        self._maps.clear()
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files = {}

    def _find(self, name: str) -> tuple[Shard, Slot]:
        if name not in self._slots:
            raise ValueError(f"{name} is not in the plan")
        return self._slots[name]

    def _open(self, shard: Shard) -> int:
        if shard.filename not in self._files:
            self._files[shard.filename] = os.open(self._folder / shard.filename, os.O_RDWR)
        return self._files[shard.filename]


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a tensor in memory; a copy only if it is not contiguous or on another device."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hex, read in small pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _reserve(descriptor: int, size: int) -> None:
    """Give a file its final length, with real blocks behind it where the file system can."""
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno in FULL:
            raise
        os.ftruncate(descriptor, size)


def _pwrite(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written
