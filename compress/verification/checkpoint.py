"""Verification of a written checkpoint: nothing lost, nothing changed that should not be, every byte as it was written."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.checkpoint.source import Source
from compress.checkpoint.writer import REPORT
from compress.errors import UserError
from compress.formats import with_quantization
from compress.formats.dense_source import dense_source, open_dense
from compress.models.skeleton import open_skeleton
from compress.planning.plan import Plan
from compress.prune.block_removal import without_blocks
from compress.verification.files import check_extra_files, check_files, check_shard, check_values, read_json
from compress.verification.plan_again import plan_again, rotated_again, width_pruned_source

_LOG = logging.getLogger(__name__)

Check = Callable[[Path, Source], object]
"""A further check, of the output folder against the source; raises :class:`UserError`."""


@dataclass(frozen=True)
class VerifyReport:
    """Counts of what was checked: packed weights, tensors and bytes of the weight files, files copied."""

    packed: int
    passed_through: int
    tensors: int
    nbytes: int
    files: int


def verify(
    out: str | Path,
    source: str | Path | Source,
    *,
    plan: Plan | None = None,
    checks: Sequence[Check] = (),
    progress: Callable[[int], None] | None = None,
) -> VerifyReport:
    """Check the checkpoint ``out`` against the ``source`` that it was made from.

    Tensors are read in small pieces.

    Args:
        out: the folder.
        source: the checkpoint that it was made from.
        plan: of the run; without it the recipe that ``compress.json`` records is planned anew on the source, so that what
            should be packed does not come from the output alone.
        checks: run last.
        progress: called with the bytes of each piece.

    Raises:
        UserError: the first thing that is wrong.
    """
    folder = Path(out)
    report = _report(folder)
    source = dense_source(source) if isinstance(source, Source) else open_dense(source)
    try:
        source, plan = _as_recorded(folder, report, source, plan)
        _check_plan(folder, report, plan)
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        # The report is a file that anybody may have altered: what it holds can be of any type.
        raise UserError(
            f"{folder / REPORT} is damaged ({type(error).__name__}: {str(error)[:100]})"
        ) from error
    _check_nothing_lost(folder, plan, source)
    _check_config(folder, plan, source)
    files = check_extra_files(folder, source)
    check_files(folder, plan)
    for shard in plan.shards:
        _LOG.info("hashing %s", shard.filename)
        check_shard(folder, shard, plan, source, report["tensors"], progress)
    _LOG.info("decoding the weights")
    check_values(folder, plan, source)
    for check in checks:
        check(folder, source)
    return VerifyReport(
        packed=len(plan.weights),
        passed_through=len(plan.passed_through) + len(plan.converted),
        tensors=sum(len(shard.slots) for shard in plan.shards),
        nbytes=plan.total_bytes,
        files=files,
    )


def plan_recorded(
    out: str | Path, source: str | Path | Source, *, changes: Mapping[str, Any] | None = None
) -> tuple[Source, Plan]:
    """The source as an output's report says that it was pruned, and the plan of the recipe that the report records.

    Args:
        out: the output.
        source: the checkpoint that it was made from.
        changes: keys of the recipe that are other than recorded.

    Raises:
        UserError: the report is missing or damaged, or the recipe does not fit the source.
    """
    folder = Path(out)
    report = _report(folder)
    source = dense_source(source) if isinstance(source, Source) else open_dense(source)
    try:
        report["plan"] = {**report["plan"], "recipe": {**report["plan"]["recipe"], **(changes or {})}}
        return _as_recorded(folder, report, source, None)
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        raise UserError(
            f"{folder / REPORT} is damaged ({type(error).__name__}: {str(error)[:100]})"
        ) from error


def _as_recorded(
    folder: Path, report: Mapping[str, Any], source: Source, plan: Plan | None
) -> tuple[Source, Plan]:
    """The source as the report says that it was pruned, and the plan."""
    if (dropped := report["plan"].get("dropped")) and not source.dropped:
        source = without_blocks(open_skeleton(source), dropped)
    if (record := report["plan"].get("width_pruned")) and not source.width_pruned:
        source = width_pruned_source(folder, report, source, record)
    if (record := report["plan"].get("rotation")) and not source.rotation:
        source = rotated_again(folder, report, source, record)
    return source, plan_again(folder, report, source) if plan is None else plan


def _report(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give a finished output of compress")
    data = read_json(folder, REPORT)
    if not {"plan", "tensors", "shards"} <= data.keys():
        raise UserError(f"{folder / REPORT} is incomplete: it should hold the plan and the hashes of a run")
    if not isinstance(data["plan"], dict) or not isinstance(data["tensors"], dict):
        raise UserError(f"{folder / REPORT} is damaged: the plan and the hashes should be objects")
    return data


def _check_plan(folder: Path, report: Mapping[str, Any], plan: Plan) -> None:
    recorded, expected = report["plan"], plan.to_json()
    for name in {**expected["weights"], **recorded.get("weights", {})}:
        if recorded.get("weights", {}).get(name) != expected["weights"].get(name):
            raise UserError(
                f"{folder}: {name} is not stored as the recipe says: written for another model or recipe"
            )
    sizes = {shard["file"]: shard["bytes"] for shard in report["shards"]}
    if not sizes == recorded["shards"] == expected["shards"]:
        difference = _difference(sizes, expected["shards"])
        raise UserError(f"{folder}: its files are not those that the plan predicts: {difference}")


def _difference(sizes: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    name = next(name for name in {**expected, **sizes} if sizes.get(name) != expected.get(name))
    return f"{name} has {sizes.get(name)} bytes, planned {expected.get(name)}"


def _check_nothing_lost(folder: Path, plan: Plan, source: Source) -> None:
    kept = {*plan.passed_through, *plan.rewritten.values()}.union(
        *(weight.view.sources for weight in plan.weights), *plan.converted.values()
    )
    if lost := sorted(source.headers.keys() - kept):
        raise UserError(f"{folder}: tensor {lost[0]} of the source is neither packed nor passed through")


def _check_config(folder: Path, plan: Plan, source: Source) -> None:
    written = read_json(folder, "config.json")
    expected = with_quantization(source.config, plan.exporter, plan.quantization_config)
    expected = json.loads(json.dumps(expected))
    for key in {**expected, **written}:
        if key not in written or key not in expected or written[key] != expected[key]:
            values = f"is {_short(written, key)}, expected {_short(expected, key)}"
            raise UserError(f"{folder / 'config.json'}: '{key}' {values}")


def _short(data: Mapping[str, Any], key: str) -> str:
    text = json.dumps(data[key]) if key in data else "absent"
    return text if len(text) <= 60 else text[:57] + "…"
