"""The search for the best model within a budget of bytes: candidates, their losses, an allocation, and its recipe.

The result is an ordinary recipe; :mod:`compress.pipeline.steps` carries it out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.allocate.candidate_losses import JUDGED, candidate_losses, losses_of
from compress.allocate.cost import SearchSize
from compress.allocate.divergence import DivergenceMeter
from compress.allocate.kernel_times import TimeLimit, kernel_times
from compress.allocate.multiple_choice import DoesNotFit
from compress.allocate.problem import BudgetProblem
from compress.allocate.refine import Refined, refine
from compress.allocate.slopes import measured_losses, measured_removals, measured_slopes
from compress.allocate.trial_weights import Allocation, Losses, TrialWeights
from compress.checkpoint.output import sync
from compress.errors import UserError
from compress.models.skeleton import Skeleton
from compress.pipeline.budget_space import Space, overhead_of, plan_of, within_time
from compress.pipeline.calibration import (
    check_calibration_text,
    check_text_alone,
    check_weights_stay,
    draw_corpus,
    fit_recipe,
)
from compress.planning.plan import Plan
from compress.recipe.recipe import Recipe
from compress.recipe.runtimes import TRIALS
from compress.system.progress import Progress, Silent

_WINDOWS, _HELD_OUT, _LENGTH = 16, 8, 512
"""Windows of the pass, held-out windows, and tokens in each, at most."""


@dataclass(frozen=True)
class SearchSettings:
    """What a search is asked for.

    Attributes:
        runtime: a name of :data:`compress.recipe.runtimes.RUNTIMES`, or ``auto``: transformers where it can run a model of
            the budget, and Compress itself where not.
        calibrate: the recipe's calibration data, as plain data.
        device: where blocks run.
        dtype: what they are computed in.
        seed: for all that is drawn.
        trials: allocations that the refinement measures.
        time: what a decoding step may take; None for no limit.
    """

    runtime: str
    calibrate: Mapping[str, Any]
    device: torch.device
    dtype: torch.dtype
    seed: int
    trials: int = TRIALS
    time: TimeLimit | None = None


@dataclass(frozen=True)
class Measured:
    """What a pass over the model has shown: enough to allocate any budget.

    Attributes:
        trials: the trial weights.
        losses: unit → candidate → nats a token.
        slopes: group of units → measured over predicted loss.
        removals: block → loss without it, of the blocks that may be left out.
        meter: of the true divergence.
    """

    trials: TrialWeights
    losses: Losses
    slopes: Mapping[str, float]
    removals: Mapping[int, float]
    meter: DivergenceMeter

    def problem(self, space: Space, time: TimeLimit | None = None) -> BudgetProblem:
        """The allocation as a knapsack."""
        blocks = len(space.skeleton.blocks)
        # Experts are scored with all blocks in place: where some of them go, all blocks stay.
        removals = self.removals if space.experts is None else {}
        problem = BudgetProblem(
            space.units, self.losses, space.overhead, blocks, self.slopes, removals=removals
        )
        return problem if time is None else within_time(problem, time)


@dataclass(frozen=True)
class Found:
    """The result of a search.

    Attributes:
        recipe: makes the model, without a search.
        plan: of it, to the byte.
        budget: bytes that were allowed.
        allocation: unit → the label of its candidate.
        figures: plain data for the report.
    """

    recipe: Recipe
    plan: Plan
    budget: int
    allocation: Mapping[str, str]
    figures: Mapping[str, Any] = field(default_factory=dict)


def measure(
    space: Space, settings: SearchSettings, bits: float, folder: Path, progress: Progress | None = None
) -> Measured:
    """The pass over the model: losses of all candidates, and probes of the true divergence; goes on where it was stopped.

    Args:
        space: what can become of the model.
        settings: of the search.
        bits: that a number takes about, for the probes.
        folder: for trial weights, figures and hidden states.
        progress: told what is being done.

    Raises:
        UserError: the model cannot be run block by block, or has no next-token loss.
    """
    listener = progress or Silent()
    skeleton = space.skeleton
    check_weights_stay(skeleton)
    base = base_recipe(settings.calibrate)
    check_text_alone(base)
    seen, held_out = windows_of(skeleton, base, settings.seed)
    options: dict[str, Any] = {"device": settings.device, "dtype": settings.dtype, "folder": folder}
    kept = folder / "measured.json"
    meter = DivergenceMeter(
        skeleton, TrialWeights(folder, space.units), held_out, **options, whole=space.whole
    )
    if not kept.is_file():
        listener.step("reference")
        meter.prepare()
    listener.step("losses of candidates")
    trials = candidate_losses(skeleton, space.units, seen, seed=settings.seed, **options)
    losses = losses_of(trials, len(skeleton.blocks))
    if not kept.is_file():
        listener.step("probes")
        outside = [unit for unit in space.units if unit.name not in losses]
        measured = measured_losses(meter, outside)
        problem = BudgetProblem(space.units, {**losses, **measured}, space.overhead, len(skeleton.blocks))
        removals = measured_removals(meter, space.units, trials)
        slopes = measured_slopes(meter, problem, bits)
        _write(kept, {"losses": measured, "slopes": slopes, "removals": removals})
    known = json.loads(kept.read_text(encoding="utf-8"))
    removals = {int(block): loss for block, loss in known["removals"].items()}
    return Measured(trials, {**losses, **known["losses"]}, known["slopes"], removals, meter)


def divergence_of(space: Space, settings: SearchSettings, folder: Path) -> float:
    """Divergence of a model with fewer experts from the whole one on the held-out windows, in nats a token.

    Args:
        space: of the model with fewer experts.
        settings: of the search.
        folder: for the figure, which is read where it was measured before, and hidden states.
    """
    kept = folder / "removal.json"
    if not kept.is_file():
        _, held_out = windows_of(space.skeleton, base_recipe(settings.calibrate), settings.seed)
        options: dict[str, Any] = {"device": settings.device, "dtype": settings.dtype, "folder": folder}
        meter = DivergenceMeter(
            space.skeleton, TrialWeights(folder, space.units), held_out, **options, whole=space.whole
        )
        with closing(meter):
            _write(kept, {"kl": meter.mean({})})
    return float(json.loads(kept.read_text(encoding="utf-8"))["kl"])


def find_allocation(
    space: Space,
    measured: Measured,
    settings: SearchSettings,
    budget: int,
    text: str,
    folder: Path,
    progress: Progress | None = None,
) -> Found:
    """The best allocation of a budget; read from ``folder`` where it was found before.

    Args:
        space: what can become of the model.
        measured: what a pass has shown.
        settings: of the search.
        budget: bytes of the weight files.
        text: the budget as it was written.
        folder: for what was found.
        progress: told what is being done.

    Raises:
        UserError: no allocation fits; :func:`open_space` has checked that one does.
    """
    kept = folder / f"allocation-{budget}.json"
    if not kept.is_file():
        (progress or Silent()).step("allocation")
        _write(kept, _searched(space, measured, settings, budget))
    data = json.loads(kept.read_text(encoding="utf-8"))
    name, when = (
        f"budget {text}",
        f"Found by a search for {text} ({budget} bytes of weight files), for {space.runtime.name}.",
    )
    recipe = space.recipe(data["allocation"], name, when, settings.calibrate)
    return Found(recipe, plan_of(space, recipe), budget, data["allocation"], data["figures"])


def _searched(space: Space, measured: Measured, settings: SearchSettings, budget: int) -> dict[str, Any]:
    """The allocation of a budget as plain data."""
    problem = measured.problem(space, settings.time)
    # Headers of the allocation that is likely, not of the one with the most tensors; '_within' mends what is too much.
    problem = replace(problem, overhead=overhead_of(space, problem.solve(budget)))
    refined = refine(measured.meter, problem, budget, trials=settings.trials, seed=settings.seed)
    allocation, overhead = _within(space, refined, budget)
    exact = replace(problem, overhead=overhead)
    return {
        "allocation": dict(allocation),
        "figures": {
            "budget": {
                "bytes": budget,
                "runtime": space.runtime.name,
                "predicted_kl": exact.predicted(allocation),
                "measured_kl": measured.meter.mean(allocation),
                "measured_kl_before_refinement": refined.begun_at,
                "allocations_measured": refined.tried,
                "allocations_accepted": refined.accepted,
                **({} if settings.time is None else _time_figures(settings.time, exact, allocation)),
                "slopes": dict(measured.slopes),
                "allocation": dict(allocation),
            }
        },
    }


def _within(space: Space, refined: Refined, budget: int) -> tuple[Allocation, int]:
    """The allocation, or one that is a little smaller, whose plan is within the budget to the byte; its overhead."""
    allocation, problem = refined.allocation, refined.problem
    for _ in range(8):
        overhead = overhead_of(space, allocation)
        excess = replace(problem, overhead=overhead).nbytes(allocation) - budget
        if excess <= 0:
            return allocation, overhead
        problem = replace(problem, overhead=problem.overhead + excess)
        try:
            allocation = problem.solve(budget)
        except DoesNotFit:
            break
    raise UserError(
        f"No allocation has {budget} bytes or fewer; the smallest model takes {space.smallest} bytes."
    )


def _time_figures(time: TimeLimit, problem: BudgetProblem, allocation: Allocation) -> dict[str, Any]:
    return {
        "seconds_allowed": time.seconds,
        "seconds_predicted": problem.predicted_seconds(allocation),
        "seconds_on": kernel_times(time.device).device,
    }


def windows_of(skeleton: Skeleton, base: Recipe, seed: int) -> tuple[Tensor, Tensor]:
    """Calibration windows of the pass, and held-out ones: those that share the fewest runs of eight tokens with them.

    Returns:
        Two int64 ``[samples, length]``.
    """
    fitted, _ = fit_recipe(base, skeleton)
    length = min(_LENGTH, fitted.calibrate.length)
    fitted = fitted.with_settings({"calibrate.length": length})
    seen = draw_corpus(
        skeleton, fitted.with_settings({"calibrate.samples": min(_WINDOWS, base.calibrate.samples)}), seed
    )
    others = draw_corpus(
        skeleton, fitted.with_settings({"calibrate.samples": 4 * _HELD_OUT}), seed + 1
    ).tokens
    runs = {tuple(run) for row in seen.tokens.tolist() for run in _runs(row)}
    shared = [sum(tuple(run) in runs for run in _runs(row)) for row in others.tolist()]
    order = sorted(range(len(others)), key=lambda index: (shared[index], index))
    return seen.tokens, others[order[:_HELD_OUT]]


def check_search_text(skeleton: Skeleton, calibrate: Mapping[str, Any]) -> None:
    """Refuse a text that is too short for the run behind the search, whose windows are the longer ones.

    Raises:
        UserError: it is.
    """
    fitted, _ = fit_recipe(base_recipe(calibrate), skeleton)
    check_calibration_text(skeleton, fitted)


def search_size(skeleton: Skeleton, calibrate: Mapping[str, Any], trials: int) -> SearchSize:
    """How many tokens a search and its run look at."""
    fitted, _ = fit_recipe(base_recipe(calibrate), skeleton)
    wanted = fitted.calibrate
    length = min(_LENGTH, wanted.length)
    seen = min(_WINDOWS, wanted.samples) * length
    return SearchSize(
        seen, min(seen // 4, JUDGED), _HELD_OUT * length, trials, wanted.samples * wanted.length
    )


def _runs(row: list[int], length: int = 8) -> Iterator[list[int]]:
    return (row[start : start + length] for start in range(1, len(row) - length + 1))


def base_recipe(calibrate: Mapping[str, Any]) -> Recipe:
    """A recipe with the calibration data alone, for the functions that draw windows."""
    return Recipe.parse(
        {
            "name": "budget",
            "calibrate": dict(calibrate),
            "steps": [{"quantize": {"bits": 8, "group_size": "channel"}}],
        }
    )


def _write(path: Path, data: Mapping[str, Any]) -> None:
    """Write a file that is either whole or not there."""
    partial = path.with_suffix(".new")
    partial.write_text(json.dumps(data), encoding="utf-8")
    sync(partial)
    partial.rename(path)
