"""What differs between two runs, in words: the settings that an unfinished output was begun with, and those of now."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

_HASH = re.compile(r"[0-9a-f]{32,}")
_SHOWN = 4
_LONGEST = 40


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Name the settings that differ, by dotted keys: ``recipe.steps.0.quantize.bits (4, now 3)``; empty if none do."""
    old, new = dict(_flat(before)), dict(_flat(now))
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    shown = ", ".join(_difference(key, old, new) for key in keys[:_SHOWN])
    return shown + (f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else "")


def _difference(key: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    values = [old.get(key), new.get(key)]
    if all(isinstance(value, str) and _HASH.fullmatch(value) for value in values):
        return key
    return f"{key} ({_short(old, key)}, now {_short(new, key)})"


def _short(values: Mapping[str, Any], key: str) -> str:
    if key not in values:
        return "absent"
    text = values[key] if isinstance(values[key], str) else json.dumps(values[key], default=str)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _flat(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple) and value and not all(isinstance(item, str | int) for item in value):
        for index, inner in enumerate(value):
            yield from _flat(inner, f"{key}.{index}")
    else:
        yield key, list(value) if isinstance(value, tuple) else value
