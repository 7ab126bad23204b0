"""Narrow FFNs as candidates: fewer neurons in a block, and the weights that make and read them on grids.

What the neurons cost is in the losses of the weight that reads them, which is fitted anew before it is rounded; the weights
that make them lose the rows that nothing reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from compress.allocate.candidates import Candidate, candidates_for, exporter_of, planned_weight
from compress.allocate.units import Choice, Unit, stored_choice
from compress.calibrate.output_gradients import has_output_gradients
from compress.errors import UserError
from compress.formats import Facts
from compress.models.skeleton import Skeleton
from compress.models.views import WeightView
from compress.prune.units import Part, neurons
from compress.recipe.runtimes import Runtime

SHARES = (0.875, 0.75)
"""Shares of the neurons that may stay."""
_FINE = 2
"""Bits up to which all group sizes are candidates."""


@dataclass(frozen=True)
class Ffn:
    """The weights of one block's FFN that have a dimension over the neurons.

    Attributes:
        reader: the weight whose inputs the neurons are.
        makers: the weights whose outputs they are.
    """

    reader: WeightView
    makers: tuple[WeightView, ...]


def with_narrow(
    units: Sequence[Unit], skeleton: Skeleton, runtime: Runtime, facts: Facts
) -> tuple[Unit, ...]:
    """The units, with choices of fewer neurons where the runtime runs blocks of different widths."""
    if runtime.format != "native":
        return tuple(units)
    named = {unit.name: unit for unit in units}
    for share in SHARES:
        try:
            part = neurons(skeleton, share)
        except UserError:  # no dense FFNs, or stored in a way that is not cut
            break
        if not part.prunes:
            continue
        for block in range(len(skeleton.blocks)):
            ffn = _ffn(skeleton, part, block)
            if not _is_chosen_alone(ffn, named, skeleton):
                continue
            for view in (ffn.reader, *ffn.makers):
                narrow = _choices(_cut(view, ffn, part.kept), runtime, facts, part.kept)
                unit = named[view.name]
                named[view.name] = replace(unit, narrow={**unit.narrow, part.kept: narrow})
    return tuple(named[unit.name] for unit in units)


def _is_chosen_alone(ffn: Ffn, named: Mapping[str, Unit], skeleton: Skeleton) -> bool:
    """Whether each weight of the FFN is a unit of its own, and its inputs and gradients are seen."""
    return bool(ffn.makers) and all(
        view.name in named and named[view.name].views == (view,) and has_output_gradients(skeleton, view)
        for view in (ffn.reader, *ffn.makers)
    )


def _ffn(skeleton: Skeleton, part: Part, block: int) -> Ffn:
    makers = [
        view
        for view in skeleton.block_views(block)
        if part.dims.get(view.parameter) == (1 if view.transposed else 0,) and view.shape[0] == part.total
    ]
    return Ffn(part.readers[block], tuple(makers))


def _cut(view: WeightView, ffn: Ffn, kept: int) -> WeightView:
    out, columns = view.shape
    return replace(view, shape=(out, kept) if view is ffn.reader else (kept, columns))


def _choices(view: WeightView, runtime: Runtime, facts: Facts, kept: int) -> tuple[Choice, ...]:
    exporter = exporter_of(runtime)
    found = []
    for candidate in _few(candidates_for(runtime, view)):
        weight = planned_weight(view, candidate, exporter, facts, trial=True)
        if weight is not None:
            choice = stored_choice(candidate, [weight], exporter, facts)
            found.append(replace(choice, neurons=kept))
    return tuple(sorted(found, key=lambda choice: choice.nbytes))


def _few(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Integer grids, with one group size for each number of bits above two."""
    kept: dict[object, Candidate] = {}
    for candidate in candidates:
        grid = candidate.keys.get("quantize", {})
        if set(candidate.keys) == {"quantize"} and "bits" in grid:
            bits = grid["bits"]
            kept[candidate.label if bits <= _FINE else bits] = candidate
    return list(kept.values())
