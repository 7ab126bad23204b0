"""Affine grid: ``Θ = q · s + β`` with b-bit codes q, a scale and a bias by group; the zero point −β/s need not be whole."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from compress_kernels.layouts import AffineInteger, Layout
from compress_kernels.layouts.affine import affine
from compress_kernels.layouts.integer import group_count
from torch import Tensor

from compress.linalg.line_fit import line_steps
from compress.linalg.rounding import ColumnRounder, EvenlySpaced
from compress.linalg.scale_search import Lattice
from compress.structures.base import CompressedWeight, Shape

from .integer import GridParameters, IntegerGrid, stored_scale


@dataclass(frozen=True)
class AffineGrid(IntegerGrid):
    """Integer grid whose zero points are fractions, as MLX stores them: a scale and a bias of the scales' dtype.

    A group's values are its ``2^bits`` evenly spaced ones; zero need not be among them. ``zero`` of the parameters is fp32, and
    the bias is ``−zero · scale`` rounded to ``scale_dtype``.
    """

    symmetric: bool = False

    def layout(self, shape: Shape) -> Layout:
        """See :class:`~compress.structures.base.Structure`.

        Raises:
            ValueError: a group size other than 32, 64 or 128, or 7 bits.
        """
        group_count(self.group_size, shape[1])
        if isinstance(self.group_size, str):
            raise ValueError(
                f"float zero points go with groups of 32, 64 or 128 columns, not '{self.group_size}'"
            )
        return AffineInteger(self.bits, self.group_size, self.scale_dtype)

    def values(self, codes: Tensor, parameters: GridParameters, factor: Tensor | None = None) -> Tensor:
        """``codes · s + β`` ``[out, in]``; see :class:`~compress.structures.base.HasCodes`."""
        scale, bias = parameters.scale, self.biases(parameters)
        if factor is not None:
            scale, bias = (self._rounded(part * factor) for part in (scale, bias))
        return affine(codes, scale, bias)

    def codes(self, weight: Tensor, parameters: GridParameters) -> Tensor:
        """The nearest unsigned codes of ``weight``, int32 ``[out, in]``."""
        scale, bias = parameters.scale.unsqueeze(-1), self.biases(parameters).unsqueeze(-1)
        rounded = ((self._split(weight, parameters) - bias) / scale).round_()
        return rounded.clamp_(0, self.top).to(torch.int32).view(weight.shape)

    def biases(self, parameters: GridParameters) -> Tensor:
        """The biases fp32 ``[out, groups]`` as they are read back from disk."""
        return (-parameters.zero * parameters.scale).to(self.scale_dtype).float()

    def column_rounder(self, parameters: GridParameters, shape: Shape) -> ColumnRounder:
        """Rounding of single columns."""
        width = shape[1] // group_count(self.group_size, shape[1])
        scales = parameters.scale.T.contiguous()
        biases = self.biases(parameters).T.contiguous()

        def round_column(values: Tensor, column: int) -> Tensor:
            scale, bias = scales[column // width], biases[column // width]
            codes = ((values - bias) / scale).round_().clamp_(0, self.top)
            return torch.addcmul(bias, codes, scale)

        return round_column

    def element_rounder(self, parameters: GridParameters, shape: Shape) -> EvenlySpaced:
        """Rounding of elements in any arrangement."""
        width = shape[1] // parameters.scale.shape[-1]
        low, step = (part.repeat_interleave(width, 1) for part in (self.biases(parameters), parameters.scale))
        return EvenlySpaced(low, step, self.top)

    def with_zeros(self, parameters: GridParameters, zeros: Tensor) -> GridParameters:
        """The same scales with other zero points, whole or not."""
        return GridParameters(parameters.scale, zeros.float())

    def shifted(self, parameters: GridParameters) -> list[GridParameters]:
        """The same scales with zero points a quarter and a half of a code lower and higher."""
        return [self.with_zeros(parameters, parameters.zero + step) for step in (-0.5, -0.25, 0.25, 0.5)]

    def refit(
        self, target: Tensor, weight: Tensor, parameters: GridParameters, gram: Tensor
    ) -> tuple[Tensor, GridParameters]:
        """``weight``, which lies on the grid, with the same codes under scales and biases of least error in the metric.

        Args:
            target: what to approximate, fp32 ``[out, in]``.
            weight: on the grid of ``parameters``, fp32 ``[out, in]``.
            parameters: the scales and zero points that it has.
            gram: of the inputs, fp32 ``[in, in]``.
        """
        codes = self.codes(weight, parameters).float()
        biases = self.biases(parameters)
        step = line_steps(target - weight, codes, gram, parameters.scale.shape[1])
        scale = parameters.scale + step[..., 0]
        # A scale that changes its sign or size by much is fitted to noise.
        usable = (scale > 0.25 * parameters.scale) & (scale < 4 * parameters.scale)
        usable &= torch.isfinite(step).all(-1)
        scale = stored_scale(torch.where(usable, scale, parameters.scale), self.scale_dtype)
        bias = torch.where(usable, biases + step[..., 1], biases)
        changed = GridParameters(scale, torch.where(usable, -bias / scale, parameters.zero))
        return self.values(codes, changed), changed

    def encode(self, weight: Tensor, parameters: GridParameters) -> CompressedWeight:
        """See :class:`~compress.structures.base.Structure`."""
        shape = (weight.shape[0], weight.shape[1])
        layout = self.layout(shape)
        assert isinstance(layout, AffineInteger)
        codes = self.codes(weight, parameters)
        return CompressedWeight(
            layout, shape, layout.encode(codes, parameters.scale, self.biases(parameters))
        )

    def _rounded(self, part: Tensor) -> Tensor:
        """``part`` rounded to the dtype on disk, with the gradient of ``part``."""
        return part + (part.detach().to(self.scale_dtype).float() - part.detach())

    def _extremes(self, grouped: Tensor) -> tuple[Tensor, Tensor]:
        """The smallest and the largest value of every group; zero need not lie between them."""
        return grouped.amin(-1), grouped.amax(-1)

    def _parameters(self, low: Tensor, high: Tensor) -> GridParameters:
        """The grid that spans ``[low, high]``, both ``[out, groups]``; a group of one value is that value."""
        scale = (high - low) / self.top
        scale = stored_scale(torch.where(scale > 0, scale, torch.ones_like(scale)), self.scale_dtype)
        return GridParameters(scale, -low / scale)

    @property
    def _lattice(self) -> Lattice:
        return Lattice(
            self.top, False, None, 0, lambda scale: stored_scale(scale, self.scale_dtype), self.scale_dtype
        )

    def _offsets(self, parameters: GridParameters) -> Tensor:
        """The zero points fp32 of biases that are rounded to their dtype on disk."""
        return -self.biases(parameters) / parameters.scale
