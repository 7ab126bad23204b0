"""What an optimizer says: from a gradient and a state to a direction."""

from __future__ import annotations

from typing import ClassVar, Protocol

from torch import Tensor


class Optimizer(Protocol):
    """One entry of :data:`compress.recipe.registry.OPTIMIZERS`; its fields are its options.

    One that takes no gradients has ``begin_all`` and ``step_forward`` in the place of ``step``
    (:class:`compress.healing.optimizers.spsa.SPSA`). One whose class says ``together: ClassVar[bool] = True`` has
    ``step_together``, which changes many tensors with few kernels (:class:`compress.healing.optimizers.adamw.AdamW`). An
    optimizer keeps nothing itself: the state of a tensor is a few tensors, so that training can be interrupted and continued to
    the bit.
    """

    name: ClassVar[str]

    def begin(self, master: Tensor) -> dict[str, Tensor]:
        """The state of a tensor before the first step."""
        ...

    def step(
        self, master: Tensor, gradient: Tensor, state: dict[str, Tensor], *, rate: Tensor, count: int | Tensor
    ) -> None:
        """Change ``master`` and ``state`` in place.

        Args:
            master: fp32.
            gradient: fp32, of the master's shape.
            state: as :meth:`begin` made it.
            rate: learning rate, one number or of the master's shape.
            count: the step, from 1; one number on the master's device where the step is recorded on a GPU.
        """
        ...
