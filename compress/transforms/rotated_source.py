"""A checkpoint seen in other orthonormal bases: tensors are scaled and rotated when they are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

import torch
from torch import Tensor

from compress.checkpoint.source import Source, TensorInfo
from compress.models.conversion import Piece
from compress.transforms.orthogonal import Orthogonal


class TensorEdit(Protocol):
    """A change of a tensor's values; its shape stays."""

    def apply(self, tensor: Tensor) -> None:
        """Change ``tensor`` in place: fp32 or fp64, shared with nothing."""
        ...


@dataclass(frozen=True, eq=False)
class Rotate:
    """Entries ``start`` to ``stop`` of dimension ``dim`` become ``x Q``."""

    dim: int
    start: int
    stop: int
    rotation: Orthogonal

    def apply(self, tensor: Tensor) -> None:
        """Rotate in place."""
        part = tensor.transpose(self.dim, -1)[..., self.start : self.stop]
        part.copy_(self.rotation.apply(part.contiguous()))


@dataclass(frozen=True, eq=False)
class Scale:
    """Multiply dimension ``dim`` by a vector, that of a norm before the layer that reads it."""

    dim: int
    vector: Tensor

    def apply(self, tensor: Tensor) -> None:
        """Multiply in place."""
        shape = [1] * tensor.ndim
        shape[self.dim] = -1
        tensor.mul_(self.vector.to(tensor).view(shape))


@dataclass(frozen=True, eq=False)
class Fill:
    """All values become ``value``."""

    value: float

    def apply(self, tensor: Tensor) -> None:
        """Fill in place."""
        tensor.fill_(self.value)


@dataclass(frozen=True, eq=False)
class Divide:
    """Divide a vector by another one; zeros stay zero."""

    vector: Tensor

    def apply(self, tensor: Tensor) -> None:
        """Divide in place."""
        tensor.copy_(torch.where(tensor == 0, tensor, tensor / self.vector.to(tensor)))


@dataclass(frozen=True, eq=False)
class Placed:
    """An edit of the part of a disk tensor that a parameter is (partly) made of, in the parameter's dimensions."""

    piece: Piece
    edit: TensorEdit

    def apply(self, tensor: Tensor) -> None:
        """Edit the disk tensor in place."""
        self.edit.apply(self.piece.of_disk(tensor))


@dataclass(frozen=True, eq=False)
class RotatedSource(Source):
    """A source whose tensors are edited when they are read.

    Attributes:
        base: the source.
        edits: disk tensor → its edits, the first one first.
        copies: disk tensor that the source lacks → the one that it is a copy of (a head that was tied).
        readers: parameters that read vectors of a rotated space.
    """

    base: Source | None = None
    edits: Mapping[str, Sequence[TensorEdit]] = field(default_factory=dict)
    copies: Mapping[str, str] = field(default_factory=dict)
    readers: frozenset[str] = frozenset()

    @property
    def rotated_inputs(self) -> frozenset[str]:
        """As :attr:`Source.rotated_inputs`."""
        return self.readers

    def read(self, name: str) -> Tensor:
        """As :meth:`Source.read`; what is edited is a copy in the source's dtype, rounded once."""
        if name in self.unread:
            return torch.zeros(self.headers[name].shape, dtype=self.headers[name].dtype)
        assert self.base is not None
        return self._edited(name, self.base.read(self.copies.get(name, name)))

    def on_disk(self, name: str) -> tuple[TensorInfo, ...]:
        """As :meth:`Source.on_disk`."""
        assert self.base is not None
        return () if name in self.unread else self.base.on_disk(self.copies.get(name, name))

    def _edited(self, name: str, tensor: Tensor) -> Tensor:
        edits = self.edits.get(name, ())
        if not edits:
            return tensor
        edited = tensor.to(torch.float32, copy=True)
        for edit in edits:
            edit.apply(edited)
        return edited.to(tensor.dtype)

    def reference(self, name: str) -> Tensor:
        """As :meth:`Source.reference`, in the bases that tensors are rotated to."""
        assert self.base is not None
        return self._edited(name, self.base.reference(self.copies.get(name, name)))

    @property
    def without_reference(self) -> frozenset[str]:
        """As :attr:`Source.without_reference`: what a matrix that is not known any more has rotated."""
        assert self.base is not None
        return self.base.without_reference | (self.unread - self.base.unread)

    def raw_bytes(self, name: str) -> memoryview:
        """As :meth:`Source.raw_bytes`."""
        assert self.base is not None
        if name not in self.edits and name not in self.unread:
            return self.base.raw_bytes(self.copies.get(name, name))
        flat: Any = self.read(name).contiguous().view(-1).view(torch.uint8).numpy()
        return memoryview(flat)


def rotated_source(
    base: Source,
    edits: Mapping[str, Sequence[TensorEdit]],
    *,
    copies: Mapping[str, str],
    record: Mapping[str, Any],
    readers: frozenset[str] = frozenset(),
    unread: frozenset[str] = frozenset(),
) -> RotatedSource:
    """``base`` with edited tensors.

    Args:
        base: as it is on disk, or pruned.
        edits: disk tensor → its edits.
        copies: new disk tensor → the one that it is a copy of before the edits; the configuration then ties no embeddings.
        record: what to know to make the same edits again.
        readers: parameters that read vectors of a rotated space.
        unread: tensors whose edits are not known any more.
    """
    headers = {**base.headers, **{new: base.headers[origin] for new, origin in copies.items()}}
    config = _untied(base.config) if copies else base.config
    changed = {key: value for key, value in config.items() if base.config.get(key) != value}
    there = {f.name: getattr(base, f.name) for f in fields(Source)}
    there |= {
        "headers": headers,
        "config": config,
        "changes": {**base.changes, **changed},
        "rotation": record,
        "unread": base.unread | unread,
    }
    return RotatedSource(**there, base=base, edits=edits, copies=copies, readers=readers)


def _untied(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with ``tie_word_embeddings: false``, in the text model's part too."""
    result = {**config, "tie_word_embeddings": False}
    for key, part in config.items():
        if isinstance(part, dict) and part.get("tie_word_embeddings"):
            result[key] = {**part, "tie_word_embeddings": False}
    return result
