"""Which shipped recipes a server was measured to read: the table that ships with the package for `compress recommend`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from compress.assets import ASSETS

OUT = ASSETS / "served.json"


def served(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for each recipe, format and server that was tried: whether all such checkpoints were read, the newest version.

    Args:
        rows: of ``benchmarks/results/servers.json``.
    """
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in rows:
        if "not_run" in row or row["recipe"] == "dense":
            continue
        key = row["recipe"], row["format"], row["server"]
        known = found.get(key)
        found[key] = {
            "recipe": key[0],
            "format": key[1],
            "server": key[2],
            "version": max(row["version"], known["version"]) if known else row["version"],
            "read": "perplexity" in row and (known is None or known["read"]),
        }
    return [found[key] for key in sorted(found)]


def write_served(rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the table, a line for each row."""
    lines = ",\n".join(json.dumps(row) for row in served(rows))
    OUT.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
