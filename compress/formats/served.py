"""Which outputs of shipped recipes a server was measured to read; :mod:`compress.formats.servers` holds what should be read."""

from __future__ import annotations

import json
from functools import cache
from typing import Literal

from compress.assets import served_file

Served = Literal["read", "failed", "not measured"]


def measured(recipe: str, format: str, server: str) -> Served:
    """What happened when a server was given the output of a recipe in a format, on the models of ``docs/servers.md``."""
    return _table().get((recipe, format, server), "not measured")


@cache
def _table() -> dict[tuple[str, str, str], Served]:
    rows = json.loads(served_file().read_text(encoding="utf-8"))
    return {
        (row["recipe"], row["format"], row["server"]): "read" if row["read"] else "failed" for row in rows
    }
