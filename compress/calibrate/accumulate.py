"""Accumulator of input moments: sums in fp32 over the calibration batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from compress_kernels import native
from torch import Tensor

from compress.score.histogram import Histogram
from compress.score.statistics import GRADIENT_NEEDS, NEEDS, Statistics

SAMPLED = 1024
"""Inputs that a ``sample`` holds, at most."""


_SUMMED = {"diagonal": 1, "gram": 2, "mean": 1, "mean_abs": 1, "cross": 2}


@dataclass
class Accumulator:
    """Sums of moments over batches. Accumulators of the same needs can be merged.

    Args:
        needs: names out of :data:`NEEDS`.
        in_features: length of an input.
        device: where the sums are stored.
    """

    needs: frozenset[str]
    in_features: int
    device: torch.device | str = "cpu"
    tokens: int = 0
    _sums: dict[str, Tensor] = field(default_factory=dict)
    _sample: Tensor | None = None
    _histogram: Histogram = field(default_factory=Histogram)
    _stride: int = 1
    """The sample holds every input whose number is a multiple of it."""

    def __post_init__(self) -> None:
        if unknown := self.needs - NEEDS:
            raise ValueError(f"no statistic is called {', '.join(sorted(unknown))}")
        # The diagonal is read from the Gram matrix where there is one.
        for need in self._stored():
            shape = (self.in_features,) * _SUMMED.get(need, 1)
            self._sums[need] = torch.zeros(shape, dtype=torch.float32, device=self.device)

    def add(self, inputs: Tensor, dense: Tensor | None = None, weights: Tensor | None = None) -> None:
        """Add inputs.

        Args:
            inputs: ``[..., in]``.
            dense: the inputs of the same tokens in the uncompressed model.
            weights: how much each token counts in ``gram`` and ``cross``, fp32 ``[tokens]``.
        """
        inputs = inputs.reshape(-1, self.in_features)
        if self._only_gram and weights is None:
            self.tokens += len(inputs)
            add_lower_gram(self._sums["gram"], inputs)
            return
        x = inputs.float()
        if "sample" in self.needs:
            self._take(x[-self.tokens % self._stride :: self._stride].to(self.device))
        if "histogram" in self.needs:
            self._histogram.add(x)
        self.tokens += x.shape[0]
        if x.shape[0] == 0:
            return
        sums = self._sums
        if "gram" in sums:
            add_lower_gram(sums["gram"], inputs if weights is None else x * weights.sqrt().unsqueeze(1))
        if "diagonal" in sums:
            sums["diagonal"].add_(x.square().sum(0))
        if "mean" in sums:
            sums["mean"].add_(x.sum(0))
        if "mean_abs" in sums:
            sums["mean_abs"].add_(x.abs().sum(0))
        if "max_abs" in sums:
            torch.maximum(sums["max_abs"], x.abs().amax(0), out=sums["max_abs"])
        if "cross" in sums:
            if dense is None:
                raise ValueError("the cross moment needs the dense model's inputs too")
            dense = dense.reshape(-1, self.in_features)
            if weights is None and _has_kernel(sums["cross"], dense, inputs):
                torch.ops.compress_kernels.native_add_products(sums["cross"], dense, inputs)
            else:
                counted = x if weights is None else x * weights.unsqueeze(1)
                sums["cross"].addmm_(dense.float().T, counted)

    def merge(self, other: Accumulator) -> None:
        """Add the sums of ``other``."""
        self.tokens += other.tokens
        if other._sample is not None:
            self._take(other._sample)
        self._histogram = Histogram.pooled([self._histogram, other._histogram])
        for need, value in other._sums.items():
            if need == "max_abs":
                torch.maximum(self._sums[need], value.to(self.device), out=self._sums[need])
            else:
                self._sums[need].add_(value.to(self.device))

    def finish(self) -> Statistics:
        """Means over the tokens. The sums are divided in place: nothing can be added afterwards."""
        moments = {
            need: value if need == "max_abs" else value.div_(max(self.tokens, 1))
            for need, value in self._sums.items()
        }
        if "gram" in moments:
            mirror_lower(moments["gram"])
        if "diagonal" in self.needs and "gram" in moments:
            moments["diagonal"] = moments["gram"].diagonal().clone()
        histogram = self._histogram if "histogram" in self.needs else None
        return Statistics(tokens=self.tokens, sample=self._sample, histogram=histogram, **moments)

    @property
    def _only_gram(self) -> bool:
        """Whether nothing else than the Gram matrix is summed, which takes inputs of any dtype."""
        return self.needs <= {"gram", "diagonal"} and "gram" in self.needs

    def _take(self, rows: Tensor) -> None:
        """Add to the sample; when it is full, drop every other input, and from then on take half as many."""
        self._sample = rows.clone() if self._sample is None else torch.cat((self._sample, rows))
        while len(self._sample) > SAMPLED:
            self._sample, self._stride = self._sample[::2].clone(), self._stride * 2

    def _stored(self) -> Iterable[str]:
        dropped = GRADIENT_NEEDS | {"sample", "histogram"} | ({"diagonal"} if "gram" in self.needs else set())
        return sorted(self.needs - dropped)


def add_lower_gram(gram: Tensor, inputs: Tensor) -> None:
    """Add `inputsᵀ inputs` to the lower triangle of `gram` fp32 `[in, in]`, in strips of rows; what lies above the
    diagonal is left undefined, see :func:`mirror_lower`. That is half of the products.

    Args:
        inputs: `[tokens, in]` as they came; of bf16 the products are exact in fp32, so the hardware's bf16 matrix
            units lose nothing.
    """
    if _has_kernel(gram, inputs):
        torch.ops.compress_kernels.native_add_products(gram, inputs, None)
        return
    if not len(inputs):
        return
    upcast = inputs.float()
    half = inputs.dtype in (torch.bfloat16, torch.float16)
    direct = half and gram.device.type == "cuda" and "dtype" in torch.ops.aten.mm.overloads()
    with _exact_in_bf16(inputs.dtype == torch.bfloat16 and gram.device.type == "cpu"):
        for start, stop in _strips(gram.shape[0]):
            target = gram[start:stop, :stop]
            if direct:
                target += torch.mm(inputs[:, start:stop].T, inputs[:, :stop], out_dtype=torch.float32)
            else:
                target.addmm_(upcast[:, start:stop].T, upcast[:, :stop])


def _has_kernel(sums: Tensor, *inputs: Tensor) -> bool:
    """Whether products of bf16 inputs are summed by the C++ kernel."""
    plain = all(each.dtype == torch.bfloat16 and each.device.type == "cpu" for each in inputs)
    return plain and sums.device.type == "cpu" and native.multiplies_bf16()


def mirror_lower(gram: Tensor) -> None:
    """Make `gram` `[in, in]` symmetric in place by copying its lower triangle over the upper one."""
    for start, stop in _strips(gram.shape[0]):
        gram[:start, start:stop] = gram[start:stop, :start].T
        corner = gram[start:stop, start:stop]
        corner.copy_(corner.tril() + corner.tril(-1).T)


def _strips(size: int) -> list[tuple[int, int]]:
    width = max(256 if size < 1024 else 512, -(-size // 512) * 64)
    return [(start, min(start + width, size)) for start in range(0, size, width)]


@contextmanager
def _exact_in_bf16(wanted: bool) -> Iterator[None]:
    """Let fp32 products run on the processor's bf16 units: for factors that are bf16 numbers nothing is rounded."""
    matmul: Any = getattr(torch.backends.mkldnn, "matmul", None)
    if not wanted or not hasattr(matmul, "fp32_precision"):
        yield
        return
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before
