"""Items of a benchmark, each carried out on its own: a failure becomes a row of the table, and the others go on."""

from __future__ import annotations

import re
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

TRACE_LINES = 6
STICKY = ("CUDA error", "illegal memory access", "unspecified launch failure", "device-side assert")
"""After one of these a process can use its GPU no more."""


@dataclass(frozen=True)
class Request:
    """What all parts are asked.

    Attributes:
        device: ``cuda`` or ``cpu``.
        quick: small shapes and few cases, for a machine without a GPU.
        folder: for models and outputs.
        phase: of a part that has more than one.
        only: a regular expression: items whose names it finds.
    """

    device: str
    quick: bool
    folder: str
    phase: str = ""
    only: str = ""


@dataclass(frozen=True)
class Item:
    """A piece of work: ``run()`` returns the row, less its name, or yields it as it grows."""

    name: str
    run: Callable[[], dict[str, Any] | Iterator[dict[str, Any]]]


def wanted(items: list[Item], request: Request) -> list[Item]:
    """The items of a part that were asked for."""
    return [item for item in items if re.search(request.only, item.name)]


def attempt(run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The row of ``run``, with its seconds; where it raises, the error and the last lines of its traceback."""
    start = time.perf_counter()
    try:
        row = run()
    except Exception as error:  # whatever it is, it is what this benchmark reports
        lines = "".join(traceback.format_exception(error)).strip().splitlines()
        row = {"error": f"{type(error).__name__}: {str(error)[:500]}", "trace": lines[-TRACE_LINES:]}
    return {**row, "seconds": round(time.perf_counter() - start, 2)}


def is_sticky(row: dict[str, Any]) -> bool:
    """Whether the process that made this row has lost its GPU."""
    return any(text in str(row) for text in STICKY)


def synchronize(device: str) -> None:
    """Wait for the device, so that its errors are raised here."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
