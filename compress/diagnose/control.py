"""Control: what methods gain over their nulls at equal bytes, and over magnitude and plain rounding."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from compress.diagnose.base import ByRole, Entry, Finding, percent
from compress.diagnose.masks import kept
from compress.models.views import WeightView
from compress.score.statistics import Statistics

BITS = 4
GROUP = 128
METHODS = ("random mask", "magnitude", "Wanda", "random rounding", "nearest")
"""Half of each row's elements pruned by three criteria, and a grid of 4 bits with groups of 128 rounded to in two ways."""
TOKENS = 256
"""Inputs that losses are measured on, evenly spaced among those that were kept."""
KEPT = 1 << 22
"""Elements of a weight up to which the random numbers of its shape are kept for the next one of that shape."""
POOR = 0.5
"""A share of the null's loss from which on a criterion buys little."""


class Control(Entry):
    """The loss ``‖(W − Θ) X‖² ÷ ‖W X‖²`` of pruning half and of rounding to 4 bits, beside random choices of the same bytes."""

    name = "control"
    needs = frozenset({"sample"})

    def __init__(self) -> None:
        self._seen = ByRole()

    def see_weight(self, view: WeightView, weight: Tensor, inputs: Statistics | None) -> None:
        """Keep the losses of a weight fp32 ``[out, in]`` on the kept inputs ``[tokens, in]``; nothing without inputs."""
        if inputs is not None and inputs.sample is not None and len(inputs.sample):
            self._seen.add(view, *losses(weight, inputs.sample).values())

    @property
    def means(self) -> dict[str, float]:
        """Method → the mean loss over all kinds of weight."""
        roles = list(self._seen.means().values())
        return {
            method: sum(role[index] for role in roles) / max(len(roles), 1)
            for index, method in enumerate(METHODS)
        }

    def finish(self) -> Finding:
        """The table by kind of weight, and what choosing gains over chance."""
        means = self.means
        share = means["Wanda"] / max(means["random mask"], 1e-300)
        role, block, worst = max(
            (
                (role, block, values[2] / max(values[0], 1e-300))
                for role, seen in self._seen.figures.items()
                for block, values in seen
            ),
            key=lambda found: found[2],
        )
        said = f"Wanda's masks lose {percent(share)} of what random ones of the same bytes do"
        advice = (
            f"{said}, in {role} of block {block} {percent(worst)}: choosing buys little there, refit the values instead."
            if worst >= POOR
            else f"{said}, at most {percent(worst)} ({role} of block {block}): choosing pays everywhere."
        )
        columns = ("weight", *METHODS, "worst rounding at block")
        return Finding(self.name, "Methods beside their nulls", columns, self._seen.rows(4), advice)


def losses(weight: Tensor, inputs: Tensor) -> dict[str, float]:
    """The relative loss of each of :data:`METHODS` on a weight fp32 ``[out, in]`` and inputs ``[tokens, in]``."""
    x = inputs.to(weight)
    random = _random(weight.shape) if weight.numel() <= KEPT else _random.__wrapped__(weight.shape)
    noise, chance = (one.to(weight.device) for one in random)
    size = weight.abs()
    found = [weight * mask for mask in (chance, kept(size), kept(size * x.square().mean(0).sqrt()))]
    step = _step(weight)
    lower = (weight / step).floor()
    # Up with the probability of the fraction: right on average, as plain as a rounding can be.
    found.append((lower + (noise < weight / step - lower)) * step)
    found.append((weight / step).round() * step)
    x = x[:: -(-len(x) // TOKENS)]
    energy = float((x @ weight.T).square().sum().clamp_min(1e-300))
    return {
        method: float((x @ (weight - theta).T).square().sum()) / energy
        for method, theta in zip(METHODS, found, strict=True)
    }


@lru_cache(maxsize=8)
def _random(shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Numbers from 0 to 1, the same for the same shape, fp32 ``[out, in]``, and the mask of the larger half of each row."""
    noise = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    return noise, kept(noise)


def _step(weight: Tensor) -> Tensor:
    """Distance between two codes of a symmetric grid, ``[out, in]``, positive."""
    columns = weight.shape[1]
    group = next(size for size in range(min(GROUP, columns), 0, -1) if columns % size == 0)
    largest = weight.reshape(len(weight), -1, group).abs().amax(2, keepdim=True)
    step = (largest / ((1 << (BITS - 1)) - 1)).clamp_min(1e-30)
    return step.expand(-1, -1, group).reshape(weight.shape)
