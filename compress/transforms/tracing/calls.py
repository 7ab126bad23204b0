"""An operator's call while a forward is watched, and what all rules for labels share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from .labels import Along, Label, Labels, Row


@dataclass(frozen=True)
class Call:
    """An operator's call.

    Attributes:
        name: without its overload, and without the underscore of one that works in place.
        result: its first result.
        onto_zeros: whether its first tensor held nothing but zeros.
    """

    labels: Labels
    name: str
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    result: Tensor
    onto_zeros: bool = False

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument by its position or its name."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)

    def refuse(self, *tensors: Any) -> None:
        """No rotation goes through this operator."""
        for tensor in tree_leaves(tensors):
            if isinstance(tensor, Tensor):
                self.labels.refuse(tensor, f"{self.labels.place} computes '{self.name}' of it")


Rule = Callable[[Call], Row]


def scaled(label: Along) -> str:
    """The refusal of what was scaled by a norm and goes elsewhere than into a linear layer."""
    if label.norm is None:
        return "squares of its features are used in other ways than for a norm"
    return f"{label.norm.weight or label.norm.bias} scales it, and not what a linear layer reads alone"


def unknown(call: Call) -> Row:
    """Of an operator that no rule knows: no rotation goes through it."""
    call.refuse(call.args, call.kwargs)
    return (None,) * call.result.ndim


def expanded(call: Call) -> Row:
    """Of a tensor that was broadcast: its labels, behind new dimensions without any."""
    row = call.labels.of(call.args[0])
    return (None,) * (call.result.ndim - len(row)) + row


def aligned(call: Call, tensor: Any, dim: int) -> tuple[Label, int]:
    """The label and the size of a tensor's dimension that meets dimension ``dim`` of the result by broadcasting."""
    if not isinstance(tensor, Tensor):
        return None, 1
    own = dim - (call.result.ndim - tensor.ndim)
    return (None, 1) if own < 0 else (call.labels.of(tensor)[own], tensor.shape[own])


def labelled(labels: Labels, tensor: Tensor) -> bool:
    """Whether a dimension of a tensor has a label."""
    return any(label is not None for label in labels.of(tensor))
