"""An allocation as an ordinary recipe, which makes the same model again without a search."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from compress.allocate.candidates import has_inputs
from compress.allocate.trial_weights import Allocation
from compress.allocate.units import GONE, Unit
from compress.models.views import WeightView
from compress.recipe.recipe import Recipe
from compress.recipe.runtimes import Runtime

_NAMED = 16
"""Weights of a unit above which a pattern stands for their names."""


def allocation_recipe(
    units: Sequence[Unit],
    allocation: Allocation,
    runtime: Runtime,
    *,
    name: str,
    when: str,
    calibrate: Mapping[str, Any],
    views: Sequence[WeightView],
    renamed: Callable[[str], str] = lambda name: name,
    experts: float | None = None,
    experts_by: str = "reap",
) -> Recipe | None:
    """The recipe of an allocation; None where it leaves the model as it is.

    Args:
        units: of the model.
        allocation: unit → the label of its candidate.
        runtime: what the output is for.
        name, when: of the recipe.
        calibrate: its calibration data, as plain data.
        views: all weights of the model, among which patterns have to be unambiguous.
        renamed: a weight's name where blocks are left out, which renumbers the others.
        experts: share of the routed experts that stay; None for all.
        experts_by: how they come to be fewer.
    """
    gone = sorted({unit.block for unit in units if unit.block is not None and allocation[unit.name] == GONE})
    left = [renamed(view.name) for view in views if view.block not in gone]
    steps: dict[tuple[str, bool], dict[str, Any]] = {}
    for unit in units:
        choice = unit.choice(allocation[unit.name])
        if choice.candidate is None:
            continue
        for data in (True, False):
            own = [view for view in unit.views if has_inputs(view) is data]
            if own:
                step = steps.setdefault((choice.label, data), choice.candidate.step([], data=data))
                step["targets"] += _targets([renamed(view.name) for view in own], left)
    by = {} if experts_by == "reap" else {"experts_by": experts_by}
    fewer = {} if experts is None else {"experts": experts, **by}
    shape = _shape(units, allocation, gone, fewer)
    if not steps and not shape:
        return None
    return Recipe.parse(
        {
            "name": name,
            "when": when,
            "calibrate": dict(calibrate),
            "true_sequential": any(data for _, data in steps),
            "format": runtime.format,
            "allow_split_groups": not runtime.fuses,
            **shape,
            "steps": [steps[key] for key in sorted(steps, key=lambda key: (not key[1], key[0]))],
        },
        origin=name,
    )


def _shape(
    units: Sequence[Unit], allocation: Allocation, gone: Sequence[int], fewer: Mapping[str, Any]
) -> dict[str, Any]:
    """The sections of a recipe that prune blocks, neurons and experts."""
    counts = {
        unit.block - sum(other < unit.block for other in gone): neurons
        for unit in units
        if unit.block is not None and (neurons := unit.choice(allocation[unit.name]).neurons) is not None
    }
    depth = {"depth_pruning": {"blocks": list(gone)}} if gone else {}
    width = {**({"counts": counts} if counts else {}), **fewer}
    return {**depth, **({"width_pruning": width} if width else {})}


def _targets(names: Sequence[str], views: Sequence[str]) -> list[str]:
    if len(names) <= _NAMED:
        return list(names)
    shared = next((i for i, letters in enumerate(zip(*names, strict=False)) if len(set(letters)) > 1), 0)
    pattern = f"{re.escape(names[0][:shared])}.*"
    matched = [name for name in views if re.match(pattern, name)]
    return [f"re:{pattern}"] if matched == list(names) else list(names)
