"""Checks of an output's files: sizes, headers, hashes, values."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from compress_kernels.layouts import PlainInteger
from torch import Tensor

from compress.checkpoint.shard_files import bytes_of
from compress.checkpoint.shards import Shard, Slot, index_json
from compress.checkpoint.source import Source
from compress.checkpoint.writer import INDEX, OWN_FILES, REPORT
from compress.errors import UserError
from compress.formats import OwnFile
from compress.planning.plan import Plan
from compress.report.card import CARD

_CHUNK = 8 << 20


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object of an output.

    Raises:
        UserError: the file is missing or damaged.
    """
    path = folder / name
    if not path.is_file():
        raise UserError(f"{folder} has no {name}: it is not a finished output of compress")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}): the file is damaged") from error
    if not isinstance(data, dict):
        raise UserError(f"{path} is not a JSON object: the file is damaged")
    return data


def check_extra_files(folder: Path, source: Source) -> int:
    """Compare the copied files (tokenizer and the like) with the source's, byte by byte; how many there are.

    Raises:
        UserError: one is missing or differs.
    """
    count = 0
    for path in source.extra_files():
        relative = path.relative_to(source.path)
        if str(relative) in OWN_FILES or str(relative) == CARD:  # the card describes the output
            continue
        copy = folder / relative
        if not copy.is_file():
            raise UserError(f"{folder} lacks {relative}, which the source has")
        if not all(ours == theirs for ours, theirs in _pieces(copy, path)):
            raise UserError(f"{copy} differs from the source's {relative}")
        count += 1
    return count


def _pieces(first: Path, second: Path) -> Iterator[tuple[bytes, bytes]]:
    with first.open("rb") as left, second.open("rb") as right:
        while True:
            pair = left.read(_CHUNK), right.read(_CHUNK)
            yield pair
            if not pair[0] and not pair[1]:
                return


def check_files(folder: Path, plan: Plan) -> None:
    """The weight files are those of the plan, of its sizes, with its headers; the index says the same."""
    expected = {shard.filename for shard in plan.shards}
    present = {path.name for kind in ("*.safetensors", "*.gguf") for path in folder.glob(kind)}
    if strangers := sorted(present - expected):
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
    if len(plan.shards) > 1 and read_json(folder, INDEX) != index_json(plan.shards):
        raise UserError(f"{folder / INDEX} does not say where the tensors are")


def check_shard(
    folder: Path,
    shard: Shard,
    plan: Plan,
    source: Source,
    hashes: Mapping[str, str],
    progress: Callable[[int], None] | None,
) -> None:
    """Every tensor has the bytes that were written, and those passed through the bytes of the source."""
    unread = {n for n, made_of in plan.converted.items() if not source.unread.isdisjoint(made_of)}
    passed = {*plan.passed_through, *plan.converted} - source.unread - unread
    with (folder / shard.filename).open("rb") as file:
        for slot in shard.slots:
            file.seek(slot.offset)
            if slot.name not in hashes:
                raise UserError(f"{folder / REPORT} has no hash of tensor {slot.name}")
            original = _original(slot.name, plan, source) if slot.name in passed else None
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


def _original(name: str, plan: Plan, source: Source) -> memoryview:
    """The bytes that the source gives for an output tensor: its own, or what the form makes of them."""
    if name in plan.converted and isinstance(plan.exporter, OwnFile):
        return bytes_of(plan.exporter.convert(name, source, plan.facts))
    return source.raw_bytes(name)


def check_values(folder: Path, plan: Plan, source: Source) -> None:
    """Scales and dense values are finite, plain codes in range, and a recorded shape is the weight's."""
    places = {slot.name: (folder / shard.filename, slot) for shard in plan.shards for slot in shard.slots}
    unread = source.unread.intersection(plan.passed_through)
    cache = plan.facts.kv_cache
    scales = cache.specs(plan.facts.dtype) if cache is not None else ()
    for name in (*plan.rewritten.values(), *unread, *plan.converted, *scales):
        _check_finite(*places[name])
    checked: set[str] = set()
    for weight in plan.weights:
        for name in weight.tensors.keys() - checked:
            checked.add(name)
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
