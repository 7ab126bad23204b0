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
from safetensors.torch import save_file
from torch import Tensor

from compress.allocate.ranks import Spectrum, allocate
from compress.calibrate.fisher import gradient_statistics
from compress.calibrate.gradients import backward
from compress.calibrate.stream import BlockStream
from compress.models.skeleton import Skeleton
from compress.plan import Plan, PlannedWeight
from compress.score.base import Score
from compress.score.fisher import Fisher
from compress.statistics import GRADIENT_NEEDS, Statistics
from compress.structures.truncation import take_apart

_KEPT = ("squared_gradient", "gradient_rows", "fisher_left", "fisher_right")


@dataclass(frozen=True)
class Survey:
    """What was found.

    Attributes:
        folder: one safetensors file for each block, with the moments of its gradients.
        ranks: weight → its rank, ``None`` to leave it whole; only weights whose ranks were to be found.
        figures: plain data for the report.
    """

    folder: Path | None = None
    ranks: Mapping[str, int | None] = field(default_factory=dict)
    figures: Mapping[str, Any] = field(default_factory=dict)

    def complete(
        self, planned: PlannedWeight, seen: Statistics, device: torch.device | str = "cpu"
    ) -> Statistics:
        """``seen`` with the moments of gradients that the weight's methods ask for."""
        if not planned.needs & GRADIENT_NEEDS or self.folder is None:
            return seen
        with safe_open(
            self.folder / f"{planned.view.block}.safetensors", framework="pt", device=str(device)
        ) as file:
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
    """Weight → what is to be gathered of its inputs while solving: all but what the survey tells."""
    return {name: needs - GRADIENT_NEEDS for name, needs in plan.needs.items()}


def chooses_ranks(plan: Plan) -> bool:
    """Whether the sizes of ``plan`` are only known after a survey."""
    return bool(_allocated(plan))


def needs_survey(plan: Plan) -> bool:
    """Whether ``plan`` can only be made final, or carried out, after a survey."""
    return any(_gradient_needs(plan).values()) or chooses_ranks(plan)


@contextmanager
def surveyed(
    skeleton: Skeleton,
    plan: Plan,
    tokens: Tensor,
    *,
    device: torch.device,
    dtype: torch.dtype,
    seed: int,
    near: Path,
) -> Iterator[Survey]:
    """The survey that ``plan`` (with uniform ranks) asks for; its files live in ``near`` as long as the context.

    Raises:
        UserError: gradients that are not finite, or a model that they cannot be followed through.
    """
    near.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".survey-", dir=near) as name:
        folder = Path(name)
        allocated = _allocated(plan)
        needs = _gradient_needs(plan)
        spectra: dict[str, Spectrum] = {}
        if any(needs.values()):
            for block in backward(
                skeleton, tokens, device=device, dtype=torch.float32, seed=seed, spill_dir=folder
            ):
                views = skeleton.block_views(block.index)
                found = gradient_statistics(block, views, needs)
                for weight in plan.block(block.index):
                    if allocated.get(weight.name) == "fisher":
                        spectra[weight.name] = _spectrum(
                            skeleton, weight, Fisher("fisher"), found[weight.name]
                        )
                _save(folder / f"{block.index}.safetensors", found)
        survey = Survey(folder)
        if set(allocated.values()) & {"energy", "truncation"}:
            spectra |= _forward(skeleton, plan, allocated, survey, tokens, device, dtype)
        yield replace(survey, ranks=_ranks(spectra, allocated), figures=_figures(spectra, allocated))


def _forward(
    skeleton: Skeleton,
    plan: Plan,
    allocated: Mapping[str, str],
    survey: Survey,
    tokens: Tensor,
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, Spectrum]:
    """Spectra of the weights in their own scores, block by block of the dense model."""
    spectra: dict[str, Spectrum] = {}
    with BlockStream(skeleton, tokens, device=device, dtype=dtype, spill_dir=survey.folder) as stream:
        stream.prepare()
        for index in range(len(skeleton.blocks)):
            skeleton.load_block(index, device=device, dtype=dtype)
            wanted = [w for w in plan.block(index) if allocated.get(w.name) in ("energy", "truncation")]
            seen = stream.observe(index, input_needs(plan), only={w.name for w in wanted})
            for weight in wanted:
                statistics = survey.complete(weight, seen.get(weight.name, Statistics()), device)
                spectra[weight.name] = _spectrum(skeleton, weight, weight.methods.score, statistics)
            if index < len(skeleton.blocks) - 1:
                stream.advance(index)
            skeleton.release_block(index)
    return spectra


def _spectrum(skeleton: Skeleton, weight: PlannedWeight, score: Score, statistics: Statistics) -> Spectrum:
    dense = weight.view.get(skeleton.parameter_of(weight.view).detach()).float()
    structure: Any = weight.methods.structure
    parts = take_apart(dense, score.metric(statistics))
    return Spectrum(weight.view.shape, parts.values.cpu(), structure.rank_of(weight.view.shape))


def _allocated(plan: Plan) -> dict[str, str]:
    """Weight → the rule that its rank follows; those of uniform ranks do not appear."""
    rules: dict[str, str] = {}
    for weight in plan.weights:
        settings = plan.recipe.steps[weight.step].lowrank
        if settings is not None and settings.allocate != "uniform" and weight.view.block is not None:
            rules[weight.name] = settings.allocate
    return rules


def _gradient_needs(plan: Plan) -> dict[str, frozenset[str]]:
    rules = _allocated(plan)
    extra = {name: frozenset({"fisher"}) for name, rule in rules.items() if rule == "fisher"}
    inside = {weight.name for weight in plan.weights if weight.view.block is not None}
    return {
        name: (needs & GRADIENT_NEEDS) | extra.get(name, frozenset())
        for name, needs in plan.needs.items()
        if name in inside
    }


def _ranks(spectra: Mapping[str, Spectrum], allocated: Mapping[str, str]) -> dict[str, int | None]:
    ranks: dict[str, int | None] = {}
    for rule in sorted(set(allocated.values())):
        ranks |= allocate({name: s for name, s in spectra.items() if allocated[name] == rule}, rule)
    return ranks


def _figures(spectra: Mapping[str, Spectrum], allocated: Mapping[str, str]) -> dict[str, Any]:
    ranks = _ranks(spectra, allocated)
    return {"ranks": {name: {"uniform": s.uniform, "chosen": ranks[name]} for name, s in spectra.items()}}


def _save(path: Path, found: Mapping[str, Statistics]) -> None:
    tensors: dict[str, Tensor] = {}
    for name, statistics in found.items():
        for key in _KEPT:
            value = getattr(statistics, key)
            if value is not None:
                tensors[f"{name}/{key}"] = value.contiguous().cpu()
    save_file(tensors, str(path))
