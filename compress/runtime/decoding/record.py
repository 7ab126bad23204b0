"""A step of a model, recorded: every operator that it called, with the very tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .attention import Unsupported

_READS = ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "unique", "equal")
"""Operators whose results are numbers or shapes that depend on values: a replay would not see them change."""


@dataclass(frozen=True)
class Call:
    """An operator, all its arguments in the order of its schema, and what it returned."""

    name: str
    overload: str
    arguments: tuple[Any, ...]
    """As they were given: a number may stand for a tensor."""
    results: tuple[Tensor, ...]
    writes: bool
    """Whether it changes an argument in place."""
    numbers: tuple[bool, ...]
    """Which of the arguments are numbers in the place of tensors."""

    @property
    def operator(self) -> str:
        """As in ``aten.add.Tensor``."""
        return f"{self.name.replace('::', '.')}.{self.overload or 'default'}"

    @property
    def boxed(self) -> list[Any]:
        """The arguments as torch's dispatcher takes them."""
        return [
            torch.tensor(value) if number else value
            for value, number in zip(self.arguments, self.numbers, strict=True)
        ]

    @property
    def inputs(self) -> Iterator[Tensor]:
        """The tensors among the arguments."""
        return _tensors(self.arguments)


class Recorder(TorchDispatchMode):
    """Records what is called within it on real tensors; views are left out, since their tensors are alive.

    Raises:
        Unsupported: an operator whose result is not a tensor of a shape that is known beforehand.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name, overload = func._schema.name, func._schema.overload_name
        if name.split("::")[-1] in _READS:
            raise Unsupported(f"{name} reads values of a tensor")
        arguments = _in_order(func._schema, args, kwargs or {})
        numbers = tuple(
            isinstance(value, (int, float)) and isinstance(argument.type, torch.TensorType)
            for value, argument in zip(arguments, func._schema.arguments, strict=True)
        )
        results = tuple(_tensors((result,)))
        call = Call(name, overload, arguments, results, func._schema.is_mutable, numbers)
        if call.writes or not _is_view(call):
            self.calls.append(call)
        return result


def needed(calls: Sequence[Call], result: Tensor) -> list[Call]:
    """Those of ``calls`` that ``result`` depends on, and those that write to tensors from outside."""
    made = {_storage(tensor) for call in calls if not call.writes for tensor in call.results}
    wanted, kept = {_storage(result)}, list[Call]()
    for call in reversed(calls):
        touched = {_storage(tensor) for tensor in call.results}
        if touched & wanted or (call.writes and touched - made):
            kept.append(call)
            wanted |= {_storage(tensor) for tensor in call.inputs}
    return kept[::-1]


def same_memory(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same numbers, seen in the same order."""
    return one.data_ptr() == other.data_ptr() and one.numel() == other.numel() and one.dtype == other.dtype


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _is_view(call: Call) -> bool:
    held = {_storage(tensor) for tensor in call.inputs}
    return bool(call.results) and all(_storage(tensor) in held for tensor in call.results)


def _tensors(values: Sequence[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _in_order(schema: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    values = list(args)
    for argument in schema.arguments[len(values) :]:
        values.append(kwargs.get(argument.name, argument.default_value))
    return tuple(values)


def all_on_cpu(call: Call) -> bool:
    """Whether a call is one that the CPU can replay."""
    return all(tensor.device == torch.device("cpu") for tensor in (*call.inputs, *call.results))
