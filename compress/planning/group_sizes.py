"""``group_size: auto``: the columns that share a scale, for each weight by the number of its inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import gcd

from compress.models.views import WeightView
from compress.recipe.recipe import Recipe
from compress.recipe.sections import Step
from compress.structures.base import StaysDense

AUTO = "auto"
SIZES = {"int": (128, 64, 32), "nf4": (64, 32), "shift": (128, 64, 32), "rf8": (128, 64, 32)}
"""Grid → the group sizes that kernels of servers know, the most economical first."""

Group = int | str
NO_SIZE = "none"
_WHOLE: dict[str, Group] = {"int": "channel", "nf4": NO_SIZE, "shift": NO_SIZE, "rf8": NO_SIZE}
"""What is left where no size divides: a row has one scale, or the weight, of a table of values, stays dense."""


def group_sizes(
    chosen: Sequence[tuple[WeightView, int]], recipe: Recipe, *, common: bool = False
) -> dict[str, Group]:
    """Weight → its group size, for each weight whose step says ``auto``.

    It is the largest of :data:`SIZES` that divides the weight's inputs, or all of a row where none does. Loaders read all
    experts by one scheme, and all zero points by one: the experts of a model, and the weights on asymmetric grids, share the
    largest size that divides the inputs of each, where there is one.

    Args:
        chosen: the targeted weights, each with the index of its step.
        recipe: the steps.
        common: all other weights share a size in the same way.
    """
    wanted = {
        view.name: (view, recipe.all_steps[index])
        for view, index in chosen
        if _is_auto(recipe.all_steps[index])
    }
    inputs: dict[object, list[int]] = {}
    for view, step in wanted.values():
        inputs.setdefault(_together(view, step, common), []).append(view.shape[1])
    result: dict[str, Group] = {}
    for name, (view, step) in wanted.items():
        assert step.quantize is not None
        shared = _largest(gcd(*inputs[_together(view, step, common)]), step)
        result[name] = shared or _largest(view.shape[1], step) or _WHOLE[step.quantize.type]
    return result


def with_group_size(step: Step, name: str, sizes: Mapping[str, Group]) -> Step:
    """The step as it is for one weight.

    Raises:
        StaysDense: no size divides its inputs, and its grid has no other.
    """
    if step.quantize is None or name not in sizes:
        return step
    if sizes[name] == NO_SIZE:
        raise StaysDense("no group size of its grid divides its inputs")
    return step.model_copy(update={"quantize": step.quantize.model_copy(update={"group_size": sizes[name]})})


def _is_auto(step: Step) -> bool:
    return step.quantize is not None and step.quantize.group_size == AUTO


def _together(view: WeightView, step: Step, common: bool) -> object:
    """Weights with the same key share a size; a weight that stands alone is keyed by its inputs."""
    assert step.quantize is not None
    if view.kind == "expert":
        return "experts"
    return view.shape[1] if step.quantize.symmetric and not common else "all"


def _largest(columns: int, step: Step) -> int | None:
    assert step.quantize is not None
    return next((size for size in SIZES[step.quantize.type] if columns % size == 0), None)
