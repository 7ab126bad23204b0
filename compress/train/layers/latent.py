"""Weights made of latent numbers whose signs alone count: what ``bits`` and ``shift`` share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

from compress.linalg.straight_through import through
from compress.train.layers.base import Packed

SCALE = torch.bfloat16
"""In which scales are stored, and so computed with."""


class Code:
    """How the signs of latent numbers are a number, and a code of a layout.

    Attributes:
        largest: of these numbers; the least is its negative.
    """

    largest: float

    def value(self, on: Tensor) -> Tensor:
        """Numbers ``[…]`` of ``on``, 1 where a latent number is positive and 0 elsewhere, with gradients."""
        raise NotImplementedError

    def nearest(self, values: Tensor) -> Tensor:
        """The ``on`` whose numbers are nearest to ``values`` ``[…]``, fp32 ``[…, latents]``."""
        raise NotImplementedError

    def packed(self, on: Tensor, scale: Tensor) -> Packed:
        """A weight of ``on`` ``[out, in, latents]`` and scales ``[out]`` in :data:`SCALE`."""
        raise NotImplementedError


class Latent(nn.Module):
    """The weight ``scale · value(latent > 0)``: a parametrization of torch, whose original is the latent numbers.

    Gradients pass straight through the steps (arXiv:1308.3432). The latent numbers begin at small random sizes (a normal
    distribution of ``spread``) on the sides of the code nearest to the weight, and a scale by row so that its largest value has
    the largest code; the logarithms of scales are trained.
    """

    def __init__(self, code: Code, weight: Tensor, spread: float) -> None:
        super().__init__()
        self.code, self.spread = code, spread
        largest = weight.detach().abs().amax(1)
        self.log_scale = nn.Parameter((torch.where(largest > 0, largest, 1.0) / code.largest).log())

    def forward(self, latent: Tensor) -> Tensor:
        """Latent numbers ``[out, in, latents]`` → ``[out, in]``."""
        values = self.code.value(through(latent, (latent > 0).to(latent.dtype)))
        return values * through(self.log_scale.exp(), self.stored_scale.to(latent.dtype)).unsqueeze(1)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Latent numbers that stand for a weight ``[out, in]``."""
        on = self.code.nearest(weight / self.stored_scale.to(weight.dtype).unsqueeze(1))
        size = self.spread * torch.randn(on.shape).abs().to(on).clamp(min=1e-3)
        return (2 * on - 1) * size

    @property
    def stored_scale(self) -> Tensor:
        """The scales ``[out]`` as they are stored."""
        return self.log_scale.detach().exp().to(SCALE)


@dataclass(frozen=True)
class LatentLayers:
    """Linear layers with weights of latent numbers.

    Attributes:
        bits: of a weight. spread: of the latent numbers' first sizes.
    """

    bits: int = 4
    spread: float = 0.02
    _made: dict[str, Latent] = field(default_factory=dict, init=False, repr=False)

    any_start: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.spread <= 0:
            raise ValueError("spread is above 0")

    def code(self) -> Code:
        """How bits are a number."""
        raise NotImplementedError

    def begin(self, model: PreTrainedModel, names: Iterable[str]) -> None:
        """See :class:`~compress.train.layers.base.Layers`."""
        for name in names:
            layer = model.get_submodule(name)
            made = self._made[name] = Latent(self.code(), layer.weight, self.spread)  # type: ignore[arg-type]
            parametrize.register_parametrization(layer, "weight", made, unsafe=True)

    def after_step(self, done: float) -> None:
        """Nothing."""

    @torch.no_grad()
    def finish(self, model: PreTrainedModel) -> dict[str, Packed]:
        """See :class:`~compress.train.layers.base.Layers`."""
        found: dict[str, Packed] = {}
        for name, made in self._made.items():
            layer = model.get_submodule(name)
            latent: Tensor = layer.parametrizations.weight.original  # type: ignore[union-attr,assignment]
            one = found[name] = made.code.packed((latent > 0).to(torch.float32), made.stored_scale)
            dense = one.layout.decode(one.tensors, one.shape, torch.float32)
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
            layer.weight = nn.Parameter(dense)
        self._made.clear()
        return found
