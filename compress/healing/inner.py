"""What losses and penalties see inside the models: the outputs of blocks, and of the student's linear layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from compress.healing.trained import Trained


@dataclass(frozen=True)
class Seen:
    """A forward pass.

    Attributes:
        logits: ``[windows, length, vocabulary]``.
        states: of every block its output ``[windows, length, width]``, the last one behind the final norm; empty unless asked.
        outputs: of every linear layer of the blocks its output ``[…, out]``; empty unless asked.
    """

    logits: Tensor
    states: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()


class InnerLoss(Protocol):
    """An entry of :data:`compress.recipe.registry.LOSSES` that reads the outputs of blocks in the place of logits alone."""

    name: ClassVar[str]

    @property
    def weight(self) -> float:
        """The factor of this loss in the sum."""
        ...

    def begin(self, teacher: nn.Module) -> dict[str, Trained]:
        """Tensors of its own that are trained beside the student's, and that no checkpoint keeps."""
        ...

    def of_states(self, student: Seen, teacher: Seen, trained: Mapping[str, Trained]) -> Tensor:
        """The sum over all positions, with gradients to the student's states and to tensors of its own."""
        ...


class OutputPenalty(Protocol):
    """An entry of :data:`compress.recipe.registry.PENALTIES` that reads the outputs of the student's linear layers."""

    name: ClassVar[str]

    def of_output(self, output: Tensor) -> Tensor:
        """A number with gradients to the output ``[…, out]`` of one layer; the mean over layers is added to the loss."""
        ...


@dataclass(frozen=True)
class Inner:
    """The losses on states and the penalties on outputs of a training."""

    losses: Sequence[InnerLoss] = ()
    penalties: Sequence[OutputPenalty] = ()

    def student(self, model: nn.Module, tokens: Tensor) -> Seen:
        """The student's forward pass, with what is read of it."""
        if not self.penalties:
            return forward(model, tokens, states=bool(self.losses))
        with outputs_of_linears(model) as outputs:
            seen = forward(model, tokens, states=bool(self.losses))
        return Seen(seen.logits, seen.states, tuple(outputs))

    def sum(self, student: Seen, teacher: Seen, trained: Mapping[str, Trained]) -> Tensor | None:
        """The sum over positions of all terms; None where there are none."""
        if not self.losses and not self.penalties:
            return None
        positions = student.logits.shape[0] * student.logits.shape[1]
        total = student.logits.new_zeros((), dtype=torch.float32)
        for loss in self.losses:
            total = total + loss.weight * loss.of_states(student, teacher, trained)
        for penalty in self.penalties:
            layers = torch.stack([penalty.of_output(output) for output in student.outputs])
            total = total + positions * layers.mean()
        return total


def forward(model: nn.Module, tokens: Tensor, *, states: bool = False) -> Seen:
    """Logits of windows of tokens ``[windows, length]``, and the outputs of blocks where ``states`` asks for them."""
    out: Any = model(input_ids=tokens, use_cache=False, **({"output_hidden_states": True} if states else {}))
    return Seen(out.logits, tuple(out.hidden_states[1:]) if states else ())


def head_of(model: Any) -> Any:
    """The module in front of the logits; None where the model has none."""
    return model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None


@contextmanager
def outputs_of_linears(model: nn.Module) -> Iterator[list[Tensor]]:
    """The list that the outputs of all linear layers but the head are put into, in the order of their calls, once each."""
    found: list[Tensor] = []
    head = head_of(model)

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        found.append(output)

    hooks = [
        module.register_forward_hook(keep)
        for module in model.modules()
        if hasattr(module, "in_features") and hasattr(module, "out_features") and module is not head
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
