"""Kept values of a mask that are trained: where they belong is worked out once."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from compress_kernels.layouts import Layout, Shape, SparseBitmask, SparseNM
from compress_kernels.layouts.sparse import unpack_mask
from torch import Tensor

from compress.healing.trained import TrainedWeight

VALUES = "weight_values"


class TrainedSparse(TrainedWeight):
    """A weight of which some values are kept, and trained, in a bit mask or in n of every m columns.

    Beside the masters it takes four bytes for every kept value, their places: to find them in every step takes longer than the
    products.
    """

    def __init__(
        self, name: str, layout: Layout, shape: Shape, tensors: Mapping[str, Tensor], kinds: Mapping[str, str]
    ) -> None:
        super().__init__(name, layout, shape, tensors, kinds)
        self._places = places_of(layout, shape, tensors)

    def dense(self) -> Tensor:
        """See :class:`~compress.healing.trained.TrainedWeight`."""
        values = self.current()[VALUES].flatten()
        dense = torch.zeros(self.shape[0] * self.shape[1], device=values.device)
        return dense.scatter(0, self._places.long(), values).view(self.shape)

    @property
    def recordable(self) -> bool:
        """See :class:`~compress.healing.trained.TrainedWeight`."""
        return True


def holds_values(layout: Layout) -> bool:
    """Whether a layout is a mask over values, and no grid is under it."""
    return isinstance(layout, SparseBitmask | SparseNM) and layout.grid is None


def places_of(layout: Layout, shape: Shape, tensors: Mapping[str, Tensor]) -> Tensor:
    """The place of each kept value in the weight ``[out, in]``, row after row, int32 ``[kept]``."""
    if isinstance(layout, SparseNM):
        columns = layout.columns(tensors, shape)
        rows = torch.arange(shape[0], device=columns.device).unsqueeze(1)
        return (rows * shape[1] + columns).flatten().to(torch.int32)
    mask = unpack_mask(tensors["weight_mask"], shape[1])
    return mask.flatten().nonzero().flatten().to(torch.int32)
