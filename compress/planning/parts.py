"""A block's weights in parts, by the memory that the statistics of their inputs take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from compress.models.skeleton import Skeleton
from compress.models.views import WeightView
from compress.score.statistics import GRADIENT_NEEDS

_SQUARE = frozenset({"gram", "cross"})


def parts_of(
    skeleton: Skeleton, views: Sequence[WeightView], needs: Mapping[str, frozenset[str]], parts: int
) -> list[list[WeightView]]:
    """A block's weights in at most ``parts`` parts with statistics of about equal size; weights of one input stay together."""
    sizes: dict[object, int] = {}
    members: dict[object, list[WeightView]] = {}
    for view, key, size in _inputs(skeleton, views, needs):
        members.setdefault(key, []).append(view)
        sizes[key] = size
    found: list[list[WeightView]] = [[] for _ in range(max(1, min(parts, len(members))))]
    loads = [0] * len(found)
    for key in sorted(sizes, key=lambda key: -sizes[key]):
        least = loads.index(min(loads))
        found[least] += members[key]
        loads[least] += max(1, sizes[key])
    order = {view.name: place for place, view in enumerate(views)}
    return [sorted(part, key=lambda view: order[view.name]) for part in found]


def _inputs(
    skeleton: Skeleton, views: Sequence[WeightView], needs: Mapping[str, frozenset[str]]
) -> list[tuple[WeightView, object, int]]:
    """Each weight, a key of its statistics, and their bytes: those that see the same input (q/k/v, gate/up) share theirs."""
    groups = [group for group in skeleton.fused_groups(views) if group[0].expert is None]
    shared = {view.name: group[0].name for group in groups for view in group}
    found: list[tuple[WeightView, object, int]] = []
    for view in views:
        key = (shared.get(view.name, view.name), view.shape[1], needs[view.name])
        if "token_gradients" in needs[view.name]:  # each weighs the tokens of the same input in its own way
            key = (view.name, view.shape[1], needs[view.name])
        if view.expert is not None:
            key = (f"{view.module}.{view.expert}", view.shape[1], needs[view.name])
        found.append((view, key, sum(moment_bytes(need, view) for need in needs[view.name])))
    return found


def statistics_bytes(
    skeleton: Skeleton, views: Sequence[WeightView], needs: Mapping[str, frozenset[str]]
) -> int:
    """Bytes of fp32 moments."""
    return sum({key: size for _, key, size in _inputs(skeleton, views, needs)}.values())


def moment_bytes(need: str, view: WeightView) -> int:
    """Bytes of one moment of a weight's inputs, fp32."""
    if need in GRADIENT_NEEDS:  # read back from a file, each weight's in its turn
        return 0
    return 4 * view.shape[1] ** (2 if need in _SQUARE else 1)
