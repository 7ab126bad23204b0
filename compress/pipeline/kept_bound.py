"""Whether a run has kept within the memory that it was given."""

from __future__ import annotations

from collections.abc import Iterator

from compress.planning.plan import Plan
from compress.system.monitor import Monitor
from compress.system.units import in_bytes


def broken_bounds(plan: Plan, monitor: Monitor) -> Iterator[str]:
    """A sentence for each bound that was not kept."""
    if plan.promised is None:
        return
    bound = plan.promised.bound
    held = bound.base + (monitor.host_peak or 0)
    if bound.total is not None and monitor.host_peak is not None and held > bound.total:
        yield f"The run held {in_bytes(held)}, more than the {in_bytes(bound.total)} of --memory."
    if bound.device is not None and monitor.device_peak > bound.device:
        taken = in_bytes(monitor.device_peak)
        yield f"The run held {taken}, more than the {in_bytes(bound.device)} of --device-memory."
