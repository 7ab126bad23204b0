"""Is a written checkpoint still what its own report says: sizes of files, hashes of tensors. Needs no source."""

from __future__ import annotations

import hashlib
import json
import logging
from typing import Any

from compress.checkpoint.files import sha256_of
from compress.checkpoint.source import Source
from compress.errors import UserError

_LOG = logging.getLogger(__name__)

_REPORT = "compress.json"
_CHUNK = 8 << 20


def check_sizes(source: Source) -> None:
    """Hold the sizes of the weight files against the report beside them, if there is one.

    Raises:
        UserError: a file is missing, cut off or too long.
    """
    shards = _report(source).get("shards")
    for shard in shards if isinstance(shards, list) else ():
        if not isinstance(shard, dict) or not isinstance(shard.get("file"), str):
            continue
        path = source.path / shard["file"]
        size = path.stat().st_size if path.is_file() else None
        if size != shard.get("bytes"):
            raise UserError(
                f"{path} has {'no' if size is None else size} bytes, written were {shard.get('bytes')}: copy it again"
            )


def check_hashes(source: Source) -> None:
    """Hold the bytes of every tensor against the hashes in the report; reads all weights once.

    Raises:
        UserError: there is no report with hashes, or a tensor that is not as it was written, named.
    """
    report = _report(source)
    hashes = report.get("tensors")
    if not isinstance(hashes, dict) or not hashes:
        raise UserError(
            f"{source.path} has no {_REPORT} with hashes: only what compress has written can be checked"
        )
    if any(file.suffix != ".safetensors" for file in source.files):
        _check_files(source, report)  # tensors have other names in such a file
        return
    if odd := sorted(source.headers.keys() ^ hashes.keys()):
        raise UserError(
            f"{source.path}: tensor {odd[0]} is not both in the files and in {_REPORT}: the output is damaged"
        )
    _LOG.info("hashing the tensors of %s", source.path)
    for name, expected in hashes.items():
        data, digest = source.raw_bytes(name), hashlib.sha256()
        for start in range(0, len(data), _CHUNK):
            digest.update(data[start : start + _CHUNK])
        if digest.hexdigest() != expected:
            raise UserError(
                f"{source.path}: tensor {name} was changed after it was written: copy the output again"
            )


def _check_files(source: Source, report: dict[str, Any]) -> None:
    shards = report.get("shards")
    known = (
        {shard.get("file"): shard.get("sha256") for shard in shards if isinstance(shard, dict)}
        if isinstance(shards, list)
        else {}
    )
    for file in source.files:
        if sha256_of(file) != known.get(file.name):
            raise UserError(f"{file} was changed after it was written: copy the output again")


def _report(source: Source) -> dict[str, Any]:
    try:
        data = json.loads((source.path / _REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}
