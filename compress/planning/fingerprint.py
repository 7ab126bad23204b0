"""The fingerprint of a run: a hash of all that decides the output's bytes."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from compress.checkpoint.fingerprint import content_fingerprint
from compress.checkpoint.source import Source
from compress.planning.plan import Plan


def fingerprint(plan: Plan, source: Source, **parts: Any) -> str:
    """A hash of all that decides the output's bytes.

    ``parts`` are what only the run knows: seed, dtype, device, a hash of the calibration tokens, versions. The source
    counts by its configuration, the sizes and times of its files, and samples of every tensor
    (:func:`compress.checkpoint.fingerprint.content_fingerprint`).
    """
    files = {file.name: (file.stat().st_size, file.stat().st_mtime_ns) for file in source.files}
    headers = {n: (str(i.dtype), i.shape, i.offset, i.file.name) for n, i in source.headers.items()}
    everything = {
        "plan": {key: value for key, value in plan.to_json().items() if not key.endswith("_memory")},
        "config": source.config,
        "files": files,
        "content": content_fingerprint(source.files),
        "headers": headers,
        "parts": parts,
    }
    return hashlib.sha256(json.dumps(everything, sort_keys=True, default=str).encode()).hexdigest()
