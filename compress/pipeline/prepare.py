"""All steps before the first weight is solved: open, prune, plan, sensitivity pass. Both `plan` and `compress` take them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch

from compress.allocate.sensitivity import Sensitivity, chooses_sizes, needs_sensitivity_pass
from compress.assets import EMBEDDED
from compress.calibrate.corpus import Corpus
from compress.checkpoint.fingerprint import content_fingerprint
from compress.checkpoint.unfinished import check_unfinished
from compress.errors import UserError
from compress.healing.data import check_healing_text
from compress.models.skeleton import Skeleton, open_skeleton
from compress.pipeline.calibration import (
    check_calibration_text,
    check_text_alone,
    check_weights_stay,
    fit_recipe,
)
from compress.pipeline.dealing import check_work
from compress.pipeline.passes import check_passes, discard_passes, pass_folders
from compress.pipeline.preparation import Calibration, Preparation, StepTimer
from compress.pipeline.request import Output, Request
from compress.planning.imatrix import imatrix_hashes, with_importance
from compress.planning.make import make_plan
from compress.planning.plan import Plan
from compress.planning.reads_text import reads_text
from compress.prune.notes import expert_notes
from compress.recipe.recipe import Recipe
from compress.report.assemble import versions
from compress.system.device import resolve_dtype
from compress.system.monitor import Monitor
from compress.system.ranks import current_ranks


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
    calibration = Calibration(skeleton, recipe, request.seed, note)
    preparation = Preparation(request, recipe, dtype, step, calibration, settings, monitor)
    with ExitStack() as stack:
        skeleton = preparation.depth_pruned(skeleton)
        skeleton, kept_all = stack.enter_context(preparation.fewer_experts(skeleton))
        notes = (*kept_all, *preparation.width_notes(skeleton, kept_all))
        skeleton = stack.enter_context(preparation.width_pruned(skeleton))
        skeleton, rotated = stack.enter_context(preparation.rotated(skeleton))
        told = expert_notes(skeleton.source) if request.plan_only else ()  # a run tells them itself
        notes = (*text_note, *notes, *told, *rotated)
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
        if not request.plan_only:
            check_work(plan, current_ranks())
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
