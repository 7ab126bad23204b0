"""Sparsity by weight: one share of all elements spread over the weights of a model.

Importances are kept as histograms over their logarithms, so that a model's worth takes a few kilobytes for each weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

_BINS = 8192
_LOW, _HIGH = -60.0, 20.0
"""Range of log₁₀ of an importance; a step is a hundredth of a decade."""
_MOST = 0.99
"""Some of every weight stays."""


@dataclass(frozen=True)
class Importances:
    """What is known of a weight before its sparsity is chosen.

    Attributes:
        block: the decoder block it is in.
        sparsity: the share that the recipe would leave out everywhere.
        counts: int64 ``[bins]``, how many elements are of each importance, rising.
        outliers: the share of elements whose root importance is over ``M`` times the weight's mean.
    """

    block: int
    sparsity: float
    counts: Tensor
    outliers: float

    @property
    def numel(self) -> int:
        """Elements of the weight."""
        return int(self.counts.sum())


def importances(block: int, sparsity: float, importance: Tensor, multiple: float = 5.0) -> Importances:
    """Take down the importance fp32 ``[out, in]`` of a weight; ``multiple`` is OWL's M."""
    logs = importance.double().clamp_min(10.0**_LOW).log10()
    places = ((logs - _LOW) / (_HIGH - _LOW) * _BINS).long().clamp_(0, _BINS - 1)
    roots = importance.sqrt()
    outliers = float((roots > multiple * roots.mean()).double().mean())
    return Importances(block, sparsity, torch.bincount(places.flatten(), minlength=_BINS).cpu(), outliers)


def allocate_sparsities(found: Mapping[str, Importances], rule: str) -> dict[str, float]:
    """Sparsity by weight; together they leave out the share that the recipe asks for, or a little more.

    ``rule`` is one of

    - ``owl``: blocks with more outliers are pruned less, by up to λ = 0.08 either way (OWL, arXiv:2310.05175, eq. 2);
    - ``threshold``: one threshold on the importances of all weights. What a weight keeps is what lies above it.
    """
    return _owl(found) if rule == "owl" else _threshold(found)


def _owl(found: Mapping[str, Importances], reach: float = 0.08) -> dict[str, float]:
    blocks = sorted({each.block for each in found.values()})
    sizes, shares, wanted = {}, {}, {}
    for block in blocks:
        own = [each for each in found.values() if each.block == block]
        sizes[block] = sum(each.numel for each in own)
        shares[block] = sum(each.outliers * each.numel for each in own) / sizes[block]
        wanted[block] = sum(each.sparsity * each.numel for each in own)
    low, high = min(shares.values()), max(shares.values())
    spread = high - low or 1.0
    gains = {block: 2 * reach * (shares[block] - low) / spread for block in blocks}
    whole = sum(sizes.values())
    mean = sum(gains[block] * sizes[block] for block in blocks) / whole
    target = sum(wanted.values()) / whole
    return {name: _bounded(target - gains[each.block] + mean) for name, each in found.items()}


def _threshold(found: Mapping[str, Importances]) -> dict[str, float]:
    """What a weight may not lose, because some of it has to stay, the others lose in its place."""
    wanted = min(
        sum(each.sparsity * each.numel for each in found.values()),
        sum(_MOST * each.numel for each in found.values()),
    )
    low, high = 0, _BINS - 1
    while low < high:  # the first bin up to whose end enough is left out
        middle = (low + high) // 2
        if sum(_below(each, middle, 1.0) for each in found.values()) < wanted:
            low = middle + 1
        else:
            high = middle
    before = sum(_below(each, low, 0.0) for each in found.values())
    after = sum(_below(each, low, 1.0) for each in found.values())
    # The bin in which the threshold lies is shared out evenly.
    part = (wanted - before) / (after - before) if after > before else 0.0
    shares = {}
    for name, each in found.items():
        few, many = _below(each, low, 0.0), _below(each, low, 1.0)
        shares[name] = _bounded((few + part * (many - few)) / each.numel)
    return shares


def _below(each: Importances, place: int, part: float) -> float:
    """How many elements lie below a bin, with a part of those in it; never more than a weight may lose."""
    count = float(each.counts[:place].sum()) + part * float(each.counts[place])
    return min(count, _MOST * each.numel)


def _bounded(sparsity: float) -> float:
    return min(max(sparsity, 0.0), _MOST)
