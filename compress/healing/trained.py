"""Trained tensors: master copies in fp32 of numbers that a checkpoint stores in fewer bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from compress_kernels.layouts import Dense, Layout, PackedInteger, Shape
from compress_kernels.layouts.bits import pack, unpack
from compress_kernels.layouts.integer import by_rows, dequantize
from torch import Tensor, nn

from compress.healing.trainables.base import CODES, ZERO_POINT, leaves
from compress.healing.trainables.codes import Codes
from compress.linalg.straight_through import through

INSIDE = 0.45
"""How far from its code, in steps of the grid, a weight may begin whose code is not the nearest."""


@dataclass(frozen=True)
class Trained:
    """One trained tensor.

    Attributes:
        name: ``MODULE.SUFFIX``.
        kind: the name of the trainable that asked for it, such as ``scales``.
        master: fp32, what the optimizer changes.
        unit: fp32, of the master's shape or one number: the size that a learning rate of 1 stands for.
        dtype: in which it is stored.
        start: fp32, the master before training.
    """

    name: str
    kind: str
    master: nn.Parameter
    unit: Tensor
    dtype: torch.dtype
    start: Tensor

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
    return Trained(name, kind, nn.Parameter(master), unit, stored.dtype, master.clone())


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
        self.done = 0.0
        """The share of the steps that are done."""
        self.noise: int | None = None
        """In a training step its number, for what is random in it."""
        self.wider = False
        """Whether a weight of fewer bits than are stored is to have the next more of those that it takes turns in."""
        self.trained = {suffix: self._begin(suffix, kind) for suffix, kind in kinds.items()}

    def dense(self) -> Tensor:
        """The weight fp32 ``[out, in]`` as it would be stored now, with gradients to the masters."""
        return self.layout.decode({**self.fixed, **self.current()}, self.shape, torch.float32)

    @property
    def narrowed(self) -> bool:
        """Whether the weight is rounded to fewer bits now than it is stored in."""
        return False

    @property
    def recordable(self) -> bool:
        """Whether :meth:`dense` does the same in every step and reads no number on the host, so that a GPU can record it."""
        return all(isinstance(leaf, Dense) for _, leaf, _, _ in leaves(self.layout, self.shape))

    def current(self) -> dict[str, Tensor]:
        """Suffix → the trained tensors fp32 as they would be stored now."""
        return {suffix: rounded_to(one.master, one.dtype) for suffix, one in self.trained.items()}

    def tensors(self) -> dict[str, Tensor]:
        """Suffix → tensor as they are stored now."""
        return {**self.fixed, **{suffix: one.stored for suffix, one in self.trained.items()}}

    def _begin(self, suffix: str, kind: str) -> Trained:
        return trained_tensor(f"{self.name}.{suffix}", kind, self.fixed[suffix], elementwise=kind == "scales")


class TrainedGrid(TrainedWeight):
    """An integer grid whose scales, zero points or codes are trained; the last two are real numbers, stored as whole ones.

    Args:
        lowest_zero: the least zero point that the form can store.
        codes: how codes are trained.
        before: the weight ``[out, in]`` as it was when it was compressed, where that is known: codes begin as near to it as the
            stored ones allow.
        The others as in :class:`TrainedWeight`.
    """

    layout: PackedInteger

    def __init__(
        self,
        *arguments: Any,
        lowest_zero: int = 0,
        codes: Codes | None = None,
        before: Tensor | None = None,
    ) -> None:
        self.lowest_zero, self.rule, self._before = lowest_zero, codes or Codes(), before
        super().__init__(*arguments)
        self._before = None
        # Unpacked once, a byte each: to unpack them twice in every step takes as long as the products.
        fixed = CODES not in self.trained
        self._codes = (
            unpack(self.fixed[CODES], self.layout.bits, self.shape[1]).to(torch.uint8) if fixed else None
        )

    def dense(self) -> Tensor:
        """As :meth:`TrainedWeight.dense`."""
        scale, zero = self._parameters(straight_through=True)
        if self._codes is not None:
            return dequantize(self._codes, scale, zero, torch.float32)
        bits = self._width()
        if bits < self.layout.bits:
            scale, zero = coarser(scale, zero, self._top, (1 << bits) - 1)
        return rounded_to_grid(self._moving(scale, zero), scale, zero, (1 << bits) - 1)

    def tensors(self) -> dict[str, Tensor]:
        """As :meth:`TrainedWeight.tensors`."""
        with torch.no_grad():
            scale, zero = self._parameters(straight_through=False)
            whole = None if self.layout.symmetric else zero.to(torch.int32)
            stored = self.layout.encode_parameters(scale, whole, self.shape)
            if CODES in self.trained:
                codes = self._whole_codes(scale, zero).view(self.shape)
                stored[CODES] = pack(codes.to(torch.int32), self.layout.bits)
        return {**self.fixed, **stored}

    def _whole_codes(self, scale: Tensor, zero: Tensor) -> Tensor:
        """The codes as they are stored now, fp32."""
        return grid_codes(self.trained[CODES].master, scale, zero, self._top)[0]

    def _width(self) -> int:
        """The bits that the weight is rounded to now: in training steps those of ``elastic`` take their turn."""
        if not self.rule.elastic or self.noise is None:
            return self.layout.bits
        widths = (self.layout.bits, *(bits for bits in self.rule.elastic if bits < self.layout.bits))
        now = widths[self.noise % len(widths)]
        return min((bits for bits in widths if bits > now), default=now) if self.wider else now

    @property
    def recordable(self) -> bool:
        """See :class:`TrainedWeight`."""
        return CODES not in self.trained or not (self.rule.elastic or self.rule.freeze)

    @property
    def narrowed(self) -> bool:
        """See :class:`TrainedWeight`."""
        return CODES in self.trained and self._width() < self.layout.bits

    @cached_property
    def _compressed(self) -> tuple[Tensor, Tensor]:
        """Scales and zero points ``[out or 1, groups]`` before training, unpacked once: it takes dozens of operations."""
        return self.layout.parameters(self.fixed, self.shape)

    @property
    def _top(self) -> int:
        return (1 << self.layout.bits) - 1

    def _parameters(self, *, straight_through: bool) -> tuple[Tensor, Tensor]:
        """Scales and zero points ``[out or 1, groups]`` as they would be stored now."""
        scale, zero = self._compressed
        if "weight_scale" in self.trained:
            one = self.trained["weight_scale"]
            scale = (rounded_to(one.master, one.dtype) if straight_through else one.stored).view(scale.shape)
        if ZERO_POINT in self.trained:
            zero = _whole(self.trained[ZERO_POINT].master, self.lowest_zero, self._top, straight_through)
        if CODES in self.trained and self.rule.statsq:
            scale = self._following(self.trained[CODES].master.detach(), scale)
        return scale, zero

    def _moving(self, scale: Tensor, zero: Tensor) -> Tensor:
        """The latent weight ``[out, in]``; its gradient is held where it is calm and far from the boundaries of its code."""
        latent = self.trained[CODES].master
        if not self.rule.freeze or self.done < self.rule.calm:
            return latent
        with torch.no_grad():
            places = grid_codes(latent, scale, zero, self._top)[1].view_as(latent)
            swings = (places - places.floor() - 0.5).abs() <= self.rule.freeze
        return torch.where(swings, latent, latent.detach())

    def _following(self, latent: Tensor, scale: Tensor) -> Tensor:
        """The scales, by as much larger as the mean magnitude of their groups has grown; the latent weight is ``[out, in]``."""
        grouped = latent.view(self.shape[0], scale.shape[-1], -1)
        start = self.trained[CODES].start.to(grouped.device).view(grouped.shape)
        now, before = (one.abs().mean(-1) for one in (grouped, start))
        if scale.shape[0] == 1:
            now, before = (one.mean(0, keepdim=True) for one in (now, before))
        grown = torch.where(before > 0, now / torch.where(before > 0, before, 1.0), 1.0)
        return (scale.to(torch.float32) * grown.view(scale.shape)).to(scale.dtype)

    def _begin(self, suffix: str, kind: str) -> Trained:
        name = f"{self.name}.{suffix}"
        if suffix == CODES:
            return self._begin_codes(name, kind)
        if suffix == ZERO_POINT:
            zero = self._compressed[1].to(torch.float32)
            unit = torch.ones_like(zero[0, 0])
            return Trained(name, kind, nn.Parameter(zero.clone()), unit, torch.float32, zero.clone())
        return super()._begin(suffix, kind)

    def _begin_codes(self, name: str, kind: str) -> Trained:
        """The weight within the cells of its stored codes, those at the grid's ends closed; a unit is a step of the grid."""
        latent = self.layout.decode(self.fixed, self.shape, torch.float32)
        scale = self._compressed[0].to(torch.float32)
        step = by_rows(scale, self.shape[0], scale.shape[-1]).repeat_interleave(
            self.shape[1] // scale.shape[-1], -1
        )
        if self._before is not None:
            room = INSIDE * step.abs()
            latent += torch.minimum(torch.maximum(self._before.to(latent) - latent, -room), room)
        return Trained(name, kind, nn.Parameter(latent), step.abs(), torch.float32, latent.clone())


def grid_codes(latent: Tensor, scale: Tensor, zero: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Codes fp32 ``[out, groups, columns]`` nearest to a weight ``[out, in]``, and its places on the grid before rounding."""
    grouped = latent.view(latent.shape[0], scale.shape[-1], -1)
    places = grouped / scale.to(torch.float32).unsqueeze(-1) + zero.to(torch.float32).unsqueeze(-1)
    return places.round().clamp_(0, top), places


def rounded_to_grid(latent: Tensor, scale: Tensor, zero: Tensor, top: int) -> Tensor:
    """A weight ``[out, in]`` rounded to ``(code − zero) · scale`` with codes from 0 to ``top``.

    The scale and the zero point are ``[out or 1, groups]``. The gradient passes straight through to ``latent``, also beyond the
    grid's ends: a weight that left may come back. That of the scale is ``code − zero − latent / scale`` inside and
    ``code − zero`` outside, that of the zero point 0 and ``−scale`` (LSQ+, arXiv:2004.09576).
    """
    return cast(Tensor, _RoundedToGrid.apply(latent, scale, zero, top))


class _RoundedToGrid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, latent: Tensor, scale: Tensor, zero: Tensor, top: int) -> Tensor:
        codes, _ = grid_codes(latent, scale, zero, top)
        ctx.save_for_backward(latent, scale, zero)
        ctx.top = top
        centred = codes.sub_(zero.to(torch.float32).unsqueeze(-1))
        return centred.mul_(scale.to(torch.float32).unsqueeze(-1)).view_as(latent)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        latent, scale, zero = ctx.saved_tensors
        grad = gradients[0]
        if not (ctx.needs_input_grad[1] or ctx.needs_input_grad[2]):
            return grad, None, None, None
        codes, places = grid_codes(latent, scale, zero, ctx.top)
        grouped = grad.view_as(codes)
        outside = (places < 0) | (places > ctx.top)
        # code − zero, less latent / scale = place − zero inside.
        centre = torch.where(outside, zero.to(torch.float32).unsqueeze(-1), places)
        grad_scale = torch.linalg.vecdot(grouped, codes.sub_(centre))
        grad_zero = -scale * torch.linalg.vecdot(grouped, outside.to(torch.float32))
        return grad, _summed_to(grad_scale, scale), _summed_to(grad_zero, zero), None


def coarser(scale: Tensor, zero: Tensor, top: int, lower: int) -> tuple[Tensor, Tensor]:
    """Scales and whole zero points of the grid with codes from 0 to ``lower`` over the range of one with codes to ``top``."""
    ratio = top / lower
    within = zero / ratio
    return scale * ratio, through(within, within.round())


def _summed_to(gradient: Tensor, like: Tensor) -> Tensor:
    """A gradient ``[out, groups]``, summed over rows where the parameter has one for all."""
    return gradient.sum_to_size(like.shape).to(like.dtype)


def _whole(values: Tensor, lowest: int, top: int, straight_through: bool) -> Tensor:
    """The nearest whole numbers from ``lowest`` to ``top``."""
    inside = values.clamp(lowest, top)
    return through(inside, inside.round()) if straight_through else inside.round()
