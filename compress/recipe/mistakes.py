"""Mistakes in a recipe, in words: which key, what is wrong with it, what was meant."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from compress.recipe.grids import OutsideGrid, Quantize
from compress.recipe.heal import Heal
from compress.recipe.registry import did_you_mean, nearest
from compress.recipe.sections import (
    Activations,
    Calibrate,
    DepthPruning,
    KVCache,
    LowRank,
    Prune,
    Step,
    WidthPruning,
)

SECTIONS: dict[str, type[BaseModel]] = {
    "steps": Step,
    "quantize": Quantize,
    "activations": Activations,
    "kv_cache": KVCache,
    "prune": Prune,
    "lowrank": LowRank,
    "depth_pruning": DepthPruning,
    "width_pruning": WidthPruning,
    "calibrate": Calibrate,
    "embeddings": OutsideGrid,
    "head": OutsideGrid,
    "heal": Heal,
}
"""Key of a section → what it holds."""


def sentence(error: ValidationError, data: Mapping[str, Any], top: type[BaseModel]) -> str:
    """The first mistake: the key, what is wrong, what was meant.

    Args:
        error: what pydantic says of ``data``.
        data: the recipe, as YAML has it.
        top: what a recipe holds.
    """
    first = error.errors()[0]
    place = _place(first["loc"], data, missing=first["type"] == "missing")
    if first["type"] == "extra_forbidden":
        return (
            f"unknown key '{place}'{did_you_mean(str(first['loc'][-1]), _siblings(first['loc'][:-1], top))}"
        )
    if first["type"] == "missing":
        return f"the key '{place}' is missing"
    said = f"{reason(first)}, not {first['input']!r}{_meant(first)}"
    return f"'{place}': {said}" if place else said


def reason(first: Any) -> str:
    """What pydantic says of one mistake, without the words that are for programmers."""
    said = str(first["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    said = re.sub(r"valid dictionary or instance of \w+", "mapping", said.partition(", unable to parse")[0])
    said = said.replace("a valid tuple", "a list")
    return said[:1].lower() + said[1:]


def _meant(first: Any) -> str:
    """The nearest of the words that a value may be."""
    if first["type"] != "literal_error":
        return ""
    close = nearest(str(first["input"]), re.findall("'([^']+)'", first["ctx"]["expected"]))
    return "" if close is None else f"; did you mean '{close}'?"


def whole_key(key: str, data: Mapping[str, Any], top: type[BaseModel]) -> str:
    """The end of the sentence about a key of ``--set`` that there is not.

    It names the sections that have a key of this name (``bits`` → ``quantize.bits``), those that the recipe has if there
    are any; or else the nearest key.
    """
    head = key.partition(".")[0]
    known = {*top.model_fields, *Step.model_fields}
    holding = [name for name, section in SECTIONS.items() if name in known and head in section.model_fields]
    steps = [step for step in data.get("steps") or () if isinstance(step, Mapping)]
    used = {*data, *(name for step in steps for name in step)}
    chosen = [name for name in holding if name in used] or holding
    if chosen and "steps" not in chosen:
        return "; did you mean " + " or ".join(f"'{name}.{key}'" for name in chosen) + "?"
    return did_you_mean(head, known)


def _place(loc: Sequence[int | str], data: Any, *, missing: bool) -> str:
    """The keys and numbers of steps that lead to a mistake; the names of the types that pydantic tried are left out."""
    kept: list[str] = []
    for part in loc:
        listed = isinstance(data, list | tuple) and isinstance(part, int) and part < len(data)
        if listed or (isinstance(data, Mapping) and part in data):
            data = data[part]
        elif not (missing and part == loc[-1]):
            continue
        kept.append(str(part))
    return ".".join(kept)


def _siblings(loc: Sequence[int | str], top: type[BaseModel]) -> list[str]:
    """The keys that the mapping at ``loc`` may have."""
    model = top
    for part in loc:
        model = SECTIONS.get(str(part), model)
    return list(model.model_fields)
