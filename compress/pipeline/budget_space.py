"""All that can become of a model within a budget, from headers and configuration alone."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from compress.allocate.allocation_recipe import allocation_recipe
from compress.allocate.amounts import Amount, ModelSize, bytes_of, cache_bytes_of
from compress.allocate.candidates import DENSE
from compress.allocate.kernel_times import TimeLimit, kernel_times, predicted_seconds
from compress.allocate.multiple_choice import DoesNotFit
from compress.allocate.narrow_trials import smallest_labels
from compress.allocate.problem import BudgetProblem, least_seconds
from compress.allocate.trial_weights import Allocation
from compress.allocate.units import GONE, Unit, find_units
from compress.checkpoint.source import Source
from compress.errors import UserError
from compress.models.skeleton import Skeleton, open_skeleton
from compress.planning.make import facts_of, make_plan
from compress.planning.plan import Plan
from compress.prune.block_removal import renumbered_names, without_blocks
from compress.prune.experts import RoutedExperts, first_experts, routed_experts
from compress.prune.narrow import with_narrow
from compress.prune.width import parts_of, width_of
from compress.recipe.recipe import Recipe
from compress.recipe.runtimes import AUTO, RUNTIMES, Runtime, find_runtime
from compress.system.units import in_bytes

_LOG = logging.getLogger(__name__)

SHARES = (0.75, 0.5)
"""Shares of the routed experts of a mixture that may stay."""


@dataclass(frozen=True)
class Space:
    """All that can become of a model, from headers and configuration alone.

    Attributes:
        skeleton: the model.
        runtime: what the output is for.
        units: its weights and their candidates.
        overhead: bytes of the output's weight files beside the units.
        size: of the source.
        experts: share of the routed experts that the model was left with; None for all.
        experts_by: how it came to fewer, as recipes say it.
        whole: the model with all of them; None where it is ``skeleton``.
    """

    skeleton: Skeleton
    runtime: Runtime
    units: tuple[Unit, ...]
    overhead: int
    size: ModelSize
    experts: float | None = None
    experts_by: str = "reap"
    whole: Skeleton | None = None

    @property
    def smallest(self) -> int:
        """Bytes of the smallest output."""
        labels = smallest_labels(self.units)
        return self.overhead + sum(unit.choice(labels[unit.name]).nbytes for unit in self.units)

    def recipe(self, allocation: Allocation, name: str, when: str, calibrate: Mapping[str, Any]) -> Recipe:
        """The recipe of an allocation.

        Raises:
            ValueError: it leaves the model as it is.
        """
        recipe = allocation_recipe(
            self.units,
            allocation,
            self.runtime,
            name=name,
            when=when,
            calibrate=calibrate,
            views=self.skeleton.views,
            renamed=_renamed(self, allocation),
            experts=self.experts,
            experts_by=self.experts_by,
        )
        if recipe is None:
            raise ValueError("the allocation compresses nothing")
        return recipe


def open_space(source: Source, runtime: str, amount: Amount) -> tuple[Space, int]:
    """What can become of a model, and the bytes of a budget.

    Raises:
        UserError: the runtime can run no candidate, or the budget is below the smallest output; the sentence names it.
    """
    skeleton = open_skeleton(source)
    size = model_size(skeleton)
    budget = bytes_of(amount, size)
    if runtime != AUTO:
        space = space_of(skeleton, find_runtime(runtime), size)
        if budget < space.smallest and budget < (least := smallest_of(space)):
            raise UserError(f"{_too_small(budget, space, least)}{_elsewhere(skeleton, space, size, budget)}.")
        return space, budget
    refusals = []
    for name in ("transformers", "native"):
        try:
            space = space_of(skeleton, RUNTIMES[name], size)
        except UserError as error:
            refusals.append(str(error))
            continue
        if budget >= space.smallest or budget >= (least := smallest_of(space)):
            return space, budget
        refusals.append(f"{_too_small(budget, space, least)}.")
    raise UserError(refusals[-1])


def smallest_of(space: Space) -> int:
    """Bytes of the smallest output, with as few experts as may stay."""
    return min([space.smallest, *(fewer.smallest for _, _, fewer in fewer_experts(space))])


def fewer_experts(space: Space) -> Iterator[tuple[float, RoutedExperts, Space]]:
    """Shares of experts that may stay, the experts, and what can become of a model with as many, by its shapes alone."""
    seen = set()
    for share in SHARES:
        try:
            routed = routed_experts(space.skeleton, share)
        except UserError:  # no mixture, or stored in a way that is not cut
            return
        if routed.prunes and routed.kept not in seen:
            seen.add(routed.kept)
            skeleton = open_skeleton(first_experts(space.skeleton, routed))
            yield share, routed, replace(space_of(skeleton, space.runtime, space.size), experts=share)


def is_copy(space: Space, budget: int, time: TimeLimit | None = None) -> bool:
    """Whether the model as it is fits the budget, and is fast enough."""
    if budget < space.size.nbytes or time is None:
        return budget >= space.size.nbytes
    seconds = predicted_seconds(space.units, kernel_times(time.device))
    return sum(seconds[unit.name].get(DENSE, math.inf) for unit in space.units) <= time.seconds


def _too_small(budget: int, space: Space, least: int) -> str:
    return (
        f"The budget of {in_bytes(budget)} is below the smallest model for {space.runtime.name}, which takes "
        f"{in_bytes(least)} ({least} bytes); give at least that"
    )


def _elsewhere(skeleton: Skeleton, space: Space, size: ModelSize, budget: int) -> str:
    """The end of a sentence: that Compress itself could run a model of the budget, where it could."""
    if space.runtime.name == "native":
        return ""
    least = smallest_of(space_of(skeleton, RUNTIMES["native"], size))
    return f", or --runtime native, which goes down to {in_bytes(least)}" if budget >= least else ""


def model_size(skeleton: Skeleton) -> ModelSize:
    """What the budget of a model is relative to."""
    source, config = skeleton.source, skeleton.model.config.get_text_config().to_dict()
    positions = config.get("max_position_embeddings")
    return ModelSize(
        sum(file.stat().st_size for file in source.files),
        sum(info.numel for info in source.headers.values()),
        cache_bytes_of(config, skeleton.dtype.itemsize),
        *([positions] if isinstance(positions, int) and positions > 0 else []),
    )


def space_of(skeleton: Skeleton, runtime: Runtime, size: ModelSize) -> Space:
    """All that can become of a model for a runtime.

    Raises:
        UserError: the runtime can run no compressed form of it.
    """
    _LOG.info("listing what %s can run of each weight", runtime.name)
    facts = facts_of(skeleton)
    try:
        units = with_narrow(find_units(skeleton, runtime, facts), skeleton, runtime, facts)
    except UserError as error:
        raise UserError(
            f"{runtime.name} cannot run this model ({error}): choose another --runtime."
        ) from error
    if all(choice.label == DENSE for unit in units for choice in unit.choices):
        refused = sorted((unit.block is None, f" ({unit.refused})") for unit in units if unit.refused)
        reason = refused[0][1] if refused else ""
        raise UserError(
            f"{runtime.name} can run no compressed form of this model{reason}: choose another --runtime."
        )
    space = Space(skeleton, runtime, units, 0, size)
    try:
        return replace(space, overhead=overhead_of(space, smallest_labels(units)))
    except UserError as error:
        reason = str(error).partition("; use format")[0]
        raise UserError(
            f"{runtime.name} cannot run the smallest form of this model ({reason}): choose another --runtime."
        ) from error


def overhead_of(space: Space, allocation: Allocation) -> int:
    """Bytes of an allocation's weight files beside the units: vectors, headers."""
    plan = plan_of(space, space.recipe(allocation, "budget", "", {}))
    return plan.total_bytes - sum(unit.choice(allocation[unit.name]).nbytes for unit in space.units)


def plan_of(space: Space, recipe: Recipe) -> Plan:
    """The plan of an allocation's recipe, to the byte: of the model without the blocks and neurons that it leaves out."""
    skeleton = space.skeleton
    if recipe.depth_pruning is not None and not isinstance(recipe.depth_pruning.blocks, int):
        skeleton = open_skeleton(without_blocks(skeleton, recipe.depth_pruning.blocks))
    if recipe.width_pruning is not None and recipe.width_pruning.counts is not None:
        counts = recipe.width_pruning.counts
        parts = parts_of(skeleton, neuron_share=None, group_share=None, neuron_counts=counts)
        skeleton = open_skeleton(width_of(skeleton, parts))
    return make_plan(skeleton, recipe)


def _renamed(space: Space, allocation: Allocation) -> Callable[[str], str]:
    """What the weights are called where an allocation leaves out blocks."""
    gone = sorted(
        {unit.block for unit in space.units if allocation[unit.name] == GONE and unit.block is not None}
    )
    return renumbered_names(space.skeleton, gone) if gone else lambda name: name


def within_time(problem: BudgetProblem, time: TimeLimit) -> BudgetProblem:
    """The problem with a limit on predicted decode time.

    Raises:
        UserError: a unit has no candidate with a measured kernel, or the model has experts.
    """
    times = kernel_times(time.device)
    seconds = predicted_seconds(problem.units, times)
    if lacking := [name for name, own in seconds.items() if not own]:
        raise UserError(
            f"--time: no kernel was measured on {times.device} for anything that {lacking[0]} can become."
        )
    return replace(problem, seconds=seconds, limit=time.seconds)


def check_time(space: Space, budget: int, time: TimeLimit) -> None:
    """Refuse, before any work, a time that no allocation of a budget keeps.

    Raises:
        UserError: the runtime is not ours, whose kernels alone were measured, or the time is too short; the sentence names one
            that is not.
    """
    if space.runtime.name != "native":
        raise UserError(
            f"--time goes with --runtime native: no kernels of {space.runtime.name} were measured for it."
        )
    none = {unit.name: dict.fromkeys((choice.label for choice in unit.every), 0.0) for unit in space.units}
    problem = within_time(BudgetProblem(space.units, none, space.overhead, len(space.skeleton.blocks)), time)
    try:
        problem.solve(budget)
    except DoesNotFit:
        # Without losses the most seconds that a small budget saves are those of the least limit that can be met.
        least = least_seconds(problem, budget)
        raise UserError(
            f"--time {time.text}: within {in_bytes(budget)} the products of a decoding step take at least "
            f"{1e3 * least:.3g} ms on {kernel_times(time.device).device}; give at least that."
        ) from None
