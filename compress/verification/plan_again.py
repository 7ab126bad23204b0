"""The plan of a written checkpoint, from the source and the recipe that its report records."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compress.checkpoint.source import Source
from compress.checkpoint.writer import REPORT
from compress.errors import UserError
from compress.models.skeleton import open_skeleton
from compress.planning.form import FormOptions
from compress.planning.make import make_plan
from compress.planning.methods import rotation_of
from compress.planning.plan import Plan
from compress.prune.experts import EXPERTS
from compress.prune.merge_experts import fewer_experts_again
from compress.prune.width import parts_of, width_pruned_again
from compress.recipe.recipe import Recipe
from compress.structures.choices import Choice
from compress.transforms.rotate import rotate
from compress.transforms.rotation import plan_rotation


def plan_again(folder: Path, report: Mapping[str, Any], source: Source) -> Plan:
    """Plan the recorded recipe on the source, with the recorded ranks and sparsities.

    Args:
        folder: the output, for messages.
        report: the contents of its ``compress.json``.
        source: the checkpoint that it was made from, pruned as the output is.

    Raises:
        UserError: the report is incomplete, or the recipe does not fit the source.
    """
    recorded = report["plan"]
    try:
        recipe = Recipe.parse(recorded["recipe"], origin=str(folder / REPORT))
        format, size = recorded["format"], recorded["max_shard_size"]
    except KeyError as error:
        raise UserError(f"{folder / REPORT} is incomplete: the plan lacks {error}") from error
    return make_plan(
        open_skeleton(source),
        recipe,
        format=format,
        max_shard_size=size,
        ranks=_choices(recorded.get("ranks") or {}),
        sparsities=recorded.get("sparsities"),
        form_options=FormOptions.from_json(recorded.get("form_options") or {}),
    )


def width_pruned_source(
    folder: Path, report: Mapping[str, Any], source: Source, record: Mapping[str, Any]
) -> Source:
    """The source with the widths that a ``record`` of width pruning leaves it.

    Raises:
        UserError: a record of another model.
    """
    wanted = Recipe.parse(report["plan"]["recipe"], origin=str(folder / REPORT)).width_pruning
    skeleton = open_skeleton(source)
    if EXPERTS in record["kept"]:
        share = 1.0 if wanted is None or wanted.experts is None else wanted.experts
        skeleton = open_skeleton(fewer_experts_again(skeleton, share, record))
    parts = parts_of(
        skeleton,
        neuron_share=None if wanted is None else wanted.neurons,
        group_share=None if wanted is None else wanted.groups,
        neuron_counts=None if wanted is None else wanted.counts,
    )
    pruned = [part for part in parts if part.prunes]
    return width_pruned_again(skeleton, pruned, record) if pruned else skeleton.source


def rotated_again(
    folder: Path, report: Mapping[str, Any], source: Source, record: Mapping[str, Any]
) -> Source:
    """The source in the bases that a ``record`` of a rotation says.

    Raises:
        UserError: a record of another model or recipe.
    """
    settings = rotation_of(Recipe.parse(report["plan"]["recipe"], origin=str(folder / REPORT)))
    if settings is None:
        raise UserError(f"{folder / REPORT} records a rotation that its recipe does not name")
    skeleton = open_skeleton(source)
    plan = plan_rotation(skeleton, settings, int(record["seed"]))
    return rotate(skeleton, plan, forgotten=str(record.get("learned", "")))


def _choices(recorded: Mapping[str, Any]) -> dict[str, Choice | None]:
    return {name: None if data is None else Choice.from_json(data) for name, data in recorded.items()}
