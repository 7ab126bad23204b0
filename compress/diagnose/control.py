"""Control: what methods gain over their nulls at equal bytes, and over magnitude and plain rounding."""

from __future__ import annotations

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
POOR = 0.5
"""A share of the null's loss from which on a criterion buys little."""


class Control(Entry):
    """The loss ``‖(W − Θ) X‖² ÷ ‖W X‖²`` of pruning half and of rounding to 4 bits, beside random choices of the same bytes."""

    name = "control"
    needs = frozenset({"sample"})

    def __init__(self) -> None:
        self._seen = ByRole()

    def see_weight(self, view: WeightView, weight: Tensor, inputs: Statistics | None) -> None:
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
    draw = torch.Generator().manual_seed(0)
    noise = torch.rand(weight.shape, generator=draw).to(weight)
    size = weight.abs()
    masks = (noise, size, size * x.square().mean(0).sqrt())
    found = [weight * kept(scores) for scores in masks]
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


def _step(weight: Tensor) -> Tensor:
    """Distance between two codes of a symmetric grid, ``[out, in]``, positive."""
    columns = weight.shape[1]
    group = next(size for size in range(min(GROUP, columns), 0, -1) if columns % size == 0)
    largest = weight.reshape(len(weight), -1, group).abs().amax(2, keepdim=True)
    step = (largest / ((1 << (BITS - 1)) - 1)).clamp_min(1e-30)
    return step.expand(-1, -1, group).reshape(weight.shape)
