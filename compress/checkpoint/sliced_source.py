"""A checkpoint of which some tensors are seen in part: rows or columns are left out, and a few tensors come from elsewhere.

Nothing is copied before it is read, so that a model of another shape can be compressed or written as if it were on disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.checkpoint.headers import TensorInfo, read_header
from compress.checkpoint.source import Source


@dataclass(frozen=True)
class Cut:
    """The entries ``index`` (int64, rising) of dimension ``dim`` of a disk tensor: all that is kept of it."""

    dim: int
    index: Tensor


@dataclass(frozen=True, eq=False)
class CutSource(Source):
    """A source with ``cuts`` of its tensors.

    ``base`` holds them whole. A tensor in ``unread`` has other values than the files: they are not known, and zeros stand for
    them. ``refitted`` are the cuts of the tensors that were fitted anew, which :meth:`reference` makes.
    """

    cuts: Mapping[str, tuple[Cut, ...]] = field(default_factory=dict)
    refitted: Mapping[str, tuple[Cut, ...]] = field(default_factory=dict)
    base: Source | None = None

    def read(self, name: str) -> Tensor:
        """As :meth:`Source.read`; what was cut is a copy."""
        if name in self.unread:
            return torch.zeros(self.headers[name].shape, dtype=self.headers[name].dtype)
        if name in self.refitted:
            return super().read(name)
        assert self.base is not None
        return self._cut(self.base.read(name), self.cuts.get(name, ()))

    def reference(self, name: str) -> Tensor:
        """As :meth:`Source.reference`."""
        assert self.base is not None
        cuts = self.refitted.get(name) or self.cuts.get(name, ())
        return self._cut(self.base.reference(name), cuts)

    def on_disk(self, name: str) -> tuple[TensorInfo, ...]:
        """As :meth:`Source.on_disk`."""
        if name in self.unread:
            return ()
        assert self.base is not None
        return super().on_disk(name) if name in self.refitted else self.base.on_disk(name)

    def _cut(self, tensor: Tensor, cuts: tuple[Cut, ...]) -> Tensor:
        for cut in cuts:
            tensor = tensor.index_select(cut.dim, cut.index)
        return tensor

    def raw_bytes(self, name: str) -> memoryview:
        """As :meth:`Source.raw_bytes`."""
        if name not in self.cuts and name not in self.refitted and name not in self.unread:
            assert self.base is not None
            return self.base.raw_bytes(name)
        if name in self.refitted and name not in self.unread:
            return super().raw_bytes(name)
        flat: Any = self.read(name).contiguous().view(-1).view(torch.uint8).numpy()
        return memoryview(flat)


def cut_source(
    source: Source,
    cuts: Mapping[str, tuple[Cut, ...]],
    *,
    config: Mapping[str, Any],
    record: Mapping[str, Any],
    refitted: Mapping[str, Path | None],
) -> CutSource:
    """``source`` with its tensors cut.

    Args:
        source: as it is on disk.
        cuts: disk tensor → what is kept of it.
        config: changes to its ``config.json``.
        record: what to know to make the same cuts again.
        refitted: of the cut tensors those with other values, and the safetensors file that holds each under its own name
            and in its new shape; ``None`` where that is no longer known.
    """
    headers = dict(source.headers)
    for name, own in cuts.items():
        info = headers[name]
        shape = list(info.shape)
        for cut in own:
            shape[cut.dim] = len(cut.index)
        nbytes = torch.Size(shape).numel() * info.dtype.itemsize
        headers[name] = replace(info, shape=tuple(shape), nbytes=nbytes)
    for file in {path for path in refitted.values() if path is not None}:
        headers |= read_header(file)
    base = {f.name: getattr(source, f.name) for f in fields(Source)}
    base |= {
        "headers": headers,
        "config": {**source.config, **config},
        "changes": {**source.changes, **config},
        "width_pruned": record,
        "unread": source.unread | frozenset(name for name, path in refitted.items() if path is None),
    }
    kept = {name: own for name, own in cuts.items() if name not in refitted}
    anew = {name: own for name, own in cuts.items() if name in refitted}
    return CutSource(**base, cuts=kept, refitted=anew, base=source)


def refitted_source(
    source: CutSource, files: Mapping[str, Path | None], record: Mapping[str, Any]
) -> CutSource:
    """``source`` with other values in some of its tensors.

    Args:
        source: what is cut.
        files: those tensors by their names in it, and the safetensors file that holds each under its own name and in its own
            shape; ``None`` where that is no longer known.
        record: as for :func:`cut_source`.
    """
    headers = dict(source.headers)
    for file in {path for path in files.values() if path is not None}:
        headers |= read_header(file)
    return replace(
        source,
        headers=headers,
        width_pruned=record,
        unread=source.unread | frozenset(name for name, path in files.items() if path is None),
        cuts={name: own for name, own in source.cuts.items() if name not in files},
        refitted={**source.refitted, **{name: source.cuts.get(name, ()) for name in files}},
    )
