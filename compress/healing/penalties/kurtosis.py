"""``kurtosis``: holds down the outliers in what the student's linear layers put out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compress.healing.trained import Trained


@dataclass(frozen=True)
class Kurtosis:
    """``weight · mean E[((y − μ) / σ)⁴]`` over the linear layers of the blocks, y all numbers of a layer's output
    (Nrusimha et al., arXiv:2404.03605: with the kurtosis of outputs held down, inputs of few bits lose less).

    A normal distribution has 3. It pays where inputs are rounded.
    """

    weight: float = 1e-3

    name: ClassVar[str] = "kurtosis"

    def __call__(self, trained: Mapping[str, Trained]) -> Tensor:
        """Nothing: it reads outputs."""
        return torch.zeros(())

    def of_output(self, output: Tensor) -> Tensor:
        """See :class:`~compress.healing.inner.OutputPenalty`."""
        return self.weight * kurtosis(output.float())


def kurtosis(values: Tensor) -> Tensor:
    """The fourth standardised moment of all numbers; 0 of equal ones."""
    square = (values - values.mean()).square()
    variance = square.mean()
    return torch.where(variance > 0, square.square().mean() / variance.square().clamp(min=1e-30), 0.0)
