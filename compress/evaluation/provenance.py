"""What the candidates' `compress.json` say of how they were made: recipe, seed and calibration text."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.checkpoint.writer import REPORT
from compress.evaluation.figures import CheckpointFigures, SeedSpread


@dataclass(frozen=True)
class Provenance:
    """How an output was made.

    Attributes:
        recipe: its name.
        key: the same for two outputs that differ in their seeds alone.
        calibration: the text's name; None without one.
        tokens: of the calibration.
        widest: the most columns of a weight that was compressed.
    """

    recipe: str
    key: str
    seed: int
    calibration: str | None
    tokens: int
    widest: int


def read_provenance(folder: str | Path) -> Provenance | None:
    """What an output's `compress.json` says; None where there is none that can be read."""
    try:
        data = json.loads((Path(folder) / REPORT).read_text(encoding="utf-8"))
        return _provenance(data)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _provenance(data: Mapping[str, Any]) -> Provenance:
    text = data.get("calibration") or {}
    widths = [int(weight["shape"][1]) for weight in data["weights"]]
    return Provenance(
        recipe=str(data["recipe"].get("name", "unnamed")),
        key=recipe_key(data["recipe"], text),
        seed=int(data["seed"]),
        calibration=text.get("data"),
        tokens=int(text.get("tokens", 0)),
        widest=max(widths, default=0),
    )


def recipe_key(recipe: Mapping[str, Any], calibration: Mapping[str, Any] | None) -> str:
    """The same text for two outputs that differ in their seeds alone."""
    return json.dumps([recipe, calibration or {}], sort_keys=True, default=str)


def seed_spreads(entries: Sequence[tuple[str, str, str, int, float | None]]) -> tuple[SeedSpread, ...]:
    """What the seed alone changes.

    Args:
        entries: name, recipe's key, recipe's name, seed and KL in nats of each output.

    Returns:
        One for each recipe that was run with two seeds or more.
    """
    groups: dict[str, list[tuple[str, str, int, float]]] = {}
    for name, key, recipe, seed, kl in entries:
        if kl is not None and math.isfinite(kl):
            groups.setdefault(key, []).append((name, recipe, seed, kl))
    return tuple(
        SeedSpread(
            group[0][1],
            tuple(name for name, _, _, _ in group),
            statistics.fmean(kl for *_, kl in group),
            statistics.stdev(kl for *_, kl in group),
        )
        for group in groups.values()
        if len({seed for _, _, seed, _ in group}) > 1
    )


def spreads_of(
    rows: Sequence[CheckpointFigures], made: Sequence[Provenance | None]
) -> tuple[SeedSpread, ...]:
    """The same of candidates, each with how it was made."""
    return seed_spreads(
        [
            (row.name, one.key, one.recipe, one.seed, row.kl)
            for row, one in zip(rows, made, strict=True)
            if one is not None
        ]
    )


def thin_notes(names: Sequence[str], made: Sequence[Provenance | None]) -> list[str]:
    """A sentence for each output whose calibration had too few tokens for its widest weight."""
    return [
        f"{name} was calibrated on {one.tokens:,} tokens, fewer than twice the {one.widest:,} inputs of its widest weight: "
        "take more of them."
        for name, one in zip(names, made, strict=True)
        if one is not None and one.calibration is not None and one.tokens < 2 * one.widest
    ]
