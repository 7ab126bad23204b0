"""Is a written checkpoint what it says: nothing lost, nothing changed that should not be, every byte as written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from compress_kernels.layouts import PlainInteger
from torch import Tensor

from compress.checkpoint.shards import Shard, Slot, index_json
from compress.checkpoint.source import Source, open_source
from compress.checkpoint.writer import INDEX, OWN_FILES, REPORT
from compress.errors import UserError
from compress.models.skeleton import open_skeleton
from compress.plan import Plan
from compress.planning import make_plan
from compress.recipe import Recipe
from compress.reshape.blocks import without_blocks
from compress.reshape.narrow import narrowed_again, parts_of
from compress.structures.choices import Choice

_CHUNK = 8 << 20

Check = Callable[[Path, Source], object]
"""A further check, of the output folder against the source; raises :class:`UserError`."""


@dataclass(frozen=True)
class VerifyReport:
    """What was looked at and found right: packed weights, tensors and bytes of the weight files, files copied."""

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

    Without ``plan`` the recipe that ``compress.json`` records is planned anew on the source, so that what should be
    packed does not come from the output alone. Tensors are read in small pieces; ``progress`` is told the bytes of
    each. ``checks`` are run last.

    Raises:
        UserError: the first thing that is wrong.
    """
    folder = Path(out)
    report = _report(folder)
    if not isinstance(source, Source):
        source = open_source(source)
    if not source.dropped:
        source = without_blocks(source, report["plan"].get("dropped", ()))
    if (record := report["plan"].get("narrowed")) and not source.narrowed:
        source = _narrowed_again(folder, report, source, record)
    if plan is None:
        plan = _plan_again(folder, report, source)
    _check_plan(folder, report, plan)
    _check_nothing_lost(folder, plan, source)
    _check_config(folder, plan, source)
    files = _check_extra_files(folder, source)
    _check_files(folder, plan)
    for shard in plan.shards:
        _check_shard(folder, shard, plan, source, report["tensors"], progress)
    _check_values(folder, plan, source)
    for check in checks:
        check(folder, source)
    return VerifyReport(
        packed=len(plan.weights),
        passed_through=len(plan.passed_through),
        tensors=sum(len(shard.slots) for shard in plan.shards),
        nbytes=plan.total_bytes,
        files=files,
    )


def _report(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give the checkpoint to verify")
    data = _read_json(folder, REPORT)
    if not {"plan", "tensors", "shards"} <= data.keys():
        raise UserError(f"{folder / REPORT} is incomplete: it should hold the plan and the hashes of a run")
    return data


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    if not path.is_file():
        raise UserError(f"{folder} has no {name}: it is not a finished output of compress")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): the file is damaged") from error
    if not isinstance(data, dict):
        raise UserError(f"{path} is not a JSON object: the file is damaged")
    return data


def _plan_again(folder: Path, report: Mapping[str, Any], source: Source) -> Plan:
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
    )


def _narrowed_again(
    folder: Path, report: Mapping[str, Any], source: Source, record: Mapping[str, Any]
) -> Source:
    wanted = Recipe.parse(report["plan"]["recipe"], origin=str(folder / REPORT)).narrow
    skeleton = open_skeleton(source)
    parts = parts_of(
        skeleton,
        neuron_share=None if wanted is None else wanted.neurons,
        group_share=None if wanted is None else wanted.groups,
    )
    return narrowed_again(skeleton, parts, record)


def _choices(recorded: Mapping[str, Any]) -> dict[str, Choice | None]:
    return {name: None if one is None else Choice.from_json(one) for name, one in recorded.items()}


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


def _difference(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    name = next(name for name in {**expected, **found} if found.get(name) != expected.get(name))
    return f"{name} has {found.get(name)} bytes, planned {expected.get(name)}"


def _check_nothing_lost(folder: Path, plan: Plan, source: Source) -> None:
    kept = {*plan.passed_through, *plan.rewritten.values()}.union(
        *(weight.view.sources for weight in plan.weights)
    )
    if lost := sorted(source.headers.keys() - kept):
        raise UserError(f"{folder}: tensor {lost[0]} of the source is neither packed nor passed through")


def _check_config(folder: Path, plan: Plan, source: Source) -> None:
    found = _read_json(folder, "config.json")
    expected = dict(source.config)
    if plan.quantization_config is not None:
        expected["quantization_config"] = plan.quantization_config
    expected = json.loads(json.dumps(expected))
    for key in {**expected, **found}:
        if key not in found or key not in expected or found[key] != expected[key]:
            values = f"is {_short(found, key)}, expected {_short(expected, key)}"
            raise UserError(f"{folder / 'config.json'}: '{key}' {values}")


def _short(data: Mapping[str, Any], key: str) -> str:
    text = json.dumps(data[key]) if key in data else "absent"
    return text if len(text) <= 60 else text[:57] + "…"


def _check_extra_files(folder: Path, source: Source) -> int:
    count = 0
    for path in source.extra_files():
        relative = path.relative_to(source.path)
        if str(relative) in OWN_FILES:
            continue
        copy = folder / relative
        if not copy.is_file():
            raise UserError(f"{folder} lacks {relative}, which the source has")
        if not all(ours == theirs for ours, theirs in _pieces(copy, path)):
            raise UserError(f"{copy} differs from the source's {relative}")
        count += 1
    return count


def _pieces(first: Path, second: Path) -> Iterator[tuple[bytes, bytes]]:
    with first.open("rb") as one, second.open("rb") as other:
        while True:
            pair = one.read(_CHUNK), other.read(_CHUNK)
            yield pair
            if not pair[0] and not pair[1]:
                return


def _check_files(folder: Path, plan: Plan) -> None:
    """The weight files are those of the plan, of its sizes, with its headers; the index says the same."""
    expected = {shard.filename for shard in plan.shards}
    if strangers := sorted({path.name for path in folder.glob("*.safetensors")} - expected):
        raise UserError(f"{folder} holds {strangers[0]}, which is not a file of this checkpoint")
    for shard in plan.shards:
        path = folder / shard.filename
        if not path.is_file():
            raise UserError(f"{folder} lacks {shard.filename}")
        if path.stat().st_size != shard.nbytes:
            raise UserError(
                f"{path} has {path.stat().st_size} bytes, not {shard.nbytes}: it is cut off or changed"
            )
        with path.open("rb") as file:
            if file.read(len(shard.header)) != shard.header:
                raise UserError(f"{path}: its header was changed after it was written")
    if len(plan.shards) > 1 and _read_json(folder, INDEX) != index_json(plan.shards):
        raise UserError(f"{folder / INDEX} does not say where the tensors are")


def _check_shard(
    folder: Path,
    shard: Shard,
    plan: Plan,
    source: Source,
    hashes: Mapping[str, str],
    progress: Callable[[int], None] | None,
) -> None:
    """Every tensor has the bytes that were written, and those passed through the bytes of the source."""
    passed = set(plan.passed_through) - source.unread
    with (folder / shard.filename).open("rb") as file:
        file.seek(len(shard.header))
        for slot in shard.slots:
            if slot.name not in hashes:
                raise UserError(f"{folder / REPORT} has no hash of tensor {slot.name}")
            original = source.raw_bytes(slot.name) if slot.name in passed else None
            digest = hashlib.sha256()
            for start in range(0, slot.nbytes, _CHUNK):
                piece = file.read(min(_CHUNK, slot.nbytes - start))
                digest.update(piece)
                if original is not None and piece != bytes(original[start : start + len(piece)]):
                    raise UserError(
                        f"{folder / shard.filename}: tensor {slot.name} is not what it is in the source"
                    )
                if progress is not None:
                    progress(len(piece))
            if digest.hexdigest() != hashes[slot.name]:
                raise UserError(
                    f"{folder / shard.filename}: tensor {slot.name} was changed after it was written"
                )


def _check_values(folder: Path, plan: Plan, source: Source) -> None:
    """Scales and dense values are finite, plain codes in range, and a recorded shape is the weight's."""
    places = {slot.name: (folder / shard.filename, slot) for shard in plan.shards for slot in shard.slots}
    for name in (*plan.rewritten.values(), *source.unread.intersection(plan.passed_through)):
        _check_finite(*places[name])
    seen: set[str] = set()
    for weight in plan.weights:
        for name in weight.tensors.keys() - seen:
            seen.add(name)
            path, slot = places[name]
            if slot.spec.dtype == torch.int64 and name == f"{weight.name}.weight_shape":
                if (shape := next(_values(path, slot)).tolist()) != list(weight.view.shape):
                    raise UserError(f"{path}: {name} is {shape}, but the weight is {list(weight.view.shape)}")
            elif slot.spec.dtype.is_floating_point and slot.spec.dtype.itemsize > 1:
                _check_finite(path, slot)
            elif slot.spec.dtype == torch.int8 and isinstance(weight.layout, PlainInteger):
                limit = 1 << (weight.layout.bits - 1)
                if any(int(p.min()) < -limit or int(p.max()) >= limit for p in _values(path, slot)):
                    raise UserError(f"{path}: {name} holds codes outside of {weight.layout.bits} bits")


def _check_finite(path: Path, slot: Slot) -> None:
    if not all(bool(torch.isfinite(part).all()) for part in _values(path, slot)):
        raise UserError(f"{path}: {slot.name} holds NaN or infinite values")


def _values(path: Path, slot: Slot) -> Iterator[Tensor]:
    """The values of a tensor, flat, some at a time."""
    with path.open("rb") as file:
        file.seek(slot.offset)
        for start in range(0, slot.nbytes, _CHUNK):
            data = bytearray(file.read(min(_CHUNK, slot.nbytes - start)))
            yield torch.frombuffer(data, dtype=slot.spec.dtype)
