"""Units: weights that get one candidate together, and what each candidate makes of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from compress.allocate.candidates import (
    DENSE,
    Candidate,
    candidates_for,
    exporter_of,
    objection,
    planned_weight,
)
from compress.formats import Exporter, Facts
from compress.models.skeleton import Skeleton
from compress.models.views import WeightView
from compress.planning.plan import PlannedWeight
from compress.recipe.runtimes import Runtime


@dataclass(frozen=True)
class Choice:
    """What a candidate makes of a unit.

    Attributes:
        candidate: None leaves the weights as they are.
        nbytes: of the unit's tensors in the output.
        weights: as they are solved for a comparison; empty where they are left as they are.
        neurons: how many of its FFN's neurons stay; None for all.
    """

    candidate: Candidate | None
    nbytes: int
    weights: tuple[PlannedWeight, ...] = ()
    neurons: int | None = None

    @property
    def label(self) -> str:
        """The candidate's name, after the neurons that stay where some go."""
        name = DENSE if self.candidate is None else self.candidate.label
        return name if self.neurons is None else f"{self.neurons} neurons, {name}"


GONE = "gone"
"""The label of the units of a block that is left out."""


@dataclass(frozen=True)
class Unit:
    """Weights that get one candidate.

    Attributes:
        name: that of its first weight.
        views: the weights.
        choices: by rising bytes; the last leaves them as they are, where the runtime reads that.
        refused: why the first candidate that was refused was, for sentences; empty where none was.
        narrow: number of FFN neurons → choices, by rising bytes, where the block keeps that many of them. All units of an FFN
            have the same numbers (:mod:`compress.allocate.narrow`).
    """

    name: str
    views: tuple[WeightView, ...]
    choices: tuple[Choice, ...]
    refused: str = ""
    narrow: Mapping[int, tuple[Choice, ...]] = field(default_factory=dict)

    @property
    def every(self) -> tuple[Choice, ...]:
        """The choices, and those with fewer neurons."""
        return (*self.choices, *(choice for some in self.narrow.values() for choice in some))

    @property
    def block(self) -> int | None:
        """The decoder block; None outside of the blocks, or for weights of several."""
        blocks = {view.block for view in self.views}
        return blocks.pop() if len(blocks) == 1 else None

    @property
    def numel(self) -> int:
        """Numbers in the dense weights."""
        return sum(view.shape[0] * view.shape[1] for view in self.views)

    def choice(self, label: str) -> Choice:
        """The choice of a label.

        Raises:
            KeyError: there is none.
        """
        for choice in self.every:
            if choice.label == label:
                return choice
        if label == GONE:
            return Choice(None, 0)
        raise KeyError(label)


def find_units(skeleton: Skeleton, runtime: Runtime, facts: Facts) -> tuple[Unit, ...]:
    """All weights of a model that could be compressed, in the model's order, as units of a runtime.

    Routers and what reads images stay as they are and are in no unit.
    """
    exporter = exporter_of(runtime)
    # Whether experts are packed is a matter of their own unit.
    without_experts = replace(facts, views=tuple(view for view in facts.views if view.kind != "expert"))
    views = [view for view in skeleton.views if view.sources and not view.router and view.kind != "vision"]
    return tuple(
        _unit(
            group,
            runtime,
            exporter,
            facts if _are_experts(group) or runtime.format == "gguf" else without_experts,
        )
        for group in _groups(views, skeleton, runtime)
    )


def _are_experts(views: Sequence[WeightView]) -> bool:
    return any(view.kind == "expert" for view in views)


def _groups(
    views: Sequence[WeightView], skeleton: Skeleton, runtime: Runtime
) -> list[tuple[WeightView, ...]]:
    """The views that have to become alike: parts of one tensor, experts, and what a server fuses."""
    keys: dict[str, list[object]] = {
        view.name: [("tensor", source) for source in view.sources] for view in views
    }
    for view in views:
        if view.kind == "expert":
            # Experts are stored and run together; some loaders read all of a model by one scheme.
            keys[view.name].append(("experts", None if runtime.experts_alike else view.block))
    if runtime.fuses:
        for number, group in enumerate(skeleton.fused_groups(views)):
            for view in group:
                keys[view.name].append(("fused", number))
    return _joined(views, keys)


def _joined(
    views: Sequence[WeightView], keys: Mapping[str, Iterable[object]]
) -> list[tuple[WeightView, ...]]:
    """Views that share a key, directly or by way of others, together."""
    parent = {view.name: view.name for view in views}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    first: dict[object, str] = {}
    for view in views:
        for key in keys[view.name]:
            other = first.setdefault(key, view.name)
            parent[root(view.name)] = root(other)
    groups: dict[str, list[WeightView]] = {}
    for view in views:
        groups.setdefault(root(view.name), []).append(view)
    return [tuple(group) for group in groups.values()]


def _unit(views: tuple[WeightView, ...], runtime: Runtime, exporter: Exporter, facts: Facts) -> Unit:
    dense = Choice(
        None, sum(facts.headers[name].nbytes for name in dict.fromkeys(s for v in views for s in v.sources))
    )
    found: dict[str, Choice] = {}
    refused = ""
    candidates = {c.label: c for view in views for c in candidates_for(runtime, view)}
    for candidate in candidates.values():
        weights = [planned_weight(view, candidate, exporter, facts, trial=True) for view in views]
        planned = [weight for weight in weights if weight is not None]
        if len(planned) < len(views):
            continue
        if reason := objection(planned, runtime, exporter, facts):
            name = views[0].name
            refused = refused or (reason if reason.startswith(name) else f"{name}: {reason}")
            continue
        choice = stored_choice(candidate, planned, exporter, facts)
        if choice.nbytes < dense.nbytes:
            found[candidate.label] = choice
    ordered = sorted(found.values(), key=lambda choice: choice.nbytes)
    if ordered and runtime.experts_alike and _are_experts(views):
        return Unit(
            views[0].name, views, tuple(ordered), refused
        )  # loaders read no dense experts beside packed weights
    return Unit(views[0].name, views, (*ordered, dense), refused)


def stored_choice(
    candidate: Candidate, planned: Sequence[PlannedWeight], exporter: Exporter, facts: Facts
) -> Choice:
    """The planned weights with their tensors in the output."""
    weights = tuple(
        replace(w, stored=exporter.stored(w, facts), tensors=exporter.specs(w, facts)) for w in planned
    )
    tensors = {name: spec for weight in weights for name, spec in weight.tensors.items()}
    return Choice(candidate, sum(spec.nbytes for spec in tensors.values()), weights)
