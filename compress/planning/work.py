"""What a run computes, as counts, and the time that a machine takes for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from compress.system.machine import Machine

START = 10.0
"""Seconds for Python, its libraries, and the process of its own that opens the output."""


@dataclass(frozen=True)
class Cost:
    """Work of a solver.

    Attributes:
        seconds: between products: Python and the starts of operators.
        products: multiply-adds in fp32.
        moved: bytes read and written by operators on single elements.
    """

    seconds: float = 0.0
    products: float = 0.0
    moved: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.seconds + other.seconds, self.products + other.products, self.moved + other.moved)

    def at(self, machine: Machine) -> float:
        """Seconds on a machine."""
        return self.seconds + self.products / machine.product_rate("float32") + self.moved / machine.bandwidth


@dataclass(frozen=True)
class Work:
    """What a run computes.

    Attributes:
        dtype: of the blocks, such as ``"bfloat16"``.
        blocks: multiply-adds of passes in that dtype, and of Gram and cross moments of inputs in it.
        statistics: multiply-adds in fp32: passes with gradients.
        moved: bytes that operators on single elements read and write.
        solving: solver → its work.
        read, written: bytes of files.
        fixed: seconds that depend on no rate.
    """

    dtype: str
    blocks: float = 0.0
    statistics: float = 0.0
    moved: float = 0.0
    solving: Mapping[str, Cost] = field(default_factory=dict)
    read: float = 0.0
    written: float = 0.0
    fixed: float = START

    def seconds(self, machine: Machine) -> float:
        """The time of a run on a machine that does nothing else."""
        solving = sum(machine.solver(name) * cost.at(machine) for name, cost in self.solving.items())
        passes = self.blocks / machine.product_rate(self.dtype)
        files = self.read / machine.read + self.written / machine.write
        statistics = self.statistics / machine.product_rate("float32")
        return self.fixed + passes + statistics + self.moved / machine.bandwidth + solving + files
