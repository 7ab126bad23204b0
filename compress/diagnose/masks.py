"""Masks: whether the calibration text decides which weights are pruned."""

from __future__ import annotations

import torch
from torch import Tensor

from compress.diagnose.base import ByRole, Entry, Finding, percent
from compress.models.views import WeightView
from compress.score.statistics import Statistics

STABLE = 0.95


class Masks(Entry):
    """Overlap of Wanda's masks at 50%, row by row, between two halves of the text, and with magnitude's mask; chance is .5."""

    name = "masks"
    needs = frozenset({"sample"})

    def __init__(self) -> None:
        self._seen = ByRole()

    def see_weight(self, view: WeightView, weight: Tensor, inputs: Statistics | None) -> None:
        """Keep how far the masks of a weight fp32 ``[out, in]`` differ; nothing with fewer than two kept inputs."""
        if inputs is None or inputs.sample is None or len(inputs.sample) < 2:
            return
        half = len(inputs.sample) // 2
        parts = (inputs.sample[:half], inputs.sample[half:])
        first, second = (kept(weight.abs() * part.to(weight).square().mean(0).sqrt()) for part in parts)
        # What is lost stands in the table, so that the largest figure is the worst.
        self._seen.add(view, 1 - overlap(first, second), 1 - overlap(kept(weight.abs()), first))

    def finish(self) -> Finding:
        """The table by kind of weight, and whether the text is long enough for masks."""
        role, block, changed = self._seen.largest(0)
        said = f"{percent(changed)} of the mask of {role} in block {block} depends on which half of the text is read"
        advice = (
            f"{said}: prune with more calibration tokens."
            if changed > 1 - STABLE
            else f"At most {said}: the calibration text is long enough."
        )
        columns = ("weight", "differs between halves", "differs from magnitude", "most at block")
        return Finding(self.name, "Stability of pruning masks", columns, self._seen.rows(0), advice)


def kept(scores: Tensor) -> Tensor:
    """The larger half of each row, bool ``[out, in]``."""
    chosen = scores.topk(max(1, scores.shape[1] // 2), dim=1, sorted=False).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, chosen, value=True)


def overlap(first: Tensor, second: Tensor) -> float:
    """The share of what ``first`` keeps that ``second`` keeps too."""
    return float((first & second).sum() / first.sum().clamp_min(1))
