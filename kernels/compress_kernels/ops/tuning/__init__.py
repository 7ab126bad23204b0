"""Tile sizes of the Triton kernels, as data: one JSON file for each device that was measured, and defaults.

A file maps operator → regime (``decode``, ``prefill``) → settings. ``default.json`` was chosen by reading, not by
measuring; a file named after ``torch.cuda.get_device_name()`` (lower case, runs of other characters as ``-``)
overrides it entry by entry.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

_HERE = Path(__file__).parent


def file_name(device_name: str) -> str:
    """``NVIDIA H100 80GB HBM3`` → ``nvidia-h100-80gb-hbm3.json``."""
    return re.sub(r"[^a-z0-9]+", "-", device_name.lower()).strip("-") + ".json"


@functools.cache
def table(device_name: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Operator → regime → settings for a device of this name."""
    merged: dict[str, dict[str, dict[str, Any]]] = {}
    for path in (_HERE / "default.json", _HERE / file_name(device_name)):
        if path.is_file():
            for operator, regimes in json.loads(path.read_text()).items():
                merged.setdefault(operator, {}).update(regimes)
    return merged


def candidates(operator: str, regime: str) -> list[dict[str, Any]]:
    """Autotune space: the settings to try for an operator in a regime, from ``spaces.json``; the default comes first."""
    space = json.loads((_HERE / "spaces.json").read_text()).get(operator, {}).get(regime, {})
    default = table("default").get(operator, {}).get(regime)
    if default is None:
        return []
    names = list(space)
    every = [dict(zip(names, values, strict=True)) for values in itertools.product(*space.values())]
    return [default, *(choice for choice in ({**default, **one} for one in every) if choice != default)]


@contextmanager
def using(operator: str, regime: str, choice: dict[str, Any], device: torch.device) -> Iterator[None]:
    """``choice`` in place of the settings of ``operator`` in ``regime`` on ``device``: for trying them out."""
    regimes = _of(device)[operator]
    before = regimes[regime]
    regimes[regime] = choice
    try:
        yield
    finally:
        regimes[regime] = before


def settings(operator: str, regime: str, device: torch.device) -> dict[str, Any]:
    """The settings of ``operator`` in ``regime`` on ``device``; the interpreter gets small tiles."""
    return _of(device)[operator][regime]


def _of(device: torch.device) -> dict[str, dict[str, dict[str, Any]]]:
    return table("interpreter" if device.type != "cuda" else torch.cuda.get_device_name(device))
