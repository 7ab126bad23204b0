"""The trained form of a packed weight."""

from __future__ import annotations

from collections.abc import Mapping

from compress_kernels.layouts import Layout, PackedInteger, Shape
from torch import Tensor

from compress.healing.sparse import VALUES, TrainedSparse, holds_values
from compress.healing.trainables.codes import Codes
from compress.healing.trained import TrainedGrid, TrainedWeight


def trained_weight(
    name: str,
    layout: Layout,
    shape: Shape,
    tensors: Mapping[str, Tensor],
    kinds: Mapping[str, str],
    *,
    lowest_zero: int = 0,
    codes: Codes | None = None,
    before: Tensor | None = None,
) -> TrainedWeight:
    """The trained form of a packed weight; the arguments are those of :class:`TrainedWeight` and :class:`TrainedGrid`."""
    if isinstance(layout, PackedInteger):
        return TrainedGrid(
            name, layout, shape, tensors, kinds, lowest_zero=lowest_zero, codes=codes, before=before
        )
    if VALUES in kinds and holds_values(layout):
        return TrainedSparse(name, layout, shape, tensors, kinds)
    return TrainedWeight(name, layout, shape, tensors, kinds)
