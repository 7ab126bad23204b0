"""What a packed weight looks like on disk: the contract that plans, exporters and operators share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

Shape = tuple[int, int]
T = TypeVar("T")


@dataclass(frozen=True)
class TensorSpec:
    """Shape and dtype of one tensor on disk, known before its values are."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor's data."""
        return math.prod(self.shape) * self.dtype.itemsize


@runtime_checkable
class Layout(Protocol):
    """How a weight ``[out, in]`` is stored: which tensors, of what size, and how to read them back.

    A layout is a frozen value: two weights of one layout and shape always take the same bytes, so that a plan can
    be exact before the first weight is solved.
    """

    name: ClassVar[str]

    def specs(self, shape: Shape) -> dict[str, TensorSpec]:
        """Suffix → spec of every tensor that stores a weight of ``shape`` ``[out, in]``.

        Raises ``ValueError`` when the layout cannot hold that shape.
        """
        ...

    def decode(self, tensors: Mapping[str, Tensor], shape: Shape, dtype: torch.dtype) -> Tensor:
        """The dense weight ``[out, in]``, computed in ``dtype``."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Plain data that :func:`compress_kernels.layouts.layout_from_json` turns back into this layout."""
        ...


def nbytes(layout: Layout, shape: Shape) -> int:
    """Bytes on disk of a weight of ``shape`` ``[out, in]`` in ``layout``."""
    return sum(spec.nbytes for spec in layout.specs(shape).values())


def check(layout: Layout, tensors: Mapping[str, Tensor], shape: Shape) -> None:
    """Raise ``ValueError`` unless ``tensors`` are exactly what ``layout`` declares for ``shape``."""
    specs = layout.specs(shape)
    if missing := sorted(specs.keys() - tensors.keys()):
        raise ValueError(f"a {layout.name} weight of shape {list(shape)} lacks {', '.join(missing)}")
    for suffix, spec in specs.items():
        tensor = tensors[suffix]
        if tuple(tensor.shape) != spec.shape or tensor.dtype != spec.dtype:
            raise ValueError(
                f"{suffix} of a {layout.name} weight of shape {list(shape)} should be {spec.dtype} "
                f"{list(spec.shape)} but is {tensor.dtype} {list(tensor.shape)}"
            )


def prefixed(prefix: str, entries: Mapping[str, T]) -> dict[str, T]:
    """The entries of a layout inside another one, by the suffixes that they have there."""
    return {f"{prefix}{suffix}": value for suffix, value in entries.items()}


def part(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Invert :func:`prefixed`: the tensors whose suffix begins with ``prefix``, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
