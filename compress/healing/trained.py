"""Trained tensors: master copies in fp32 of numbers that a checkpoint stores in fewer bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from compress_kernels.layouts import Layout, PackedInteger, Shape
from compress_kernels.layouts.integer import dequantize
from torch import Tensor, nn

from compress.healing.trainables.base import ZERO_POINT


@dataclass(frozen=True)
class Trained:
    """One trained tensor.

    Attributes:
        name: ``MODULE.SUFFIX``.
        kind: the name of the trainable that asked for it, such as ``scales``.
        master: fp32, what the optimizer changes.
        unit: fp32, of the master's shape or one number: the size that a learning rate of 1 stands for.
        dtype: in which it is stored.
    """

    name: str
    kind: str
    master: nn.Parameter
    unit: Tensor
    dtype: torch.dtype

    @property
    def stored(self) -> Tensor:
        """The master as it will be stored."""
        return self.master.detach().to(self.dtype)


def trained_tensor(name: str, kind: str, stored: Tensor, *, elementwise: bool = False) -> Trained:
    """A trained tensor that begins at ``stored``.

    Args:
        name: its name.
        kind: the trainable.
        stored: its values, in the dtype that they are stored in.
        elementwise: whether a unit is each element's magnitude (scales), not the root mean square of all.
    """
    master = stored.detach().to(torch.float32, copy=True)
    size = master.square().mean().sqrt() if master.numel() else master.new_zeros(())
    size = size if bool(size > 0) else torch.ones_like(size)
    unit = torch.where(master == 0, size, master.abs()) if elementwise else size
    return Trained(name, kind, nn.Parameter(master), unit, stored.dtype)


def through(values: Tensor, stored: Tensor) -> Tensor:
    """``stored`` in the forward pass; its gradient goes to ``values`` as it is (the straight-through estimator,
    arXiv:1308.3432)."""
    return values + (stored - values).detach()


def rounded_to(values: Tensor, dtype: torch.dtype) -> Tensor:
    """``values`` fp32, rounded to what ``dtype`` holds, with the gradient passed straight through."""
    return values if dtype == torch.float32 else through(values, values.to(dtype).to(torch.float32))


class TrainedWeight:
    """A packed weight ``[out, in]`` some of whose floating-point tensors are trained; the layout's own decoder is its forward.

    Args:
        name: of the weight.
        layout: of its tensors.
        shape: ``[out, in]``.
        tensors: suffix → tensor, all of the layout's.
        kinds: suffix → the trainable that asked for it.
    """

    def __init__(
        self, name: str, layout: Layout, shape: Shape, tensors: Mapping[str, Tensor], kinds: Mapping[str, str]
    ) -> None:
        self.name, self.layout, self.shape = name, layout, shape
        self.fixed = dict(tensors)
        self.trained = {suffix: self._begin(suffix, kind) for suffix, kind in kinds.items()}

    def dense(self) -> Tensor:
        """The weight fp32 ``[out, in]`` as it would be stored now, with gradients to the masters."""
        current = {suffix: rounded_to(one.master, one.dtype) for suffix, one in self.trained.items()}
        return self.layout.decode({**self.fixed, **current}, self.shape, torch.float32)

    def tensors(self) -> dict[str, Tensor]:
        """Suffix → tensor as they are stored now."""
        return {**self.fixed, **{suffix: one.stored for suffix, one in self.trained.items()}}

    def _begin(self, suffix: str, kind: str) -> Trained:
        return trained_tensor(f"{self.name}.{suffix}", kind, self.fixed[suffix], elementwise=kind == "scales")


class TrainedGrid(TrainedWeight):
    """An integer grid with zero points, which are trained as real numbers and stored as whole ones.

    Args:
        lowest_zero: the least zero point that the form can store; the others as in :class:`TrainedWeight`.
    """

    layout: PackedInteger

    def __init__(self, *arguments: Any, lowest_zero: int = 0) -> None:
        self.lowest_zero = lowest_zero
        super().__init__(*arguments)

    def dense(self) -> Tensor:
        """As :meth:`TrainedWeight.dense`."""
        codes, scale, _ = self.layout.codes(self.fixed, self.shape)
        if "weight_scale" in self.trained:
            one = self.trained["weight_scale"]
            scale = rounded_to(one.master, one.dtype).view(scale.shape)
        zero = self.trained[ZERO_POINT].master
        inside = zero.clamp(self.lowest_zero, (1 << self.layout.bits) - 1)
        return dequantize(codes, scale, through(inside, inside.round()), torch.float32)

    def tensors(self) -> dict[str, Tensor]:
        """As :meth:`TrainedWeight.tensors`."""
        scale, _ = self.layout.parameters(self.fixed, self.shape)
        if "weight_scale" in self.trained:
            scale = self.trained["weight_scale"].stored.view(scale.shape)
        zero = self.trained[ZERO_POINT].master.detach()
        whole = zero.clamp(self.lowest_zero, (1 << self.layout.bits) - 1).round().to(torch.int32)
        return {**self.fixed, **self.layout.encode_parameters(scale, whole, self.shape)}

    def _begin(self, suffix: str, kind: str) -> Trained:
        if suffix != ZERO_POINT:
            return super()._begin(suffix, kind)
        zero = self.layout.parameters(self.fixed, self.shape)[1].to(torch.float32)
        name = f"{self.name}.{suffix}"
        return Trained(name, kind, nn.Parameter(zero.clone()), torch.ones(()), torch.float32)


def trained_weight(
    name: str,
    layout: Layout,
    shape: Shape,
    tensors: Mapping[str, Tensor],
    kinds: Mapping[str, str],
    *,
    lowest_zero: int = 0,
) -> TrainedWeight:
    """The trained form of a packed weight; the arguments are those of :class:`TrainedWeight` and :class:`TrainedGrid`."""
    if ZERO_POINT in kinds:
        return TrainedGrid(name, layout, shape, tensors, kinds, lowest_zero=lowest_zero)
    return TrainedWeight(name, layout, shape, tensors, kinds)


Dense = Callable[[], Tensor]
"""Gives the weight fp32 ``[out, in]`` of a :class:`TrainedWeight`."""
