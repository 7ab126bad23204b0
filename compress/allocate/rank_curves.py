"""Loss against rank for each weight, alone and together with others that read the same inputs (a shared factor)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from compress_kernels.layouts import nbytes
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from compress.allocate.knapsack import Curve, curve
from compress.allocate.shared_factors import Group, allocate_shared
from compress.linalg.weighted_svd import as_kron, common_inputs
from compress.models.skeleton import Skeleton
from compress.planning.plan import Choices, Plan, PlannedWeight
from compress.score.base import Score
from compress.score.metric import Metric
from compress.score.statistics import Statistics
from compress.solvers.base import Problem
from compress.structures.choices import Choice, Option, along_ranks
from compress.structures.low_rank.factors import Factors
from compress.structures.low_rank.sums import FactorsAnd

FACTORS_ALONE = Choice(0, columns=0, sparsity=1.0)
"""Weights that share a factor keep nothing beside it, whatever else their structure would allow."""

ScoreOf = Callable[[PlannedWeight], Score]


def rules_of(plan: Plan) -> dict[str, str]:
    """Weight → the rule that its rank follows; those of uniform ranks do not appear."""
    rules: dict[str, str] = {}
    for weight in plan.weights:
        settings = plan.recipe.all_steps[weight.step].lowrank
        if settings is not None and settings.allocate != "uniform" and weight.view.block is not None:
            rules[weight.name] = settings.allocate
    return rules


@dataclass
class Ranking:
    """Fed block by block; ``folder`` takes a file for each block that has weights which could share a factor.

    Attributes:
        curves: weight → what its ranks take and lose.
        groups: weights that could share, by step and rule.
    """

    skeleton: Skeleton
    plan: Plan
    folder: Path
    rules: Mapping[str, str]
    curves: dict[str, Curve] = field(default_factory=dict)
    groups: list[Group] = field(default_factory=list)

    def take(
        self, block: int, weights: Iterable[PlannedWeight], seen: Mapping[str, Statistics], score_of: ScoreOf
    ) -> None:
        """Look at the loaded ``block``: those of its ``weights`` that ``seen`` tells of, in their scores."""
        metrics: dict[str, tuple[PlannedWeight, Metric]] = {}
        for weight in weights:
            metrics[weight.name] = weight, score_of(weight).metric(seen[weight.name])
            self.curves[weight.name] = self._curve(*metrics[weight.name], seen[weight.name])
        shared: dict[str, Tensor] = {}
        for members in self._alike(metrics):
            group, tensors = self._group(members)
            self.groups.append(group)
            shared |= tensors
        if shared:
            save_file(shared, str(_path(self.folder, block)))

    def choices(self) -> Choices:
        """By rule; each has its own bytes to spread."""
        found: dict[str, Choice | None] = {}
        for rule in sorted(set(self.rules.values())):
            own = {name: one for name, one in self.curves.items() if self.rules[name] == rule}
            groups = [group for group in self.groups if self.rules[group.members[0]] == rule]
            found |= allocate_shared(own, groups, rule)
        return found

    def figures(self, choices: Choices) -> dict[str, Any]:
        """Plain data for a report: bytes by the recipe's own settings, and what was chosen."""
        return {
            name: {
                "uniform": one.uniform,
                "chosen": None if (choice := choices[name]) is None else choice.to_json(),
            }
            for name, one in self.curves.items()
        }

    def _curve(self, weight: PlannedWeight, metric: Metric, statistics: Statistics) -> Curve:
        solver: Any = weight.methods.solvers[-1]
        dense = self._dense(weight)
        problem = Problem(dense, weight.methods.structure, metric, statistics)
        total = metric.loss(dense)
        unit = self._unit(weight, total)
        return curve(
            [replace(option, loss=option.loss / unit) for option in solver.options(problem)],
            uniform=self._budget(weight),
            whole=self._whole(weight),
            total=total / unit,
            # Experts are stored and run together: all of them packed, or none.
            stays=weight.view.kind != "expert",
        )

    def _alike(
        self, metrics: Mapping[str, tuple[PlannedWeight, Metric]]
    ) -> list[list[tuple[PlannedWeight, Metric]]]:
        """Weights of one step that read the same inputs, as their metrics agree, and whose recipe lets them share."""
        found = []
        views = [weight.view for weight, _ in metrics.values() if self._may_share(weight)]
        for group in self.skeleton.fused_groups(views):
            members = [metrics[view.name] for view in group]
            rights = [as_kron(metric).right.matrix for _, metric in members]
            same = all(_equal(right, rights[0]) for right in rights[1:])
            if same and len({weight.step for weight, _ in members}) == 1:
                found.append(members)
        return found

    def _may_share(self, weight: PlannedWeight) -> bool:
        settings = self.plan.recipe.all_steps[weight.step].lowrank
        linear = weight.view.kind in ("linear", "conv1d")
        return settings is not None and settings.share and linear

    def _group(self, members: Sequence[tuple[PlannedWeight, Metric]]) -> tuple[Group, dict[str, Tensor]]:
        names = tuple(weight.name for weight, _ in members)
        # Scaled so that a loss is in the unit in which it will be added to others.
        dense = [
            self._dense(weight) / self._unit(weight, metric.loss(self._dense(weight))) ** 0.5
            for weight, metric in members
        ]
        right, values = common_inputs(dense, [metric for _, metric in members])
        options = _together([weight for weight, _ in members], values.cpu())
        own = [self.curves[name] for name in names]
        together = curve(
            options,
            uniform=sum(one.uniform for one in own),
            whole=sum(one.whole for one in own),
            total=sum(one.total for one in own),
        )
        tensors = {"input_factor": right.float(), "input_values": values.float()}
        return Group(names, together), {
            f"{names[0]}/{key}": t.cpu().contiguous() for key, t in tensors.items()
        }

    def _dense(self, weight: PlannedWeight) -> Tensor:
        return weight.view.get(self.skeleton.parameter_of(weight.view).detach()).float()

    def _unit(self, weight: PlannedWeight, total: float) -> float:
        """What a loss is divided by: by Fisher, nothing; else it is told as a share of losing all."""
        return total if self.rules[weight.name] != "fisher" and total > 0 else 1.0

    def _budget(self, weight: PlannedWeight) -> int:
        """The bytes that the recipe gives a weight: its ratio before ranks are rounded down, and the residual's."""
        structure: Any = weight.methods.structure
        shape, rounded = weight.view.shape, nbytes(weight.layout, weight.view.shape)
        factors: Factors = structure if isinstance(structure, Factors) else structure.factors
        if factors.ratio is None or factors.storage.grid is not None:
            return rounded
        residual = structure.residual.layout(shape) if isinstance(structure, FactorsAnd) else None
        size = 0 if residual is None else nbytes(residual, shape)
        return max(rounded, int(factors.ratio * self._whole(weight)) + size)

    def _whole(self, weight: PlannedWeight) -> int:
        return weight.numel * self.plan.facts.headers[weight.view.sources[0]].dtype.itemsize


def shared_factor(folder: Path, planned: PlannedWeight, device: torch.device | str) -> dict[str, Tensor]:
    """What a weight's share of a factor takes: fields of :class:`Statistics`; none if it has none."""
    if not getattr(planned.methods.structure, "shared", False):
        return {}
    assert planned.view.block is not None
    owner = planned.input_from or planned.name
    with safe_open(_path(folder, planned.view.block), framework="pt") as file:
        return {key: file.get_tensor(f"{owner}/{key}").to(device) for key in ("input_factor", "input_values")}


def _together(weights: Sequence[PlannedWeight], values: Tensor) -> list[Option]:
    """Every rank of the factor that ``weights`` have in common: it counts once, and the left ones by themselves."""
    structure = _Loose(weights[0].methods.structure)
    inputs = weights[0].view.shape[1]
    found = []
    for option in along_ranks(values, structure, (inputs, inputs), FACTORS_ALONE):
        choice = option.choice
        layouts = [structure.chosen(choice).layout(w.view.shape) for w in weights]
        size = sum(nbytes(each, w.view.shape) for each, w in zip(layouts, weights, strict=True))
        size -= (len(weights) - 1) * nbytes(layouts[0].right, (choice.rank, inputs))
        found.append(replace(option, nbytes=size))
    return found


@dataclass(frozen=True)
class _Loose:
    """Ranks up to the inputs, however many outputs there are."""

    structure: Any

    def chosen(self, choice: Choice) -> Any:
        return self.structure.chosen(replace(choice, shared=""))

    def rank_of(self, shape: tuple[int, int]) -> int:
        rank: int = self.structure.rank_of(shape)
        return rank


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return one is other or torch.equal(one, other)


def _path(folder: Path, block: int) -> Path:
    return folder / f"{block}.shared.safetensors"
