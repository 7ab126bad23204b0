"""Labels of tensor dimensions while a forward is watched: the features of a space, or a dimension of a parameter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from .spaces import Norm, Reader, Space, Writer


@dataclass(frozen=True)
class Along:
    """The dimension runs over the features of a space (or over equal blocks of them).

    Attributes:
        space: the space.
        norm: the scale that was put on its features; ``None`` for none.
        squared: the entries are the squares of a vector's.
    """

    space: Space
    norm: Norm | None = None
    squared: bool = False


@dataclass(frozen=True)
class Of:
    """The dimension runs over dimension ``dim`` of a parameter, to which ``offset`` was added."""

    parameter: str
    dim: int
    offset: float = 0.0


Label = Along | Of | None
Row = tuple[Label, ...]
"""The labels of a tensor's dimensions."""


class Labels:
    """The labels of all tensors that were met, and the spaces that they name.

    Attributes:
        spaces: (parameter, dimension) → the space that products over the parameter's other dimension lie in.
    """

    def __init__(self, parameters: Mapping[int, str]) -> None:
        """``parameters``: ``id`` of a parameter → its name; tied ones under one name."""
        self._parameters = parameters
        self._rows: dict[int, tuple[Tensor, Row]] = {}
        self._zeros: dict[int, Tensor] = {}
        self._modules: list[str] = []
        self._parts: dict[tuple[int, int, int], Space] = {}
        self._opaque: dict[str, str] = {}
        self._cut: dict[tuple[str, int], str] = {}
        self._plain: dict[tuple[str, int], str] = {}
        self._sizes: dict[tuple[str, int], int] = {}
        self.spaces: dict[tuple[str, int], Space] = {}

    def enter(self, module: str) -> None:
        """A module begins its forward."""
        self._modules.append(module)

    def leave(self, module: str) -> None:
        """A module ends its forward."""
        while self._modules and self._modules.pop() != module:
            pass

    @property
    def place(self) -> str:
        """The module whose forward runs."""
        return self._modules[-1] if self._modules and self._modules[-1] else "the model"

    def of(self, tensor: Tensor) -> Row:
        """The labels of a tensor's dimensions."""
        if (name := self._parameters.get(id(tensor))) is not None:
            for dim, size in enumerate(tensor.shape):
                self._sizes[name, dim] = size
            return tuple(Of(name, dim) for dim in range(tensor.ndim))
        found = self._rows.get(id(tensor))
        return found[1] if found is not None else (None,) * tensor.ndim

    def put(self, tensor: Tensor, row: Row) -> None:
        """Label a tensor's dimensions; the tensor is kept, so that no other gets its ``id``."""
        if len(row) != tensor.ndim:
            raise ValueError(f"{len(row)} labels for {tensor.ndim} dimensions")
        self._zeros.pop(id(tensor), None)
        self._rows[id(tensor)] = (tensor, row)

    def put_zeros(self, tensor: Tensor) -> None:
        """Note that all entries of a tensor are zero."""
        self._zeros[id(tensor)] = tensor

    def is_zero(self, tensor: Tensor) -> bool:
        """Whether all entries of a tensor are zero, or it has none."""
        return id(tensor) in self._zeros or tensor.numel() == 0

    def written_into(self, tensor: Tensor) -> None:
        """A tensor is changed in place: what shares its memory is no longer zero."""
        memory = tensor.untyped_storage()._cdata
        shared = [key for key, one in self._zeros.items() if one.untyped_storage()._cdata == memory]
        for key in shared:
            del self._zeros[key]

    def written(self, axis: Of) -> Along:
        """The space of products over a parameter's other dimension."""
        key = (axis.parameter, axis.dim)
        if key not in self.spaces:
            size = self._sizes[key]
            self.spaces[key] = Space(size, size, {Writer(axis.parameter, axis.dim, 0, size)})
        return Along(self.spaces[key])

    def part(self, label: Along, start: int, stop: int) -> Along:
        """The space of some of the features of one that nothing but one linear layer has written."""
        space = label.space.root
        key = (id(space), start, stop)
        if key not in self._parts:
            writers = {replace(one, start=one.start + start, stop=one.start + stop) for one in space.writers}
            found = Space(stop - start, stop - start, writers)
            if space.block != space.size or space.readers or label.norm or label.squared:
                found.refuse(f"{self.place} cuts its features")
            self._parts[key] = found
        space.refuse(f"{self.place} cuts its features")
        return Along(self._parts[key])

    def refuse(self, tensor: Tensor, reason: str) -> None:
        """No space of a tensor's dimensions can be rotated, and no parameter that it is changed."""
        for label in self.of(tensor):
            if isinstance(label, Along):
                label.space.refuse(reason)
            elif isinstance(label, Of):
                self._opaque.setdefault(label.parameter, reason)

    def refuse_label(self, label: Along, reason: str) -> None:
        """The space of a label cannot be rotated."""
        label.space.refuse(reason)

    def read_plainly(self, axis: Of) -> None:
        """Note that a dimension of a parameter is summed over with what is no vector of a space."""
        self._plain.setdefault(
            (axis.parameter, axis.dim), f"{self.place} multiplies {axis.parameter} by other vectors too"
        )

    def cut(self, axis: Of) -> None:
        """Note that a dimension of a parameter was taken in part."""
        self._cut.setdefault((axis.parameter, axis.dim), f"{self.place} takes a part of {axis.parameter}")

    def every_space(self) -> Iterator[Space]:
        """All spaces that were met."""
        yield from self.spaces.values()
        yield from self._parts.values()

    def settle(self) -> None:
        """Refuse the spaces whose parameters are used in other ways than by products over whole dimensions."""
        roots = list({id(space.root): space.root for space in self.every_space()}.values())
        users: dict[str, Space] = {}
        for root in roots:
            parts: list[Writer | Reader] = [*root.writers, *root.readers]
            for part in parts:
                key = (part.parameter, part.dim)
                for reasons in (self._cut, self._plain):
                    if reason := self._opaque.get(part.parameter) or reasons.get(key):
                        root.refuse(reason)
            for name in _norms_of(root):
                if reason := self._opaque.get(name):
                    root.refuse(reason)
                if users.setdefault(name, root) is not root:
                    root.refuse(f"{name} scales other features too")
            self._settle_readers(root)
        readers: dict[tuple[str, int], Space] = {}
        for root in roots:
            for one in root.readers:
                _refuse_both(root, readers.setdefault((one.parameter, one.dim), root), one.parameter)
        for root in roots:
            for writer in root.writers:
                _refuse_both(root, readers.get((writer.parameter, writer.dim), root), writer.parameter)

    def _settle_readers(self, root: Space) -> None:
        norms: dict[tuple[str, int], Norm | None] = {}
        for one in root.readers:
            if norms.setdefault((one.parameter, one.dim), one.norm) != one.norm:
                root.refuse(f"{one.parameter} reads it through several norms")


def _refuse_both(first: Space, second: Space, parameter: str) -> None:
    """Refuse two spaces, if they are two, that share a dimension of a parameter."""
    if first is not second:
        for space in (first, second):
            space.refuse(f"{parameter} reads other features too")


def _norms_of(space: Space) -> set[str]:
    norms = {one.norm for one in space.readers if one.norm is not None}
    return {name for norm in norms for name in (norm.weight, norm.bias) if name}
