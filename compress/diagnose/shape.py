"""Shape: how heavy the tails of the weights are, and how many bits their codes really hold."""

from __future__ import annotations

import torch
from torch import Tensor

from compress.diagnose.base import ByRole, Entry, Finding, percent
from compress.linalg.generalized_gaussian import exponent
from compress.models.views import WeightView
from compress.score.statistics import Statistics

BITS = 4
GROUP = 128
WORTH = 0.08
"""A saving from which on entropy coding is advised."""


class Shape(Entry):
    """The exponent ν of a generalized Gaussian ``exp(−|w/α|^ν)`` (2: Gaussian, 1: Laplace), and the entropy of 4-bit codes."""

    name = "shape"

    def __init__(self) -> None:
        self._seen = ByRole()

    def see_weight(self, view: WeightView, weight: Tensor, inputs: Statistics | None) -> None:
        """Keep the exponent and the entropy of the codes of a weight fp32 ``[out, in]``."""
        self._seen.add(view, exponent(weight), entropy(weight))

    def finish(self) -> Finding:
        """The table by kind of weight, and whether entropy coding is worth it."""
        bits = [value for _, value in self._seen.means().values()]
        saving = 1 - sum(bits) / len(bits) / BITS
        advice = (
            f"Codes of {BITS} bits hold {percent(1 - saving)} of what they could: entropy coding would save "
            f"{percent(saving)} on disk."
            if saving >= WORTH
            else f"Codes of {BITS} bits are nearly full: entropy coding would save {percent(saving)} and is not worth it."
        )
        columns = ("weight", "ν", f"entropy of {BITS}-bit codes, bits", "heaviest at block")
        return Finding(self.name, "Shape of the weights", columns, self._seen.rows(1), advice)


def entropy(weight: Tensor) -> float:
    """Bits of information in a code of a symmetric grid whose scale is the largest value of each group."""
    columns = weight.shape[1]
    group = next(size for size in range(min(GROUP, columns), 0, -1) if columns % size == 0)
    groups = weight.reshape(-1, group)
    most = (1 << (BITS - 1)) - 1
    scale = groups.abs().amax(1, keepdim=True).clamp_min(1e-30) / most
    codes = torch.round(groups / scale).clamp(-most - 1, most).to(torch.int64) + most + 1
    share = torch.bincount(codes.flatten(), minlength=1 << BITS).double() / codes.numel()
    return float(-(share * share.clamp_min(1e-300).log2()).sum())
