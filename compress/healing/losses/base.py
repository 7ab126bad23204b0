"""What a loss sees: the logits of student and teacher at some positions, and the text."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Protocol

from torch import Tensor


@dataclass(frozen=True)
class Positions:
    """Positions of a text, flattened over windows.

    Attributes:
        student: logits fp32 ``[positions, vocabulary]``, with gradients.
        teacher: logits fp32 ``[positions, vocabulary]``.
        following: int64 ``[positions]``, the token that follows in the text; −1 where there is none.
    """

    student: Tensor
    teacher: Tensor
    following: Tensor

    @cached_property
    def log_q(self) -> Tensor:
        """The student's log-probabilities."""
        return self.student.log_softmax(-1)

    @cached_property
    def log_p(self) -> Tensor:
        """The teacher's log-probabilities."""
        return self.teacher.log_softmax(-1)

    def at_temperature(self, temperature: float) -> Positions:
        """The same with all logits divided by ``temperature``."""
        if temperature == 1.0:
            return self
        return Positions(self.student / temperature, self.teacher / temperature, self.following)


class Loss(Protocol):
    """One entry of :data:`compress.recipe.registry.LOSSES`; its fields are its options, ``weight`` among them.

    One whose class says ``recordable: ClassVar[bool] = True`` is made of operators of torch that read no number on the host: a
    step with it can be recorded on a GPU (:mod:`compress.healing.recorded`).
    """

    name: ClassVar[str]

    @property
    def weight(self) -> float:
        """The factor of this loss in the sum."""
        ...

    def __call__(self, positions: Positions) -> Tensor:
        """The loss of each position in nats, ``[positions]``."""
        ...


def of_following(values: Tensor, following: Tensor) -> Tensor:
    """The value ``[positions]`` of the following token in ``[positions, vocabulary]``; 0 where there is none."""
    chosen = values.gather(-1, following.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return chosen.masked_fill(following < 0, 0)


def at_positive_temperature(temperature: float) -> None:
    """Raise ``ValueError`` for a temperature of 0."""
    if temperature <= 0:
        raise ValueError("temperature is above 0")
