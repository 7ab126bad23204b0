"""Healing before anything is written: what was asked for, and everything that can be refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from compress.checkpoint.source import Source
from compress.checkpoint.writer import REPORT
from compress.errors import UserError
from compress.formats import OwnFile
from compress.formats.dense_source import open_any
from compress.healing.data import check_healing_text, healing_text
from compress.healing.job import Job
from compress.healing.rules import check_rules, open_teachers
from compress.models.skeleton import open_skeleton
from compress.planning.healed import numbers_of
from compress.planning.methods import build
from compress.planning.plan import Plan
from compress.recipe.recipe import heal_of
from compress.recipe.section import Method
from compress.report.schema import Report
from compress.system.device import resolve_dtype
from compress.system.progress import Progress
from compress.text.check import local_text
from compress.verification.checkpoint import plan_recorded, verify

DEFAULT = ("norms", "scales", "values", "factors")
"""What is trained where nothing is named, as far as the checkpoint has it."""


def section_of(data: str | None, train: Any, settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """The recipe's ``heal`` as plain data; ``train`` is empty where it is to be found out."""
    given = {**(settings or {}), **({} if data is None else {"data": data})}
    return {**given, "train": train or given.get("train") or []}


def prepared(
    folder: Path,
    source: Source,
    section: Mapping[str, Any],
    *,
    seed: int,
    device: torch.device,
    dtype: str,
    trust_remote_code: bool,
    progress: Progress,
) -> Job:
    """All that a healing needs to know.

    Args:
        folder: a compressed checkpoint.
        source: the dense one that it was made from.
        section: of :func:`section_of`.
        seed, device, dtype, trust_remote_code, progress: as for :func:`compress.healing.stage.heal`.

    Raises:
        UserError: whatever can be refused before anything is written.
    """
    if not 0 <= seed < 1 << 63:
        raise UserError(f"The seed {str(seed)[:30]} is no number from 0 to 2^63 - 1.")
    wanted = heal_of({**_public(section), "train": section["train"] or [*DEFAULT]})
    if source.path.resolve() == folder.resolve():
        raise UserError(
            f"{folder} is the compressed checkpoint itself: name the dense one that it was made from as the source"
        )
    pruned, before = plan_recorded(folder, source)
    if source.stored_as and Report.read(folder / REPORT).source.stored_as is None:
        raise UserError(
            f"{source.path} is quantized ({source.stored_as}), and {folder} was made from a model that is not: name that one "
            "as the source"
        )
    if isinstance(before.exporter, OwnFile):
        raise UserError(
            f"{folder} is a {before.exporter.name} file, which heal does not write: heal the checkpoint that it was made from, "
            f"then `compress export --format {before.exporter.name}`"
        )
    known = before.recipe.calibrate
    data = section.get("data") or _calibration_text(folder, known.data)
    check_healing_text(open_skeleton(pruned), wanted, data, known.bos)
    verify(folder, source, plan=None)
    if not section["train"]:
        section = {**section, "train": _trainable(pruned, before, folder)}
    earlier = before.recipe.heal
    if earlier is not None:
        trained = [*earlier.train, *earlier.earlier]
        section = {**section, "earlier": [one.model_dump() for one in trained]}
    _, plan = plan_recorded(folder, source, changes={"heal": _public(section)})
    if plan.shards != before.shards:
        raise UserError(f"{folder}: healing would change its layout: run the recipe again with this version")
    skeleton = open_skeleton(pruned)
    recipe = plan.recipe
    assert recipe.heal is not None
    asked = recipe.heal.model_copy(update={"data": section.get("data")})
    text = healing_text(skeleton, recipe.model_copy(update={"heal": asked}), seed, device)
    teachers = open_teachers(section.get("teachers", ()), skeleton, trust_remote_code=trust_remote_code)
    resolved = resolve_dtype(dtype, skeleton.dtype, device.type)
    if resolved == torch.float16:
        raise UserError(
            "heal computes in bf16 or fp32, as gradients vanish in fp16: give --dtype bf16 or fp32"
        )
    compressed = open_any(folder, trust_remote_code=trust_remote_code)
    check_rules(recipe.heal)
    return Job(
        folder, compressed, pruned, plan, recipe.heal, teachers, text, device, resolved, seed, progress
    )


def _calibration_text(folder: Path, data: str) -> str:
    """The text that a checkpoint was calibrated with, of which it knows the name alone."""
    try:
        local_text(data)
    except UserError:
        raise UserError(
            f"{folder} was calibrated with {data}, which is not here: name the text to train on with --data"
        ) from None
    return data


def _public(section: Mapping[str, Any]) -> dict[str, Any]:
    """As the report will hold it: a text file and teachers appear by their names alone."""
    data, teachers = section.get("data"), section.get("teachers", ())
    names = [teachers] if isinstance(teachers, str) else teachers
    return {
        **section,
        **({"teachers": [Path(name).name for name in names]} if teachers else {}),
        **({"data": Path(data).name} if isinstance(data, str) and Path(data).is_file() else {}),
    }


def _trainable(source: Source, plan: Plan, folder: Path) -> list[str]:
    """All simple trainables that a checkpoint has."""
    skeleton = open_skeleton(source)
    found = []
    for name in DEFAULT:
        entry = build("trainable", Method(name=name))
        if numbers_of(skeleton, plan.recipe, plan.weights, entry):
            found.append(name)
    if not found:
        raise UserError(f"{folder} has nothing that heal could train")
    return found
