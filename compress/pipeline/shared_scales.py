"""Scales of whole weights that several weights share, since servers run these as one (q/k/v, gate/up)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from compress.models.skeleton import Skeleton
from compress.planning.plan import PlannedWeight
from compress.structures.base import SharesScale


def with_shared_scales(skeleton: Skeleton, planned: Sequence[PlannedWeight]) -> tuple[PlannedWeight, ...]:
    """The weights of a loaded block, in their order; structures with a scale of the whole weight reach up to the largest
    absolute value of the weights that are run as one.

    A server that fuses weights keeps one of their outer scales (NVFP4), so that unequal ones would be wrong for all but one.
    """
    sharing = {weight.name: weight for weight in planned if isinstance(weight.methods.structure, SharesScale)}
    if not sharing:
        return tuple(planned)
    largest: dict[str, float] = {}
    for group in skeleton.fused_groups(weight.view for weight in sharing.values()):
        values = [view.get(skeleton.parameter_of(view).detach()) for view in group]
        largest |= dict.fromkeys((view.name for view in group), max(float(v.abs().max()) for v in values))
    return tuple(
        _reaching(weight, largest[weight.name]) if weight.name in largest else weight for weight in planned
    )


def _reaching(weight: PlannedWeight, largest: float) -> PlannedWeight:
    structure = weight.methods.structure
    assert isinstance(structure, SharesScale)
    return replace(weight, methods=replace(weight.methods, structure=structure.reaching(largest)))
