"""Sensitivity pass: gradient moments of the dense model, and the ranks and sparsities that are chosen before solving.

Gradient moments are as large as the weights. They are written to one file for each block and read when that block is solved.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from compress.allocate.rank_curves import Ranking, rules_of, shared_factor
from compress.allocate.sparsities import Importances, allocate_sparsities, importances
from compress.calibrate.gradient_store import BLOCK_METRIC, BLOCK_WEIGHTS, block_file, gradient_moments
from compress.calibrate.gradients import gradient_windows
from compress.calibrate.stream import BlockStream
from compress.calibrate.walk import walk_blocks
from compress.models.skeleton import Skeleton
from compress.planning.plan import Choices, Plan, PlannedWeight
from compress.recipe.sections import GRADIENT_TOKENS
from compress.score.fisher import Fisher
from compress.score.fisher_diagonal import FisherSaliency
from compress.score.saliency import WandaSaliency
from compress.score.statistics import GRADIENT_NEEDS, Statistics
from compress.system.precision import gradient_dtype
from compress.system.ranks import Ranks


@dataclass(frozen=True)
class Sensitivity:
    """The result of a sensitivity pass.

    Attributes:
        folder: one safetensors file for each block, with its gradient moments.
        ranks: weight → its rank, and what goes with it, ``None`` to leave it whole; only weights whose ranks are chosen.
        sparsities: weight → the share of its elements that are zero; only weights whose sparsities are chosen.
        figures: plain data for the report.
        gradient_tokens: on how many tokens gradients were taken, at most.
    """

    folder: Path | None = None
    ranks: Choices = field(default_factory=dict)
    sparsities: Mapping[str, float] = field(default_factory=dict)
    figures: Mapping[str, Any] = field(default_factory=dict)
    gradient_tokens: int = GRADIENT_TOKENS

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
        with safe_open(path, framework="pt") as file:
            prefix = f"{planned.name}/"
            found = {
                key.removeprefix(prefix): file.get_tensor(key).to(device)
                for key in file.keys()  # noqa: SIM118
                if key.startswith(prefix)
            }
        # Without input statistics one token stands for the batches of the gradients.
        tokens = seen.tokens if planned.needs - GRADIENT_NEEDS else 1
        return replace(seen, tokens=tokens, **found)

    def token_weights(
        self, planned: Iterable[PlannedWeight], windows: tuple[int, int], device: torch.device | str = "cpu"
    ) -> dict[str, Tensor]:
        """How much each token of the calibration windows counts for weights whose score asks for it.

        Args:
            planned: weights of one block.
            windows: number of windows, and tokens in each.
            device: of the result.

        Returns:
            Weight → fp32 ``[samples, length]``; 0 for windows that no gradients were taken on.
        """
        asking = [weight for weight in planned if "token_gradients" in weight.needs]
        if self.folder is None or not asking:
            return {}
        keys = {f"{weight.name}/token_weights": weight.name for weight in asking}
        held = self._held(asking[0].view.block or 0, keys, device)
        spread = {keys[key]: self._spread(seen, windows) for key, seen in held.items()}
        return {name: weights for name, weights in spread.items() if weights is not None}

    def output_costs(
        self, block: int, windows: tuple[int, int], device: torch.device | str = "cpu"
    ) -> tuple[Tensor, Tensor] | None:
        """What an error of a block's output costs, where tokens count by their gradients; ``None`` where that is not known.

        Returns:
            A metric of its features, fp32 ``[hidden, hidden]``, and how much each token counts, ``[samples, length]``.
        """
        if self.folder is None or not block_file(self.folder, block).is_file():
            return None
        held = self._held(block, (BLOCK_METRIC, BLOCK_WEIGHTS), device)
        weights = None if BLOCK_WEIGHTS not in held else self._spread(held[BLOCK_WEIGHTS], windows)
        return None if weights is None else (held[BLOCK_METRIC], weights)

    def _held(self, block: int, keys: Iterable[str], device: torch.device | str) -> dict[str, Tensor]:
        """Those tensors of a block's file that are there."""
        assert self.folder is not None
        with safe_open(block_file(self.folder, block), framework="pt") as file:
            there = set(file.keys())
            return {key: file.get_tensor(key).to(device) for key in keys if key in there}

    def _spread(self, seen: Tensor, windows: tuple[int, int]) -> Tensor | None:
        """Token weights of the gradients' windows as those of all calibration windows, ``[samples, length]``."""
        chosen = gradient_windows(*windows, at_most=self.gradient_tokens).to(seen.device)
        if seen.numel() != len(chosen) * windows[1]:
            return None
        whole = torch.zeros(windows, device=seen.device)
        whole[chosen] = seen.view(len(chosen), windows[1])
        return whole


def input_needs(plan: Plan) -> dict[str, frozenset[str]]:
    """Weight → the statistics of its inputs that are gathered while solving: all but gradient moments."""
    return {name: needs - GRADIENT_NEEDS for name, needs in plan.needs.items()}


def chooses_sizes(plan: Plan) -> bool:
    """Whether the sizes in ``plan`` depend on a sensitivity pass."""
    return bool(rules_of(plan)) or bool(_sparsity_rules(plan))


def needs_sensitivity_pass(plan: Plan) -> bool:
    """Whether ``plan`` needs a sensitivity pass, for its sizes or for its solvers."""
    return any(_gradient_needs(plan).values()) or chooses_sizes(plan)


def sensitivity_pass(
    skeleton: Skeleton,
    plan: Plan,
    tokens: Tensor,
    *,
    device: torch.device,
    dtype: torch.dtype,
    seed: int,
    folder: Path,
    keep: Path | None = None,
    ranks: Ranks | None = None,
) -> Sensitivity:
    """The sensitivity pass that ``plan`` (with uniform ranks) asks for; its files go to ``folder``, which solving reads.

    An interrupted pass continues after the blocks whose files are there. The gradient moments stay in ``keep``, for other
    sensitivity passes of the same model and data. ``ranks`` share the windows that gradients are taken on.

    Raises:
        UserError: gradients that are not finite, or a model that cannot be run block by block.
    """
    work = _Pass(skeleton, plan, folder, rules_of(plan), _sparsity_rules(plan))
    in_dtype = gradient_dtype(dtype, device)
    work.by_gradients(tokens, device=device, dtype=in_dtype, seed=seed, keep=keep, ranks=ranks)
    work.by_inputs(tokens, device=device, dtype=dtype)
    return work.result()


@dataclass
class _Pass:
    """A sensitivity pass, and what it has gathered so far.

    Attributes:
        folder: where its files go.
        rank_rules: weight → the score by which its rank is chosen.
        sparsity_rules: weight → the rule by which its sparsity is chosen.
        importances: weight → what each of its elements is worth.
    """

    skeleton: Skeleton
    plan: Plan
    folder: Path
    rank_rules: Mapping[str, str]
    sparsity_rules: Mapping[str, str]
    importances: dict[str, Importances] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.ranking = Ranking(self.skeleton, self.plan, self.folder, self.rank_rules)

    def by_gradients(self, tokens: Tensor, **options: Any) -> None:
        """Moments of gradients, into files, and the ranks and sparsities that are chosen by them; ``options`` are those of
        :func:`~compress.calibrate.gradient_store.gradient_moments`."""
        needs = _gradient_needs(self.plan)
        if not any(needs.values()):
            return
        calibrate = self.plan.recipe.calibrate
        options |= {
            "folder": self.folder,
            "labels": calibrate.labels,
            "at_most": calibrate.gradient_tokens,
        }
        with gradient_moments(self.skeleton, tokens, needs, **options) as blocks:
            for index, moments in blocks:
                ranked = [w for w in self.plan.block(index) if self.rank_rules.get(w.name) == "fisher"]
                self.ranking.take(index, ranked, moments, lambda _: Fisher(inputs="dense", damping=0.0))
                for weight in self.plan.block(index):
                    if self.sparsity_rules.get(weight.name) == "fisher":
                        self._take_importances(weight, FisherSaliency(), moments[weight.name])

    def by_inputs(self, tokens: Tensor, *, device: torch.device, dtype: torch.dtype) -> None:
        """Ranks and sparsities that are chosen by the inputs of the weights in the dense model."""
        ranks = set(self.rank_rules.values()) - {"fisher"}
        sparsities = set(self.sparsity_rules.values()) - {"fisher"}
        if not ranks and not sparsities:
            return
        with walk_blocks(self.skeleton, tokens, device=device, dtype=dtype, spill_dir=self.folder) as walk:
            for index in walk:
                self._ranks_by_inputs(walk.stream, index, device)
                self._sparsities_by_inputs(walk.stream, index)

    def result(self) -> Sensitivity:
        """The ranks and sparsities by all that was gathered."""
        ranks, sparsities = self.ranking.choices(), self._sparsities()
        figures = {
            "ranks": self.ranking.figures(ranks),
            **({"sparsities": sparsities} if sparsities else {}),
        }
        seen = self.plan.recipe.calibrate.gradient_tokens
        return Sensitivity(
            self.folder, ranks=ranks, sparsities=sparsities, figures=figures, gradient_tokens=seen
        )

    def _ranks_by_inputs(self, stream: BlockStream, index: int, device: torch.device) -> None:
        """What ranks lose in the weights' own scores."""
        weights = [w for w in self.plan.block(index) if self.rank_rules.get(w.name, "fisher") != "fisher"]
        if not weights:
            return
        # Nothing is compressed yet: the inputs of the compressed model are those of the dense one.
        needs = {name: wanted - {"cross"} for name, wanted in input_needs(self.plan).items()}
        statistics = stream.observe(index, needs, only={weight.name for weight in weights})
        gathered = Sensitivity(self.folder)
        complete = {
            weight.name: gathered.complete(weight, statistics.get(weight.name, Statistics()), device)
            for weight in weights
        }
        self.ranking.take(index, weights, complete, lambda weight: weight.methods.score)

    def _sparsities_by_inputs(self, stream: BlockStream, index: int) -> None:
        """Wanda's importances."""
        saliency = WandaSaliency()
        weights = [w for w in self.plan.block(index) if self.sparsity_rules.get(w.name, "fisher") != "fisher"]
        statistics = stream.observe(index, {weight.name: saliency.needs for weight in weights})
        for weight in weights:
            self._take_importances(weight, saliency, statistics[weight.name])

    def _take_importances(
        self, weight: PlannedWeight, saliency: WandaSaliency | FisherSaliency, statistics: Statistics
    ) -> None:
        dense = weight.view.get(self.skeleton.parameter_of(weight.view).detach()).float()
        settings = self.plan.recipe.all_steps[weight.step].prune
        assert settings is not None
        assert settings.sparsity is not None
        self.importances[weight.name] = importances(
            weight.view.block or 0, settings.sparsity, saliency.importance(dense, statistics, 0)
        )

    def _sparsities(self) -> dict[str, float]:
        """Weight → its sparsity; every step has a mean sparsity of its own to keep."""
        chosen: dict[str, float] = {}
        for step in range(len(self.plan.recipe.all_steps)):
            names = [w.name for w in self.plan.weights if w.step == step and w.name in self.importances]
            if names:
                rule = "owl" if self.sparsity_rules[names[0]] == "owl" else "threshold"
                chosen |= allocate_sparsities({name: self.importances[name] for name in names}, rule)
        return chosen


def _sparsity_rules(plan: Plan) -> dict[str, str]:
    """Weight → the rule that its sparsity follows: ``owl``, ``fisher`` or ``global``; uniform ones do not appear."""
    rules: dict[str, str] = {}
    for weight in plan.weights:
        settings = plan.recipe.all_steps[weight.step].prune
        if settings is None or weight.view.block is None:
            continue
        rule = "global" if settings.scope == "global" else settings.allocate
        if rule != "uniform":
            rules[weight.name] = rule
    return rules


def _gradient_needs(plan: Plan) -> dict[str, frozenset[str]]:
    rules = rules_of(plan)
    extra = {name: frozenset({"output_gradients"}) for name, rule in rules.items() if rule == "fisher"}
    extra |= {
        name: frozenset({"squared_gradient"})
        for name, rule in _sparsity_rules(plan).items()
        if rule == "fisher"
    }
    inside = {weight.name for weight in plan.weights if weight.view.block is not None}
    return {
        name: (needs & GRADIENT_NEEDS) | extra.get(name, frozenset())
        for name, needs in plan.needs.items()
        if name in inside
    }
