"""A structure is the set of weights that a recipe allows: how to find one near, round to it, and pack it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from compress_kernels.layouts import Layout, nbytes
from torch import Tensor

from compress.metric import Metric

Shape = tuple[int, int]

ColumnRounder = Callable[[Tensor, int], Tensor]
"""``(values [out], column) → rounded [out]``: the nearest allowed values of one input column."""


@dataclass(frozen=True)
class CompressedWeight:
    """A weight as it is stored: its layout, its shape ``[out, in]`` and its tensors by disk suffix."""

    layout: Layout
    shape: Shape
    tensors: Mapping[str, Tensor]

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weight ``[out, in]`` that a server computes with, in ``dtype``."""
        return self.layout.decode(self.tensors, self.shape, dtype)

    @property
    def nbytes(self) -> int:
        return nbytes(self.layout, self.shape)


class Structure(Protocol):
    """The set of allowed weights Θ ``[out, in]``.

    ``capabilities`` says what a solver may ask: ``"project"`` (nearest point), ``"columns"`` (rounding of single columns
    under fitted parameters, as GPTQ needs), ``"scales"`` (``scales_of`` and ``rescale``: group-wise scales that a solver may
    re-fit) or ``"select"`` (choosing within a stretch of columns, as SparseGPT needs).
    """

    capabilities: ClassVar[frozenset[str]]

    def layout(self, shape: Shape) -> Layout:
        """How a weight of ``shape`` is stored; raises ``ValueError`` when the structure does not fit the shape."""
        ...

    def fit(self, weight: Tensor, metric: Metric) -> Any:
        """The parameters (scales, mask, factors) for ``weight`` ``[out, in]`` fp32 in ``metric``."""
        ...

    def project(self, weight: Tensor, parameters: Any) -> Tensor:
        """The nearest allowed weight under ``parameters``, fp32 ``[out, in]``."""
        ...

    def encode(self, weight: Tensor, parameters: Any) -> CompressedWeight:
        """Pack an allowed weight: ``encode(project(w, p), p).dense(float32) == project(w, p)``."""
        ...
