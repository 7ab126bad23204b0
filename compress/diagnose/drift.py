"""Drift: where a compressed model leaves the path of the dense one."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import Tensor

from compress.diagnose.base import Cell, Finding

NAME = "drift"


def angle_and_error(dense: Iterable[Tensor], compressed: Iterable[Tensor]) -> tuple[float, float]:
    """The mean angle between hidden states ``[b, length, hidden]`` in degrees, and their relative squared error."""
    angles, error, energy, count = 0.0, 0.0, 0.0, 0
    for one, other in zip(dense, compressed, strict=True):
        x, y = one.detach().double(), other.detach().double()
        cosine = (x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1)).clamp_min(1e-300)
        angles += float(cosine.clamp(-1, 1).acos().sum())
        count += cosine.numel()
        error += float((x - y).square().sum())
        energy += float(x.square().sum())
    return math.degrees(angles / max(count, 1)), error / max(energy, 1e-300)


def finding(figures: list[tuple[float, float]]) -> Finding:
    """The table by block, and the block that adds most."""
    angles = [angle for angle, _ in figures]
    added = [after - before for before, after in zip(angles[:-1], angles[1:], strict=True)]
    if not added or max(added) <= 0:
        advice = "The compressed model follows the dense one: no block stands out."
    else:
        worst = max(range(len(added)), key=lambda index: added[index])
        advice = (
            f"Block {worst} turns the hidden states by {added[worst]:.1f} degrees of {max(angles):.1f} in all: "
            "give it more bits first."
        )
    rows: tuple[tuple[Cell, ...], ...] = tuple((index, *pair) for index, pair in enumerate(figures))
    columns = ("before block", "mean angle, degrees", "relative squared error")
    return Finding(NAME, "Drift from the dense model", columns, rows, advice)
