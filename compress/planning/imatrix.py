"""Importance matrices that a recipe names as its statistics: read, and resolved for every weight, when it is planned."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from compress.errors import UserError
from compress.formats.gguf.imatrix import Importance, read_imatrix
from compress.formats.gguf.placement import Placement, place
from compress.planning.plan import Plan, PlannedWeight
from compress.recipe.recipe import Recipe
from compress.score.imatrix import Imatrix


def with_importance(plan: Plan) -> Plan:
    """``plan`` with the importance of every weight whose score is ``imatrix``, and the hashes of the files it comes from.

    Raises:
        UserError: a file that is missing, damaged, or says nothing of one of these weights; a recipe that changes the model's
            inputs or blocks, which the file knows nothing of.
    """
    files = {
        weight.name: score.file
        for weight in plan.weights
        if isinstance(score := weight.methods.score, Imatrix)
    }
    if not files:
        return plan
    _check_same_inputs(plan.recipe)
    placement = place(plan.facts)
    read = {file: read_imatrix(Path(file)) for file in dict.fromkeys(files.values())}
    importance = {
        weight.name: _importance(weight, placement, files[weight.name], read[files[weight.name]])
        for weight in plan.weights
        if weight.name in files
    }
    return replace(plan, importance=importance, imatrix={Path(f).name: file_hash(f) for f in read})


def imatrix_hashes(recipe: Recipe) -> dict[str, str]:
    """Name → SHA-256 of the importance matrices that a recipe names.

    Raises:
        UserError: a file that cannot be read.
    """
    scores = [step.score for step in recipe.steps if step.score is not None and step.score.name == "imatrix"]
    files = [score.options["file"] for score in scores if isinstance(score.options.get("file"), str)]
    return {Path(file).name: file_hash(file) for file in dict.fromkeys(files)}


def file_hash(file: str) -> str:
    """The SHA-256 of a file, in hex.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with Path(file).open("rb") as data:
            return hashlib.file_digest(data, "sha256").hexdigest()
    except OSError as error:
        raise UserError(
            f"score 'imatrix': {file} cannot be read ({error.strerror}): give the path of an importance matrix"
        ) from None


def _check_same_inputs(recipe: Recipe) -> None:
    changes = {
        "transforms": recipe.transforms,
        "depth_pruning": recipe.depth_pruning,
        "width_pruning": recipe.width_pruning,
    }
    if key := next((key for key, value in changes.items() if value), None):
        raise UserError(
            f"score 'imatrix' does not go with '{key}': the file was measured on the model as it is. Leave '{key}' out, or "
            "choose the score activation-diagonal"
        )


def _importance(
    weight: PlannedWeight, placement: Placement, file: str, entries: Mapping[str, Importance]
) -> Tensor:
    """Mean squares fp32 ``[in]`` of the inputs of one weight."""
    here = placement.weights[weight.name]
    columns, matrix = weight.view.shape[1], here.expert or 0
    if here.tensor not in entries:
        raise UserError(
            f"score 'imatrix': {file} says nothing of {here.tensor}, which is {weight.name}: give this weight a step with "
            "another score, or a file that was made with it"
        )
    means = entries[here.tensor].of_width(columns)
    if means is None or matrix >= len(means):
        raise UserError(
            f"score 'imatrix': {file} holds {entries[here.tensor].sums.numel()} numbers for {here.tensor}, which does not fit "
            f"the {columns} inputs of {weight.name}: it was made from another model"
        )
    found = means[matrix].clone()
    if not bool(torch.isfinite(found).all()) or float(found.min()) < 0:
        raise UserError(
            f"score 'imatrix': {file} holds numbers for {here.tensor} that are no mean squares: make it again"
        )
    return found
