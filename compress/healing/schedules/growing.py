"""``growing``: larger batches in the place of smaller steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Growing:
    """The batch grows in the place of a falling rate (Smith et al., arXiv:1711.00489), by the square root rule of Adam (Malladi
    et al., arXiv:2205.10287): where linear decay over the windows would have a factor f, the batch is ``1 / f²`` times the
    first and the rate stays, until the batch is ``most`` times the first; from there on the rate falls on a line to 0.

    The windows are the same as in other schedules, and the steps fewer: about a third with ``most`` of 16.
    """

    most: float = 16.0

    name: ClassVar[str] = "growing"

    def __post_init__(self) -> None:
        if self.most < 1:
            raise ValueError("most is at least 1")

    def sizes(self, batch: int, windows: int) -> tuple[int, ...]:
        """Windows of every step, ``windows`` in all, where the first steps have ``batch``."""
        found: list[int] = []
        place = 0
        while place < windows:
            left = 1 - place / windows
            size = min(windows - place, max(batch, round(batch * min(self.most, left**-2))))
            found.append(size)
            place += size
        return tuple(found)

    def factor(self, step: int, steps: int) -> float:
        """The learning rate of ``step`` (from 0) as a share of the largest, that of its middle.

        With the share t of the windows at the share x of the steps: ``dt/dx`` is in proportion to the batch, so that
        ``(1 − t)³`` falls on a line while the batch grows.
        """
        end = self.most**-0.5
        place = (step + 0.5) / steps * (1 + 2 * end**3) / 3
        beyond = place - (1 - end**3) / 3
        return 1.0 if beyond <= 0 else max(0.0, 1 - beyond * self.most / end)
