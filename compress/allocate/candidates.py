"""Candidates: what a weight can become for a runtime, as steps of a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from compress_kernels.layouts import BLOCK_TYPES

from compress.formats import Exporter, Facts, RestrictsGrids
from compress.formats.servers import servers_of
from compress.models.views import WeightView
from compress.planning.methods import methods_of
from compress.planning.plan import PlannedWeight
from compress.recipe.registry import find
from compress.recipe.runtimes import Runtime
from compress.recipe.sections import Step
from compress.structures.base import DependsOnShape, StaysDense

DENSE = "dense"
"""The label of the candidate that leaves a weight as it is."""

_GROUPS = (32, 64, 128)
_SUPER_BLOCKS = ("q2_k", "q3_k", "iq4_xs", "q4_k", "q5_k", "q6_k", "q8_0")
_SMALL_BLOCKS = ("iq4_nl", "q4_1", "q5_0", "q5_1", "q8_0")
"""Types of ggml for rows that are a multiple of 256 columns, and for the others."""
_MASK_COST, _SEARCHED_COST = 4.0, 5.0
"""Trials of masks, and of types whose scales are searched, beside plain GPTQ on one range; measured on 256 × 256 weights."""
_FEW_CODES = 3
"""Bits up to which all group sizes are candidates: with more, a finer code buys more than a finer group."""


@dataclass(frozen=True)
class Candidate:
    """One thing that a weight can become.

    Attributes:
        label: its name in tables: ``int3-g64``, ``q4_k``. Candidates of one label have the same keys.
        keys: the keys of a recipe's step (``quantize``, ``prune``, ``lowrank``) that describe the structure.
        solver: what solves weights whose inputs are known; the others are rounded.
        trial: the same solver with less search, for comparing candidates.
        trial_cost: of a trial, as a multiple of plain GPTQ on one range of the grid.
    """

    label: str
    keys: Mapping[str, Any] = field(hash=False)
    solver: tuple[Any, ...] = field(default=("gptq",), hash=False)
    trial: tuple[Any, ...] = field(default=("gptq",), hash=False)
    trial_cost: float = 1.0

    def step(self, targets: Sequence[str], *, data: bool, trial: bool = False) -> dict[str, Any]:
        """A step of a recipe, as plain data. All but trials are solved towards what the dense model computes.

        Args:
            targets: the weights that it takes.
            data: their inputs are known.
            trial: with the solver for comparisons.
        """
        if not data:
            return {"targets": list(targets), **self.keys, "solver": ["nearest"]}
        if trial:
            return {"targets": list(targets), **self.keys, "solver": list(self.trial)}
        return {"targets": list(targets), **self.keys, "true_input_target": True, "solver": list(self.solver)}


def candidates_for(runtime: Runtime, view: WeightView) -> tuple[Candidate, ...]:
    """What a weight of this shape could become, by rising size; not all of it fits the runtime (:func:`planned_weight`)."""
    if runtime.format == "gguf":
        whole = view.shape[1] % BLOCK_TYPES[_SUPER_BLOCKS[0]].block == 0
        names = _SUPER_BLOCKS if whole else _SMALL_BLOCKS
        return tuple(_ggml(name) for name in names if view.shape[1] % BLOCK_TYPES[name].block == 0)
    symmetric = runtime.format == "compressed-tensors"
    grids = [
        _integer(bits, group, symmetric)
        for bits in (2, 3, 4, 5, 6, 8)
        for group in _groups(bits, view.shape[1])
    ]
    return tuple(grids) if runtime.format != "native" or view.block is None else (*grids, *_native(view))


def planned_weight(
    view: WeightView, candidate: Candidate, exporter: Exporter, facts: Facts, *, trial: bool = False
) -> PlannedWeight | None:
    """The weight as the candidate would have it in the output; None where it does not fit the weight's shape.

    Args:
        view: the weight.
        candidate: what it becomes.
        exporter: the form of the output.
        facts: what the form has to know of the model.
        trial: with the solver for comparisons.
    """
    step = Step.model_validate(candidate.step([view.name], data=has_inputs(view), trial=trial))
    methods = methods_of(step, facts.headers[view.sources[0]].dtype)
    structure = (
        exporter.restricted(methods.structure) if isinstance(exporter, RestrictsGrids) else methods.structure
    )
    try:
        if isinstance(structure, DependsOnShape):
            structure = structure.for_shape(view.shape)
        layout = structure.layout(view.shape)
    except (StaysDense, ValueError):
        return None
    return PlannedWeight(view, 0, replace(methods, structure=structure), layout, layout, {})


def objection(
    weights: Sequence[PlannedWeight], runtime: Runtime, exporter: Exporter, facts: Facts
) -> str | None:
    """Why a runtime cannot run these weights, in words; None where it can."""
    if reason := exporter.objection(weights, facts):
        return reason
    if not runtime.packs_embeddings and any(weight.view.kind == "embedding" for weight in weights):
        return "its loader reads packed embeddings beside weights of one scheme alone"
    if runtime.server and runtime.server not in servers_of(runtime.format, weights):
        return f"{runtime.name} has no kernel for it"
    return None


def has_inputs(view: WeightView) -> bool:
    """Whether the inputs of a weight are gathered: those of the decoder blocks are, experts' apart."""
    return view.block is not None and view.kind in ("linear", "conv1d")


def _groups(bits: int, columns: int) -> tuple[int | str, ...]:
    fitting = [size for size in _GROUPS if columns % size == 0]
    if not fitting:
        return ("channel",)
    if bits <= _FEW_CODES:
        return tuple(fitting)
    return tuple(dict.fromkeys((fitting[0], fitting[-1]) if bits == _FEW_CODES + 1 else fitting[-1:]))


def _integer(bits: int, group: int | str, symmetric: bool) -> Candidate:
    quantize = {"bits": bits, "group_size": group, "symmetric": symmetric}
    # With few codes the range matters more than anything else; with many a trial does without its search.
    ratios = [1.0] if bits > _FEW_CODES else [1.0, 0.88, 0.76]
    short = {"name": "gptq", "clip_ratios": ratios}
    return Candidate(f"int{bits}-{_spread(group)}", {"quantize": quantize}, ("gptq",), (short,), len(ratios))


def _native(view: WeightView) -> tuple[Candidate, ...]:
    """What only Compress runs, or runs beside integers; each is between two and three and a half bits a number."""
    columns = view.shape[1]
    blocks = [_ggml(name) for name in ("q2_k", "q3_k") if columns % BLOCK_TYPES[name].block == 0]
    masked = [_half_of_three_bits(_groups(_FEW_CODES + 2, columns)[-1])] if has_inputs(view) else []
    return (*([_FACTORS] if has_inputs(view) else []), *masked, *blocks)


_FACTORS = Candidate(
    "rank50-int4",
    {"lowrank": {"ratio": 0.5, "bits": 4}},
    ("weighted_svd",),
    ("weighted_svd",),
    _SEARCHED_COST,
)
"""Factors of half of the parameters, in four bits: two bits a number with their scales, a little less than two-bit integers."""


def _half_of_three_bits(group: int | str) -> Candidate:
    """Half of the elements, in three bits: with its mask little more than two-bit integers of small groups, and nearer."""
    quantize = {"bits": 3, "group_size": group, "symmetric": False}
    short = {"name": "awp", "steps": 10, "refit": 30}
    keys = {"prune": {"sparsity": 0.5}, "quantize": quantize}
    return Candidate(
        f"sparse50-int3-{_spread(group)}", keys, ("awp", "sparsegpt"), (short, "sparsegpt"), _MASK_COST
    )


def _spread(group: int | str) -> str:
    """What shares a scale, in a label: labels with the same letters mean the same keys."""
    return f"g{group}" if isinstance(group, int) else group


def _ggml(name: str) -> Candidate:
    short = {"name": "gptq", "clip_ratios": [1.0]}
    return Candidate(name, {"quantize": {"type": name}}, ("gptq",), (short,), _SEARCHED_COST)


def exporter_of(runtime: Runtime) -> Exporter:
    """The form that a runtime reads."""
    exporter: Exporter = find("exporter", runtime.format)()
    return exporter
