"""An allocation as an ordinary recipe, which makes the same model again without a search."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from compress.allocate.candidates import has_inputs
from compress.allocate.trial_weights import Allocation
from compress.allocate.units import Unit
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
) -> Recipe | None:
    """The recipe of an allocation; None where it leaves every weight as it is.

    Args:
        units: of the model.
        allocation: unit → the label of its candidate.
        runtime: what the output is for.
        name, when: of the recipe.
        calibrate: its calibration data, as plain data.
        views: all weights of the model, among which patterns have to be unambiguous.
    """
    steps: dict[tuple[str, bool], dict[str, Any]] = {}
    for unit in units:
        choice = unit.choice(allocation[unit.name])
        if choice.candidate is None:
            continue
        for data in (True, False):
            own = [view for view in unit.views if has_inputs(view) is data]
            if own:
                step = steps.setdefault((choice.label, data), choice.candidate.step([], data=data))
                step["targets"] += _targets(own, views)
    if not steps:
        return None
    return Recipe.parse(
        {
            "name": name,
            "when": when,
            "calibrate": dict(calibrate),
            "format": runtime.format,
            "allow_split_groups": not runtime.fuses,
            "steps": [steps[key] for key in sorted(steps, key=lambda key: (not key[1], key[0]))],
        },
        origin=name,
    )


def _targets(own: Sequence[WeightView], views: Sequence[WeightView]) -> list[str]:
    names = [view.name for view in own]
    if len(names) <= _NAMED:
        return names
    shared = next((i for i, letters in enumerate(zip(*names, strict=False)) if len(set(letters)) > 1), 0)
    pattern = f"{re.escape(names[0][:shared])}.*"
    matched = [view.name for view in views if re.match(pattern, view.name)]
    return [f"re:{pattern}"] if matched == names else names
