"""A pass over the dense model before solving: what gradients tell of every weight, and ranks by layer.

Statistics of gradients are as large as the weights themselves. They go to one file for each block, and come back when
that block is solved.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from compress.allocate.rank_curves import Ranking, rules_of, shared_factor
from compress.allocate.sparsities import Importances, allocate_sparsities, importances
from compress.calibrate.gradient_store import block_file, gradient_moments
from compress.calibrate.stream import BlockStream
from compress.models.skeleton import Skeleton
from compress.planning.plan import Choices, Plan, PlannedWeight
from compress.score.fisher import Fisher
from compress.score.fisher_diagonal import FisherSaliency
from compress.score.saliency import WandaSaliency
from compress.score.statistics import GRADIENT_NEEDS, Statistics


@dataclass(frozen=True)
class Sensitivity:
    """What was found.

    Attributes:
        folder: one safetensors file for each block, with the moments of its gradients.
        ranks: weight → its rank, and what goes with it, ``None`` to leave it whole; only weights whose ranks were to be found.
        sparsities: weight → the share of its elements to leave out; only where that was to be found.
        figures: plain data for the report.
    """

    folder: Path | None = None
    ranks: Choices = field(default_factory=dict)
    sparsities: Mapping[str, float] = field(default_factory=dict)
    figures: Mapping[str, Any] = field(default_factory=dict)

    def complete(
        self, planned: PlannedWeight, seen: Statistics, device: torch.device | str = "cpu"
    ) -> Statistics:
        """``seen`` with the moments of gradients that the weight's methods ask for, and the factor that it shares."""
        if self.folder is None:
            return seen
        given: dict[str, Any] = dict(shared_factor(self.folder, planned, device))
        seen = replace(seen, **given)
        if not planned.needs & GRADIENT_NEEDS:
            return seen
        assert planned.view.block is not None
        path = block_file(self.folder, planned.view.block)
        with safe_open(path, framework="pt", device=str(device)) as file:
            prefix = f"{planned.name}/"
            found = {
                key.removeprefix(prefix): file.get_tensor(key)
                for key in file.keys()  # noqa: SIM118
                if key.startswith(prefix)
            }
        # Where no inputs were asked for, the gradients' batches say that something was seen.
        tokens = seen.tokens if planned.needs - GRADIENT_NEEDS else 1
        return replace(seen, tokens=tokens, **found)


def input_needs(plan: Plan) -> dict[str, frozenset[str]]:
    """Weight → what is to be gathered of its inputs while solving: all but what the sensitivity pass tells."""
    return {name: needs - GRADIENT_NEEDS for name, needs in plan.needs.items()}


def chooses_sizes(plan: Plan) -> bool:
    """Whether the sizes of ``plan`` are only known after a sensitivity pass."""
    return bool(rules_of(plan)) or bool(_spread(plan))


def needs_sensitivity_pass(plan: Plan) -> bool:
    """Whether ``plan`` can only be made final, or carried out, after a sensitivity pass."""
    return any(_gradient_needs(plan).values()) or chooses_sizes(plan)


@contextmanager
def sensitivity_pass(
    skeleton: Skeleton,
    plan: Plan,
    tokens: Tensor,
    *,
    device: torch.device,
    dtype: torch.dtype,
    seed: int,
    near: Path,
    keep: Path | None = None,
) -> Iterator[Sensitivity]:
    """The sensitivity pass that ``plan`` (with uniform ranks) asks for; its files live in ``near`` as long as the context.

    What gradients tell stays in ``keep``, for other sensitivity passes of the same model and data.

    Raises:
        UserError: gradients that are not finite, or a model that they cannot be followed through.
    """
    near.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".sensitivity-", dir=near) as name:
        folder = Path(name)
        allocated, spread = rules_of(plan), _spread(plan)
        needs = _gradient_needs(plan)
        seen_importances: dict[str, Importances] = {}
        ranking = Ranking(skeleton, plan, folder, allocated)
        if any(needs.values()):
            options: Any = {"device": device, "seed": seed, "folder": folder, "keep": keep}
            for index, found in gradient_moments(skeleton, tokens, needs, **options):
                ranked = [w for w in plan.block(index) if allocated.get(w.name) == "fisher"]
                ranking.take(index, ranked, found, lambda _: Fisher(inputs="dense", damping=0.0))
                for weight in plan.block(index):
                    if spread.get(weight.name) == "fisher":
                        seen_importances[weight.name] = _importances(
                            skeleton, plan, weight, FisherSaliency(), found[weight.name]
                        )
        sensitivity = Sensitivity(folder)
        if set(allocated.values()) - {"fisher"}:
            _forward(ranking, sensitivity, tokens, device, dtype)
        if set(spread.values()) & {"owl", "global"}:
            seen_importances |= _forward_importances(
                skeleton, plan, spread, sensitivity, tokens, device, dtype
            )
        sparsities = _sparsities(plan, seen_importances, spread)
        ranks = ranking.choices()
        figures = {"ranks": ranking.figures(ranks), **({"sparsities": sparsities} if sparsities else {})}
        yield replace(sensitivity, ranks=ranks, sparsities=sparsities, figures=figures)


def _forward(
    ranking: Ranking, sensitivity: Sensitivity, tokens: Tensor, device: torch.device, dtype: torch.dtype
) -> None:
    """What ranks lose in the weights' own scores, block by block of the dense model."""
    skeleton, plan = ranking.skeleton, ranking.plan
    with BlockStream(skeleton, tokens, device=device, dtype=dtype, spill_dir=sensitivity.folder) as stream:
        stream.prepare()
        for index in range(len(skeleton.blocks)):
            skeleton.load_block(index, device=device, dtype=dtype)
            wanted = [w for w in plan.block(index) if ranking.rules.get(w.name, "fisher") != "fisher"]
            # Nothing is compressed yet: there is no other set of inputs to hold these against.
            needs = {name: own - {"cross"} for name, own in input_needs(plan).items()}
            seen = stream.observe(index, needs, only={w.name for w in wanted})
            complete = {
                w.name: sensitivity.complete(w, seen.get(w.name, Statistics()), device) for w in wanted
            }
            ranking.take(index, wanted, complete, lambda weight: weight.methods.score)
            if index < len(skeleton.blocks) - 1:
                stream.advance(index)
            skeleton.release_block(index)


def _forward_importances(
    skeleton: Skeleton,
    plan: Plan,
    spread: Mapping[str, str],
    sensitivity: Sensitivity,
    tokens: Tensor,
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, Importances]:
    """Wanda's importances of the weights, block by block of the dense model."""
    found: dict[str, Importances] = {}
    saliency = WandaSaliency()
    with BlockStream(skeleton, tokens, device=device, dtype=dtype, spill_dir=sensitivity.folder) as stream:
        stream.prepare()
        for index in range(len(skeleton.blocks)):
            skeleton.load_block(index, device=device, dtype=dtype)
            wanted = [w for w in plan.block(index) if spread.get(w.name) in ("owl", "global")]
            needs = {weight.name: saliency.needs for weight in wanted}
            seen = stream.observe(index, needs) if wanted else {}
            for weight in wanted:
                found[weight.name] = _importances(skeleton, plan, weight, saliency, seen[weight.name])
            if index < len(skeleton.blocks) - 1:
                stream.advance(index)
            skeleton.release_block(index)
    return found


def _importances(
    skeleton: Skeleton, plan: Plan, weight: PlannedWeight, saliency: Any, statistics: Statistics
) -> Importances:
    dense = weight.view.get(skeleton.parameter_of(weight.view).detach()).float()
    settings = plan.recipe.steps[weight.step].prune
    assert settings is not None and settings.sparsity is not None
    return importances(weight.view.block or 0, settings.sparsity, saliency.importance(dense, statistics, 0))


def _spread(plan: Plan) -> dict[str, str]:
    """Weight → the rule that its sparsity follows: ``owl``, ``fisher`` or ``global``; uniform ones do not appear."""
    rules: dict[str, str] = {}
    for weight in plan.weights:
        settings = plan.recipe.steps[weight.step].prune
        if settings is None or weight.view.block is None:
            continue
        rule = "global" if settings.scope == "global" else settings.allocate
        if rule != "uniform":
            rules[weight.name] = rule
    return rules


def _sparsities(plan: Plan, found: Mapping[str, Importances], spread: Mapping[str, str]) -> dict[str, float]:
    """Step by step: each has its own share to spread."""
    chosen: dict[str, float] = {}
    for step in range(len(plan.recipe.steps)):
        own = {w.name: found[w.name] for w in plan.weights if w.step == step and w.name in found}
        if own:
            rule = "owl" if spread[next(iter(own))] == "owl" else "threshold"
            chosen |= allocate_sparsities(own, rule)
    return chosen


def _gradient_needs(plan: Plan) -> dict[str, frozenset[str]]:
    rules = rules_of(plan)
    extra = {name: frozenset({"output_gradients"}) for name, rule in rules.items() if rule == "fisher"}
    extra |= {
        name: frozenset({"squared_gradient"}) for name, rule in _spread(plan).items() if rule == "fisher"
    }
    inside = {weight.name for weight in plan.weights if weight.view.block is not None}
    return {
        name: (needs & GRADIENT_NEEDS) | extra.get(name, frozenset())
        for name, needs in plan.needs.items()
        if name in inside
    }
