"""All steps before the first weight is solved: open, prune, plan, sensitivity pass. Both `plan` and `compress` take them."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.allocate.sensitivity import Sensitivity, chooses_sizes, needs_sensitivity_pass, sensitivity_pass
from compress.assets import EMBEDDED
from compress.calibrate.corpus import Corpus
from compress.checkpoint.fingerprint import content_fingerprint
from compress.checkpoint.source import Source
from compress.checkpoint.unfinished import check_unfinished
from compress.errors import UserError
from compress.healing.data import check_healing_text
from compress.models.skeleton import Skeleton, open_skeleton
from compress.pipeline.calibration import (
    check_calibration_text,
    check_text_alone,
    check_weights_stay,
    draw_corpus,
    fit_recipe,
)
from compress.pipeline.passes import check_passes, discard_passes, pass_folder, pass_folders
from compress.planning.economy import MemoryBound
from compress.planning.imatrix import imatrix_hashes, with_importance
from compress.planning.make import make_plan
from compress.planning.methods import rotation_of
from compress.planning.plan import Plan
from compress.planning.reads_text import reads_text
from compress.prune.block_removal import without_blocks
from compress.prune.depth import choose_blocks, named_blocks
from compress.prune.expert_saliency import expert_saliency
from compress.prune.experts import first_experts, routed_experts, without_experts
from compress.prune.notes import whole_experts_note, whole_note
from compress.prune.units import Part
from compress.prune.width import parts_of, width_of, width_pruned
from compress.recipe.recipe import Recipe
from compress.report.assemble import versions
from compress.system.device import resolve_dtype
from compress.system.monitor import Monitor
from compress.system.scratch import scratch_folder
from compress.transforms.learn import learned_plan
from compress.transforms.rotate import rotate
from compress.transforms.rotation import notes_of, plan_rotation

_LOG = logging.getLogger(__name__)

StepTimer = Callable[[str], AbstractContextManager[object]]
"""Step name → the context that the step runs in: it is timed and shown."""


@dataclass(frozen=True)
class Output:
    """Where a run writes.

    Attributes:
        folder: the folder to make.
        overwrite: whether it may exist.
        restart: whether an unfinished run into it may be discarded that was begun with other settings.
    """

    folder: Path
    overwrite: bool = False
    restart: bool = False


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        source: the checkpoint.
        recipe: what to do with it.
        device: where blocks run.
        dtype: what they are computed in: ``"auto"`` (the model's own), ``"bf16"``, ``"fp16"`` or ``"fp32"``.
        seed: decides which windows are drawn, and all else that is drawn.
        format: the output's; the recipe's own if None.
        folder: temporary files go there, where there is no ``output``.
        output: where the run writes; beside it the passes keep what another run can go on with. None for a plan.
        gradients: the folder that keeps gradient moments for other runs; None keeps none.
        plan_only: no weight will be solved: the sensitivity pass is left out unless sizes depend on it.
        strict: refuse a plan that leaves more than a twentieth of a block's matrix parameters dense.
        memory: what the run may hold; None for no bound.
    """

    source: Source
    recipe: Recipe
    device: torch.device
    dtype: str
    seed: int
    format: str | None
    folder: Path
    output: Output | None = None
    gradients: Path | None = None
    plan_only: bool = False
    strict: bool = False
    memory: MemoryBound | None = None


@dataclass(frozen=True)
class Prepared:
    """A model that is ready to be solved.

    Attributes:
        skeleton: the model, pruned where the recipe prunes it.
        plan: what is done to its weights, with the ranks and sparsities that the sensitivity pass has chosen.
        dtype: what blocks are computed in.
        corpus: the calibration windows; None where nothing looks at data.
        sensitivity: what the sensitivity pass has gathered.
        settings: what was asked for, as plain data.
    """

    skeleton: Skeleton
    plan: Plan
    dtype: torch.dtype
    corpus: Corpus | None
    sensitivity: Sensitivity
    settings: Mapping[str, Any]


@contextmanager
def prepared(
    request: Request, step: StepTimer = nullcontext, monitor: Monitor | None = None
) -> Iterator[Prepared]:
    """Take all steps before the first weight is solved. Temporary files last as long as the context.

    Raises:
        UserError: whatever would stop the run before its first weight.
    """
    if not 0 <= request.seed < 1 << 63:
        raise UserError(f"The seed {str(request.seed)[:30]} is no number from 0 to 2^63 - 1.")
    skeleton = open_skeleton(request.source)
    recipe, note = fit_recipe(request.recipe, skeleton)
    dtype = resolve_dtype(request.dtype, skeleton.dtype, request.device.type)
    settings = run_settings(request, recipe, dtype)
    if request.output is not None:
        _check_output(request, request.output, settings)
    if recipe.depth_pruning is not None or recipe.width_pruning is not None:
        check_weights_stay(skeleton)
        check_text_alone(recipe)
    text_note = _check_text(request, skeleton, recipe)
    calibration = _Calibration(skeleton, recipe, request.seed, note)
    preparation = _Preparation(request, recipe, dtype, step, calibration, settings, monitor)
    with ExitStack() as stack:
        skeleton = preparation.depth_pruned(skeleton)
        skeleton, kept_all = preparation.experts_pruned(skeleton)
        notes = (*kept_all, *preparation.width_notes(skeleton, kept_all))
        skeleton = stack.enter_context(preparation.width_pruned(skeleton))
        skeleton, rotated = stack.enter_context(preparation.rotated(skeleton))
        notes = (*text_note, *notes, *rotated)
        plan = with_importance(
            make_plan(
                skeleton,
                recipe,
                format=request.format,
                dtype=dtype,
                memory=request.memory,
                device=request.device.type,
            )
        )
        plan = replace(plan, notes=(*notes, *plan.notes))
        if request.strict:
            _check_coverage(plan)
        if plan.needs_data:
            check_weights_stay(skeleton)
        if needs_sensitivity_pass(plan):
            check_text_alone(recipe)
        sensitivity = Sensitivity()
        if chooses_sizes(plan) if request.plan_only else needs_sensitivity_pass(plan):
            sensitivity = stack.enter_context(preparation.sensitivity(skeleton, plan))
            plan = make_plan(
                skeleton,
                recipe,
                format=request.format,
                dtype=dtype,
                ranks=sensitivity.ranks,
                sparsities=sensitivity.sparsities,
                memory=request.memory,
                device=request.device.type,
            )
            plan = replace(with_importance(plan), notes=(*notes, *plan.notes))
        if plan.needs_data and not request.plan_only:
            preparation.tokens()
        yield Prepared(skeleton, plan, dtype, calibration.drawn, sensitivity, settings)
    if request.output is not None:
        discard_passes(pass_folders(request.output.folder))


def run_settings(request: Request, recipe: Recipe, dtype: torch.dtype) -> dict[str, Any]:
    """What a run was asked for, as plain data: another run over its unfinished output says what differs.

    Args:
        request: of the run.
        recipe: the request's, with windows that the model takes.
        dtype: what blocks are computed in.

    Returns:
        Plain data for ``json.dumps``; the contents of the source as hashes.
    """
    source = request.source
    files = {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in source.files}
    config = json.dumps(source.config, sort_keys=True, default=str).encode("utf-8", "replace")
    return {
        "source": {"files": files, "tensors": content_fingerprint(source.files)},
        "config.json": hashlib.sha256(config).hexdigest(),
        "recipe": recipe.public(),
        **({"imatrix": hashes} if (hashes := imatrix_hashes(recipe)) else {}),
        "format": request.format,
        "dtype": str(dtype).removeprefix("torch."),
        "device": request.device.type,
        "seed": request.seed,
        "versions": versions(),
    }


def _check_text(request: Request, skeleton: Skeleton, recipe: Recipe) -> tuple[str, ...]:
    """Refuse a text that is too short for the recipe; for a plan also a note where its windows overlap.

    A plan with the shipped text alone needs no tokenizer.
    """
    data, heal = recipe.calibrate.data, recipe.heal
    if heal is not None and request.plan_only and (heal.data or data) != EMBEDDED:
        check_healing_text(skeleton, heal, heal.data or data, recipe.calibrate.bos)
    if (request.plan_only and data == EMBEDDED) or not reads_text(recipe, skeleton.dtype):
        return ()
    note = check_calibration_text(skeleton, recipe, count=request.plan_only)
    return (note,) if note else ()


def _check_output(request: Request, output: Output, settings: Mapping[str, Any]) -> None:
    """Refuse, before any work, an output that may not be written or an unfinished one of other settings."""
    source = request.source.path
    restart = output.restart
    check_unfinished(output.folder, settings, source=source, overwrite=output.overwrite, restart=restart)
    check_passes(pass_folders(output.folder), settings, restart=restart)


def _check_coverage(plan: Plan) -> None:
    if plan.coverage_note:
        raise UserError(f"{plan.coverage_note}; run without --strict to compress the rest")


@dataclass(frozen=True)
class _Calibration:
    """The calibration windows of a recipe, drawn when they are first asked for."""

    skeleton: Skeleton
    recipe: Recipe
    seed: int
    note: str

    @cached_property
    def corpus(self) -> Corpus:
        return draw_corpus(self.skeleton, self.recipe, self.seed, self.note)

    @property
    def drawn(self) -> Corpus | None:
        """The windows, if any step has asked for them."""
        return self.__dict__.get("corpus")


@dataclass(frozen=True)
class _Preparation:
    """The single steps, over what they all need."""

    request: Request
    recipe: Recipe
    dtype: torch.dtype
    step: StepTimer
    calibration: _Calibration
    settings: Mapping[str, Any]
    monitor: Monitor | None = None

    def folder(self, name: str) -> AbstractContextManager[Path]:
        """The folder of a pass: one that another run goes on with, or a temporary one for a plan."""
        if self.request.output is None:
            return scratch_folder(self.request.folder, f".compress-{name}-")
        return pass_folder(pass_folders(self.request.output.folder)[name], self.settings, self.monitor)

    def tokens(self) -> Tensor:
        """The calibration windows, int64 ``[samples, length]``."""
        if self.calibration.drawn is None:
            if self.request.plan_only:
                _LOG.warning(
                    "the sizes of this recipe depend on data: the model is run for this plan, on the CPU, which takes as long "
                    "as it does in a run"
                )
            with self.step("data"):
                return self.calibration.corpus.tokens
        return self.calibration.corpus.tokens

    def depth_pruned(self, skeleton: Skeleton) -> Skeleton:
        """The model without the blocks that the recipe leaves out."""
        settings = self.recipe.depth_pruning
        if settings is None:
            return skeleton
        if not isinstance(settings.blocks, int):
            return open_skeleton(without_blocks(skeleton, named_blocks(skeleton, settings.blocks)))
        tokens = self.tokens()
        with self.step("prune"):
            dropped = choose_blocks(
                skeleton, tokens, settings.blocks, settings.by, device=self.request.device, dtype=self.dtype
            )
            return open_skeleton(without_blocks(skeleton, dropped))

    def experts_pruned(self, skeleton: Skeleton) -> tuple[Skeleton, tuple[str, ...]]:
        """The model without the routed experts that the recipe leaves out, and a sentence where it leaves out none.

        Raises:
            UserError: the model has no experts that are known here.
        """
        settings = self.recipe.width_pruning
        if settings is None or settings.experts is None:
            return skeleton, ()
        routed = routed_experts(skeleton, settings.experts)
        if not routed.prunes:
            return skeleton, () if settings.experts == 1 else (whole_experts_note(routed, settings.experts),)
        if self.request.plan_only:
            return open_skeleton(first_experts(skeleton, routed)), ()
        tokens = self.tokens()
        with self.step("prune"):
            saliency = expert_saliency(
                skeleton,
                routed,
                tokens,
                settings.experts_by,
                device=self.request.device,
                dtype=self.dtype,
            )
            kept = [routed.best(values) for values in saliency]
            return open_skeleton(without_experts(skeleton, routed, kept)), ()

    def parts(self, skeleton: Skeleton) -> tuple[Part, ...]:
        """The kinds of units that the recipe prunes the blocks' widths of."""
        settings = self.recipe.width_pruning
        if settings is None:
            return ()
        return parts_of(
            skeleton,
            neuron_share=settings.neurons,
            group_share=settings.groups,
            neuron_counts=settings.counts,
        )

    def width_notes(self, skeleton: Skeleton, experts: tuple[str, ...]) -> tuple[str, ...]:
        """A sentence on every share below 1 that rounds to all units.

        Args:
            skeleton: the model, without the experts that go.
            experts: what is to be said of them.

        Raises:
            UserError: the recipe does nothing else.
        """
        parts = self.parts(skeleton)
        shares = [getattr(self.recipe.width_pruning, part.name) for part in parts]
        notes = tuple(
            whole_note(part, share)
            for part, share in zip(parts, shares, strict=True)
            if not part.prunes and share is not None and share < 1
        )
        alone = not self.recipe.steps and self.recipe.depth_pruning is None
        said = (*experts, *notes)
        if said and alone and not skeleton.source.width_pruned and not any(part.prunes for part in parts):
            raise UserError(f"The recipe prunes nothing: {said[0]}.")
        return notes

    @contextmanager
    def width_pruned(self, skeleton: Skeleton) -> Iterator[Skeleton]:
        """The model with the widths that the recipe leaves it; refitted weights are files while the context lasts."""
        settings, parts = self.recipe.width_pruning, self.parts(skeleton)
        parts = tuple(part for part in parts if part.prunes)
        if settings is None or not parts:
            yield skeleton
            return
        if self.request.plan_only and settings.counts is not None:
            yield open_skeleton(width_of(skeleton, parts))
            return
        tokens = self.tokens()
        with self.folder("width") as folder:
            with self.step("prune"):
                source = width_pruned(
                    skeleton,
                    parts,
                    tokens,
                    device=self.request.device,
                    dtype=self.dtype,
                    folder=folder,
                    allocate=settings.allocate,
                    merge=settings.merge,
                    seed=self.request.seed,
                )
                narrower = open_skeleton(source)
            yield narrower

    @contextmanager
    def rotated(self, skeleton: Skeleton) -> Iterator[tuple[Skeleton, tuple[str, ...]]]:
        """The model in the bases that the recipe rotates it to, and sentences on them."""
        settings = rotation_of(self.recipe)
        if settings is None:
            yield skeleton, ()
            return
        plan = plan_rotation(skeleton, settings, self.request.seed)
        with self.step("rotate"):
            rotated = open_skeleton(rotate(skeleton, plan))
        if settings.residual != "learned" or self.request.plan_only:
            yield rotated, notes_of(skeleton, plan)
            return
        planned = make_plan(rotated, self.recipe, format=self.request.format, dtype=self.dtype)
        tokens = self.tokens()
        with self.folder("rotation") as folder:
            with self.step("rotate"):
                plan = learned_plan(
                    rotated,
                    plan,
                    settings,
                    {weight.view: weight.activations for weight in planned.weights},
                    tokens,
                    device=self.request.device,
                    folder=folder,
                )
                rotated = open_skeleton(rotate(skeleton, plan))
            yield rotated, notes_of(skeleton, plan)

    @contextmanager
    def sensitivity(self, skeleton: Skeleton, plan: Plan) -> Iterator[Sensitivity]:
        """The sensitivity pass over the dense model; its files last as long as the context."""
        tokens = self.tokens()
        with self.folder("sensitivity") as folder:
            with self.step("sensitivity"):
                sensitivity = sensitivity_pass(
                    skeleton,
                    plan,
                    tokens,
                    device=self.request.device,
                    dtype=self.dtype,
                    seed=self.request.seed,
                    folder=folder,
                    keep=self.request.gradients,
                )
            yield sensitivity
