"""Which weights a step of a recipe means."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from compress.errors import UserError
from compress.models.views import WeightView
from compress.recipe.registry import did_you_mean
from compress.recipe.sections import Step

KINDS = {
    "linear": {"linear", "conv1d"},
    "experts": {"expert"},
    "embeddings": {"embedding"},
    "head": {"head"},
    "vision": {"vision"},
}
"""Words for whole classes of weights. ``linear`` means the decoder blocks, but for the routers of experts: these are named, as
is the output head: ``lm_head``. ``head`` means what the output head multiplies by, an embedding that it is tied to included.
``vision`` means what stands beside the decoder of a model that takes images, the projection of
their features included."""

_OUTSIDE = ("embeddings", "head", "vision")
HEAD = "lm_head"


def select(step: Step, views: Sequence[WeightView], where: str) -> tuple[list[WeightView], dict[str, str]]:
    """The views that ``step`` targets, and name → pattern of those that it ignores.

    Raises:
        UserError: a name or pattern that matches nothing; ``where`` names the step. A class word may find nothing.
    """
    for key, patterns in (("targets", step.targets), ("ignore", step.ignore)):
        for pattern in patterns:
            _check(pattern, views, f"{where}.{key}", required=key == "targets" or pattern != HEAD)
    targeted = [view for view in views if _first(view, step.targets) is not None]
    ignored = {view.name: found for view in targeted if (found := _first(view, step.ignore)) is not None}
    return [view for view in targeted if view.name not in ignored], ignored


def matches(view: WeightView, pattern: str) -> bool:
    """Whether ``pattern`` means ``view``: a class word, an exact name, or ``re:`` and a regex anchored at the start."""
    if pattern in KINDS:
        if pattern == "head" and view.in_head:
            return True
        inside = pattern in _OUTSIDE or view.block is not None
        return inside and not view.router and view.kind in KINDS[pattern]
    if pattern.startswith("re:"):
        return re.match(pattern.removeprefix("re:"), view.name) is not None
    return pattern == view.name or (pattern == HEAD and view.kind == "head")


def _first(view: WeightView, patterns: Iterable[str]) -> str | None:
    return next((pattern for pattern in patterns if matches(view, pattern)), None)


def _check(pattern: str, views: Sequence[WeightView], where: str, required: bool) -> None:
    """A class word may find nothing (a dense model has no experts); a name or a regex was written for something."""
    if pattern in KINDS:
        return
    try:
        found = any(matches(view, pattern) for view in views)
    except re.error as error:
        raise UserError(f"{where}: '{pattern}' is not a regular expression: {error}") from error
    if found or not required:
        return
    if pattern == HEAD:
        raise UserError(
            f"{where}: 'lm_head' has no weight of its own here (it is tied): target 'head' or 'embeddings' instead"
        )
    if pattern.startswith("re:"):
        example = f"; names look like '{views[0].name}'" if views else ""
        raise UserError(f"{where}: '{pattern}' matches no weight, anchored at the start of the name{example}")
    known = [view.name for view in views]
    hint = did_you_mean(pattern, [*KINDS, *known])
    raise UserError(f"{where}: '{pattern}' matches no weight{hint if 'did you mean' in hint else ''}")


def kinds(views: Sequence[WeightView]) -> str:
    """What there is to compress, in words, for an error."""
    counts: dict[str, int] = {}
    for view in views:
        counts[view.kind] = counts.get(view.kind, 0) + 1
    return "it has " + (
        ", ".join(f"{count} of kind {kind}" for kind, count in counts.items()) or "none to compress"
    )
