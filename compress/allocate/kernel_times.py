"""Predicted decode times: what the products of one decoding step take, by a table of measured kernels that ships here.

A step multiplies every weight once by one row; a table of embeddings is looked up, not multiplied. Attention, norms and the
program around them are not counted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compress.allocate.candidates import DENSE
from compress.allocate.units import Choice, Unit
from compress.assets import kernel_times_file
from compress.errors import UserError

Seconds = Mapping[str, Mapping[str, float]]
"""Unit → label of a candidate → predicted seconds; candidates without a measured kernel are missing."""

_TIME = re.compile(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*(us|ms|s)-([A-Za-z0-9]+)\s*")
_SCALES = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


@dataclass(frozen=True)
class TimeLimit:
    """A budget of predicted decode time.

    Attributes:
        seconds: that the products of one decoding step may take.
        device: a name of the table.
        text: as it was written.
    """

    seconds: float
    device: str
    text: str


@dataclass(frozen=True)
class KernelTimes:
    """Measured kernels of one device.

    Attributes:
        device: the machine, in words.
        lines: beginning of a candidate's label → seconds of any product, and seconds more for each number of the weight.
    """

    device: str
    lines: Mapping[str, tuple[float, float]]

    def seconds(self, label: str, shape: tuple[int, int]) -> float | None:
        """Of one product with one row; None where no such kernel was measured."""
        kind = label.rpartition(", ")[2].partition("-")[0]
        if kind not in self.lines:
            return None
        base, slope = self.lines[kind]
        return base + slope * shape[0] * shape[1]


def parse_time(text: str) -> TimeLimit:
    """The time of a decoding step, such as ``30ms-cpu`` or ``0.8ms-h200``.

    Raises:
        UserError: it cannot be read, or the device is in no table.
    """
    found, known = _TIME.fullmatch(text), _tables()
    if found is None or found[3].lower() not in known or float(found[1]) <= 0:
        devices = ", ".join(known)
        raise UserError(
            f"--time {text!r} names no time on a measured device ({devices}); write it like 30ms-cpu or 800us-h200."
        )
    return TimeLimit(float(found[1]) * _SCALES[found[2]], found[3].lower(), text)


def kernel_times(device: str) -> KernelTimes:
    """The table of a device that :func:`parse_time` knows."""
    table = _tables()[device]
    lines = {name: (line["base"], line["per_weight"]) for name, line in table["kernels"].items()}
    return KernelTimes(table["device"], lines)


def predicted_seconds(units: Sequence[Unit], times: KernelTimes) -> dict[str, dict[str, float]]:
    """Seconds of every candidate of every unit for which a kernel was measured.

    Raises:
        UserError: the model has experts, of which a step runs a few.
    """
    if any(view.kind == "expert" for unit in units for view in unit.views):
        raise UserError("--time knows no mixtures of experts, of which a step runs a few: leave it out.")
    return {unit.name: _of_unit(unit, times) for unit in units}


def _of_unit(unit: Unit, times: KernelTimes) -> dict[str, float]:
    found = {}
    for choice in unit.every:
        parts = [times.seconds(choice.label, shape) for shape in _multiplied(unit, choice)]
        known = [part for part in parts if part is not None]
        if len(known) == len(parts):
            found[choice.label] = sum(known)
    return found


def _multiplied(unit: Unit, choice: Choice) -> list[tuple[int, int]]:
    """Shapes of the weights that a step multiplies by."""
    if choice.label == DENSE or not choice.weights:
        views = unit.views
    else:
        views = tuple(weight.view for weight in choice.weights)
    return [view.shape for view in views if view.kind != "embedding" or view.in_head]


def _tables() -> dict[str, dict[str, Any]]:
    tables: dict[str, dict[str, Any]] = json.loads(kernel_times_file().read_text(encoding="utf-8"))
    return tables
