"""Ranks: the processes that `torchrun` starts for one job, and how they send each other what they work on.

Objects go as pickles without their tensors, and the tensors as they are in memory, over gloo. Pickles are taken from the job's
own ranks alone, never from a file.
"""

from __future__ import annotations

import io
import json
import os
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from compress.errors import UserError

_DIST: Any = dist  # its parts for a group of one's own are not exported by name
_PATIENCE = timedelta(days=30)
"""A rank waits for its next work for as long as a block takes; one that has ended is noticed by its closed connection."""
_PIECE = 1 << 30
"""Bytes that are sent at once."""


class RanksApart(UserError):
    """Ranks that cannot work together, or of which one has ended: every one of them notices."""


@dataclass(frozen=True)
class Ranks:
    """This process among those of its job.

    Attributes:
        rank: 0 leads: it reads, decides and writes.
        size: how many there are.
        here: this process's number on its machine, for the choice of a GPU.
        group: gloo's connections. They are not torch's default group: libraries that find one expect every rank to take part in
            what they do.
    """

    rank: int
    size: int
    here: int = 0
    group: Any = None

    def send(self, to: int, thing: Any) -> None:
        """Send an object with whatever tensors it holds.

        Raises:
            RanksApart: that rank has ended.
        """
        tensors: list[Tensor] = []
        file = io.BytesIO()
        _Pickler(file, tensors).dump(thing)
        kinds = [(tensor.dtype, tuple(tensor.shape)) for tensor in tensors]
        head = pickle.dumps((file.getvalue(), kinds))
        with self._lost(to):
            self._put(torch.tensor([len(head)]).view(torch.uint8), to)
            self._put(torch.frombuffer(bytearray(head), dtype=torch.uint8), to)
            for tensor in tensors:
                self._put(_as_bytes(tensor), to)

    def receive(self, source: int) -> Any:
        """What :meth:`send` of another rank has sent; its tensors are on the CPU.

        Raises:
            RanksApart: that rank has ended.
        """
        with self._lost(source):
            head = self._take(int(self._take(8, source).view(torch.int64)), source)
            body, kinds = pickle.loads(head.numpy().tobytes())  # noqa: S301  (of this job's own rank)
            tensors = []
            for dtype, shape in kinds:
                count = torch.Size(shape).numel() * dtype.itemsize
                tensors.append(self._take(count, source).view(dtype).view(shape))
        return _Unpickler(io.BytesIO(body), tensors).load()

    def add(self, tensor: Tensor) -> None:
        """Put the sum over all ranks in the place of a tensor, the same to the bit on every rank; all of them call it.

        Raises:
            RanksApart: a rank has ended.
        """
        with self._lost(None):
            held = tensor.detach().cpu().contiguous()
            self.group.allreduce([held]).wait()
        if held.data_ptr() != tensor.data_ptr():
            with torch.no_grad():
                tensor.copy_(held)

    def _put(self, data: Tensor, to: int) -> None:
        for piece in data.split(_PIECE):
            if len(piece):
                self.group.send([piece], to, 0).wait()

    def _take(self, count: int, source: int) -> Tensor:
        data = torch.empty(count, dtype=torch.uint8)
        for piece in data.split(_PIECE):
            if len(piece):
                self.group.recv([piece], source, 0).wait()
        return data

    @contextmanager
    def _lost(self, other: int | None) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            who = f"one of {self.size} ranks" if other is None else f"rank {other} of {self.size}"
            raise RanksApart(f"{who} ended before its work was done: its own message says why") from error


class _Pickler(pickle.Pickler):
    """Leaves tensors out, and gathers them; a parameter of a module stays one, and its tensor is left out."""

    def __init__(self, file: io.BytesIO, tensors: list[Tensor]) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self._tensors, self._places = tensors, dict[int, int]()

    def persistent_id(self, obj: Any) -> int | None:
        if not isinstance(obj, Tensor) or isinstance(obj, nn.Parameter):
            return None
        if id(obj) not in self._places:
            self._places[id(obj)] = len(self._tensors)
            self._tensors.append(obj)
        return self._places[id(obj)]


class _Unpickler(pickle.Unpickler):
    """Puts tensors back."""

    def __init__(self, file: io.BytesIO, tensors: list[Tensor]) -> None:
        super().__init__(file)
        self._tensors = tensors

    def persistent_load(self, pid: Any) -> Tensor:
        return self._tensors[pid]


def _as_bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


_CURRENT: ContextVar[Ranks | None] = ContextVar("ranks", default=None)


def current_ranks() -> Ranks | None:
    """The ranks of this job, where it has several."""
    return _CURRENT.get()


@contextmanager
def joined(same: Mapping[str, str]) -> Iterator[Ranks | None]:
    """Join the other processes of the job; None where `torchrun` has started no others.

    Args:
        same: what has to be alike on all ranks, by name.

    Raises:
        RanksApart: ranks that differ in it, or that cannot be reached.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1 or "RANK" not in os.environ:
        yield None
        return
    try:
        store, rank, size = next(_DIST.rendezvous("env://"))
        _check_alike(_DIST.PrefixStore("alike", store), rank, size, dict(same))
        group = _DIST.ProcessGroupGloo(_DIST.PrefixStore("ranks", store), rank, size, _PATIENCE)
    except (RuntimeError, ValueError) as error:
        said = (str(error).strip().splitlines() or ["no reason given"])[0][:200]
        raise RanksApart(
            f"the other ranks cannot be reached ({said}): start all of them with torchrun"
        ) from error
    token = _CURRENT.set(Ranks(rank, size, int(os.environ.get("LOCAL_RANK", "0")), group))
    try:
        yield _CURRENT.get()
    finally:
        _CURRENT.reset(token)


def _check_alike(store: Any, rank: int, size: int, same: dict[str, str]) -> None:
    """Refuse ranks that differ from the first in anything that they have to share."""
    store.set(str(rank), json.dumps(same))
    first, *others = (json.loads(store.get(str(each))) for each in range(size))
    for place, other in enumerate(others, start=1):
        for name in {**first, **other}:
            if first.get(name) != other.get(name):
                raise RanksApart(
                    f"rank {place} has {name} {other.get(name)}, rank 0 has {first.get(name)}: start all ranks alike"
                )
