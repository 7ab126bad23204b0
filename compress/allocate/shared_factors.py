"""Weights that read the same inputs and share an input factor, ``W_i ≈ B_i A``, where that loses less at equal bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from compress.allocate.knapsack import Choices, Curve, allocate
from compress.structures.choices import Choice


@dataclass(frozen=True)
class Group:
    """Weights that could share.

    Attributes:
        members: their names; the first one holds the factor.
        curve: what they lose together by rank, and take, the common factor counted once.
    """

    members: tuple[str, ...]
    curve: Curve


def allocate_shared(curves: Mapping[str, Curve], groups: list[Group], rule: str) -> Choices:
    """Choices as :func:`compress.allocate.knapsack.allocate` makes them, with the groups that gain by it sharing.

    A group shares if that loses less at the bytes that its members have been given apart; then all is allocated anew.
    """
    apart = allocate(curves, rule)
    sharing = [group for group in groups if _gains(group, curves, apart)]
    if not sharing:
        return apart
    taken = {name for group in sharing for name in group.members}
    units = {name: one for name, one in curves.items() if name not in taken}
    units |= {group.members[0]: group.curve for group in sharing}
    together = allocate(units, rule)
    for group in sharing:
        choice = together[group.members[0]]
        own = None if choice is None else replace(choice, shared=group.members[0])
        together |= dict.fromkeys(group.members, own)
    return together


def _gains(group: Group, curves: Mapping[str, Curve], apart: Mapping[str, Choice | None]) -> bool:
    size, loss = 0, 0.0
    for name in group.members:
        found = curves[name].find(apart[name])
        if found is None:
            return False  # whole, it loses nothing
        size, loss = size + found.nbytes, loss + found.loss
    within = [option.loss for option in group.curve.options if option.nbytes <= size]
    return bool(within) and within[-1] < loss
