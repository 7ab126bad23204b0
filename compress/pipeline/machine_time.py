"""The time of a planned run on this machine, and the measurement of the machine for it."""

from __future__ import annotations

from pathlib import Path

import torch

from compress.planning.measure import measure_machine
from compress.planning.plan import Plan
from compress.system.device import resolve_device
from compress.system.machine import Machine, store_machine
from compress.system.rate import machine_for


def measure_here() -> tuple[Machine, Path]:
    """Measure this machine, with its accelerator where it has one, and keep the figures for later plans.

    Returns:
        The figures, and the file that holds them.

    Raises:
        UserError: the cache directory cannot be written.
    """
    machine = measure_machine(resolve_device("auto"))
    return machine, store_machine(machine)


def time_of(plan: Plan) -> tuple[float | None, str]:
    """Seconds that a run of a plan takes on this machine, and whether its figures are measured or assumed.

    The time is None where it is not estimated (searches, low rank, transforms).
    """
    if plan.work is None:
        return None, "not estimated for this recipe"
    dtype: torch.dtype = getattr(torch, plan.work.dtype)
    machine = machine_for(resolve_device("auto"), dtype)
    return plan.work.seconds(machine), machine.source
