"""Which weights a step of a recipe means."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from compress.errors import UserError
from compress.models.views import WeightView
from compress.recipe.registry import nearest
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
_GLOB = re.compile(r"[*?\[]")


def select(step: Step, views: Sequence[WeightView], where: str) -> tuple[list[WeightView], dict[str, str]]:
    """The views that ``step`` targets, and name → pattern of those that it ignores.

    Raises:
        UserError: a name or pattern that matches nothing, or a block that the model does not have; ``where`` names the step.
            A class word may find nothing.
    """
    for key, patterns in (("targets", step.targets), ("ignore", step.ignore)):
        for pattern in patterns:
            _check(pattern, views, f"{where}.{key}", required=key == "targets" or pattern != HEAD)
    targeted = [view for view in _in_layers(step, views, where) if _first(view, step.targets) is not None]
    ignored = {view.name: found for view in targeted if (found := _first(view, step.ignore)) is not None}
    return [view for view in targeted if view.name not in ignored], ignored


def matches(view: WeightView, pattern: str) -> bool:
    """Whether ``pattern`` means ``view``.

    Args:
        view: a weight.
        pattern: a class word (:data:`KINDS`); ``re:`` and a regular expression, anchored at the start of the name; a glob
            (``*.mlp.*``: ``*`` spans dots, too), of the whole name or of its end after a dot; a whole name; or the end of a
            name in a decoder block (``q_proj``, ``self_attn.q_proj``).
    """
    if pattern == "head" and view.in_head:
        return True
    if pattern in KINDS:
        inside = pattern in _OUTSIDE or view.block is not None
        return inside and not view.router and view.kind in KINDS[pattern]
    if pattern.startswith("re:"):
        return re.match(pattern.removeprefix("re:"), view.name) is not None
    if _GLOB.search(pattern):
        return fnmatchcase(view.name, pattern) or fnmatchcase(view.name, f"*.{pattern}")
    if pattern == view.name or (pattern == HEAD and view.kind == "head"):
        return True
    return view.block is not None and view.name.endswith(f".{pattern}")


def _in_layers(step: Step, views: Sequence[WeightView], where: str) -> Sequence[WeightView]:
    """The views in the blocks that ``layers`` names; all where it names none."""
    if step.ranges is None:
        return views
    count = 1 + max((view.block for view in views if view.block is not None), default=-1)
    blocks: set[int] = set()
    for first, last in step.ranges:
        places = [place + count if place < 0 else place for place in (first, last)]
        if not 0 <= places[0] <= places[1] < count:
            said = str(first) if first == last else f"{first}-{last}"
            raise UserError(
                f"{where}.layers: the model has blocks 0 to {count - 1} (-1 is the last), not '{said}'"
            )
        blocks.update(range(places[0], places[1] + 1))
    return [view for view in views if view.block in blocks]


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
    anchored = ", anchored at the start of the name" if pattern.startswith("re:") else ""
    raise UserError(f"{where}: '{pattern}' matches no weight{anchored}{_meant(pattern, views)}")


def _meant(pattern: str, views: Sequence[WeightView]) -> str:
    """The end of an error sentence: the nearest name, and the regular expression that finds names with ``pattern`` in them."""
    part = pattern.removeprefix("re:").strip(".*")
    holding = [view.name for view in views if part and part in view.name]
    if holding:
        many = "1 weight" if len(holding) == 1 else f"{len(holding)} weights"
        return f"; 're:.*{re.escape(part)}' matches {many}"
    if (corrected := _respelt(pattern, views)) is not None:
        return f"; did you mean '{corrected}'?"
    ends = dict.fromkeys(view.name.rpartition(".")[2] for view in views)
    close = nearest(pattern, [*KINDS, *ends, *(view.name for view in views)])
    if close is not None:
        return f"; did you mean '{close}'?"
    example = f"; names look like '{views[0].name}', and 're:' takes a regular expression" if views else ""
    return example


def _respelt(pattern: str, views: Sequence[WeightView]) -> str | None:
    """A glob or a regular expression with the words that no name has replaced by the nearest; None if that matches nothing."""
    prefix, colon, rest = pattern.rpartition(":") if pattern.startswith("re:") else ("", "", pattern)
    if not colon and not _GLOB.search(pattern):
        return None
    known = {piece for view in views for piece in view.name.split(".") if not piece.isdigit()}
    words = [word for word in re.findall(r"[A-Za-z_]\w+", rest) if not any(word in piece for piece in known)]
    for word in words:
        rest = rest.replace(word, nearest(word, known) or word)
    corrected = f"{prefix}{colon}{rest}"
    return corrected if words and any(matches(view, corrected) for view in views) else None


def kinds(views: Sequence[WeightView]) -> str:
    """What there is to compress, in words, for an error."""
    counts: dict[str, int] = {}
    for view in views:
        counts[view.kind] = counts.get(view.kind, 0) + 1
    return "it has " + (
        ", ".join(f"{count} of kind {kind}" for kind, count in counts.items()) or "none to compress"
    )
