"""SmoothQuant: move the range of outlier channels from the inputs to the weights before both are rounded (arXiv:2211.10438)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from compress_kernels.activations import ActivationScheme, fake_quantize, scale_of_range
from torch import Tensor

from compress.score.metric import Kron, Side
from compress.structures.base import Structure

from .base import Reader
from .scaling import positive, powers_of_two, spread_rows


@dataclass(frozen=True)
class SmoothQuant:
    """SmoothQuant: columns times ``s = max|x|^α / max|w|^(1−α)`` (eq. 4), inputs divided by s.

    Without ``alpha`` the migration strength α is searched for each input: the error is that of the layers' outputs on a sample
    of the calibration inputs, with the weights at their nearest allowed weights and the inputs rounded as the recipe's
    ``activations`` says; no scaling is one of the candidates. s is rounded to the nearest power of two, so that the fold is
    exact in every dtype. Inputs that nothing rounds are not scaled.

    Attributes:
        alpha: the migration strength, 0 to 1; ``None`` searches it.
        points: number of α from 0 to 1 that are tried.
        rows: number of rows of each weight on which the error is measured.
    """

    alpha: float | None = None
    points: int = 10
    rows: int = 128

    needs: ClassVar[frozenset[str]] = frozenset({"max_abs", "sample"})

    def __post_init__(self) -> None:
        if self.alpha is not None and not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha lies between 0 and 1, not at {self.alpha}")
        if self.points < 1 or self.rows < 1:
            raise ValueError("points and rows are at least 1")

    def scales(self, reader: Reader) -> Tensor | None:
        """The scales fp32 ``[in]``; ``None`` where inputs are not rounded or no scaling is better."""
        statistics, scheme = reader.statistics, reader.activations
        if statistics.tokens == 0 or statistics.max_abs is None or statistics.sample is None:
            return None
        if scheme is None or scheme.hadamard is not None:  # rotated inputs have no outliers of their own
            return None
        largest = positive(statistics.max_abs)
        weights = [spread_rows(weight, self.rows) for weight in reader.weights]
        columns = positive(torch.stack([weight.abs().amax(0) for weight in reader.weights]).amax(0).float())
        if self.alpha is not None:
            return powers_of_two(largest.pow(self.alpha) / columns.pow(1 - self.alpha))
        structures = tuple(_with_plain_scales(structure) for structure in reader.structures)
        trial = _Trial(weights, structures, scheme, statistics.sample, largest)
        best, least = None, trial.error(torch.ones_like(largest))
        for point in range(self.points + 1):
            alpha = point / self.points
            scale = powers_of_two(largest.pow(alpha) / columns.pow(1 - alpha))
            error = trial.error(scale)
            if error < least:
                best, least = scale, error
        return best


def _with_plain_scales(structure: Structure) -> Structure:
    """The structure without a search of its scales, which would be made again for every strength that is tried."""
    if getattr(structure, "scales", "minmax") == "minmax":
        return structure
    changed: Structure = replace(structure, scales="minmax")  # type: ignore[type-var]
    return changed


@dataclass(frozen=True)
class _Trial:
    """The error that a scale leaves in the outputs of some layers.

    Attributes:
        weights: rows of each, fp32 ``[rows, in]``.
        structures: in which they will be solved.
        scheme: how their input is rounded.
        inputs: a sample, fp32 ``[tokens, in]``.
        largest: ``max |x|`` over all tokens ``[in]``, for static ranges.
    """

    weights: list[Tensor]
    structures: tuple[Structure, ...]
    scheme: ActivationScheme
    inputs: Tensor
    largest: Tensor

    def error(self, scale: Tensor) -> float:
        """The summed squared error of the outputs with columns times ``scale`` ``[in]``."""
        scaled_inputs = self.inputs / scale
        rounded_inputs = self._rounded(scaled_inputs, self.largest / scale)
        metric = Kron(right=Side(scaled_inputs.square().mean(0)))
        total = 0.0
        for weight, structure in zip(self.weights, self.structures, strict=True):
            scaled = weight * scale
            rounded = structure.project(scaled, structure.fit(scaled, metric))
            total += float((rounded_inputs @ rounded.T - self.inputs @ weight.T).square().sum())
        return total

    def _rounded(self, inputs: Tensor, largest: Tensor) -> Tensor:
        if not self.scheme.stored:
            return fake_quantize(inputs, self.scheme)
        if self.scheme.strategy == "tensor_group":
            return fake_quantize(inputs, self.scheme, 448 * self.scheme.top / largest.max().view(1))
        top = largest.max().view(1)
        low = -top if self.scheme.symmetric else inputs.min().view(1)
        scale, zero = scale_of_range(self.scheme, low, top)
        return fake_quantize(inputs, self.scheme, scale, zero)
