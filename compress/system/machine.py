"""What was measured of this machine, kept in the user's cache directory for estimates of time."""

from __future__ import annotations

import contextlib
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from compress.errors import UserError

_VERSION = 1
_CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Machine:
    """Rates of a machine.

    Attributes:
        products: dtype, such as ``"bfloat16"`` → multiply-adds in a second.
        bandwidth: bytes in a second that one copy in memory reads and writes, taken together.
        read, write: bytes in a second from and to the disk of the temporary folder.
        solvers: solver → its measured time over what the other figures say; 1 where it was not measured.
        cpu: the processor's name.
        threads: that torch took.
        device: where products were measured: ``"cpu"`` or ``"cuda"``.
        day: of the measurement, ISO 8601; empty where nothing was measured.
    """

    products: Mapping[str, float]
    bandwidth: float = 8e9
    read: float = 1e9
    write: float = 3e8
    solvers: Mapping[str, float] = field(default_factory=dict)
    cpu: str = ""
    threads: int = 0
    device: str = "cpu"
    day: str = ""

    @property
    def source(self) -> str:
        """Where the figures come from, in words."""
        if not self.day:
            return "assumed but for two short products; compress plan --measure measures this machine"
        return f"measured on {self.day}, {self.cpu}, threads: {self.threads}"

    def product_rate(self, dtype: str) -> float:
        """Multiply-adds in a second in ``dtype``, such as ``"bfloat16"``; those of fp32 where it was not measured."""
        return self.products.get(dtype, self.products["float32"])

    def solver(self, name: str) -> float:
        """What the estimate of a solver's time is multiplied by."""
        return self.solvers.get(name, 1.0)


def cpu_name() -> str:
    """The processor's name, or what the system says instead."""
    with contextlib.suppress(OSError):
        for line in _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or "a processor without a name"


def cache_file() -> Path:
    """``compress/machine.json`` in the user's cache directory (``XDG_CACHE_HOME``, or ``~/.cache``)."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "compress" / "machine.json"


def store_machine(machine: Machine) -> Path:
    """Keep the figures for later plans; those of another device stay.

    Raises:
        UserError: the cache directory cannot be written.
    """
    path = cache_file()
    kept = _read(path)
    kept[machine.device] = {"version": _VERSION, **asdict(machine)}
    partial = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}): set XDG_CACHE_HOME to a folder that can"
        ) from error
    return path


def stored_machine(device: str, threads: int) -> Machine | None:
    """What was measured of this processor with as many threads, or None.

    Args:
        device: ``"cpu"`` or ``"cuda"``.
        threads: that torch takes.
    """
    entry = _read(cache_file()).get(device)
    if not isinstance(entry, dict) or entry.pop("version", None) != _VERSION:
        return None
    try:
        machine = Machine(**entry)
        rates = [*machine.products.values(), *machine.solvers.values()]
        sound = all(rate > 0 for rate in (*rates, machine.bandwidth, machine.read, machine.write))
    except (TypeError, AttributeError):
        return None
    if not sound or "float32" not in machine.products:
        return None
    return machine if (machine.cpu, machine.threads) == (cpu_name(), threads) else None


def _read(path: Path) -> dict[str, object]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
