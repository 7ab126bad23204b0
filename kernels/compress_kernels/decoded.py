"""The weight of a packed layer as a tensor that is decoded when its values are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

_REFUSAL = (
    "the weight of a packed layer is decoded to be read and cannot be changed; "
    "to merge an adapter into it, decode the model first (format: dense)"
)

_TO_PYTHON = ("tolist", "numpy", "__array__")
"""What reads the memory of a tensor without an operator."""


class DecodedWeight(Tensor):
    """A dense weight ``[out, in]`` that exists while an operator reads it.

    Shape, dtype and device cost nothing. Every operator gets the decoded values and returns a plain tensor. An operator that
    changes the weight in place changes the decoded values, which ``keep`` is then given. Without ``keep``, and through
    ``.data``, a change raises ``TypeError``: it would be lost.
    """

    decode: Callable[[], Tensor]
    keep: Callable[[Tensor], None] | None

    @staticmethod
    def __new__(
        cls: type[DecodedWeight],
        shape: Sequence[int],
        dtype: torch.dtype,
        device: torch.device,
        decode: Callable[[], Tensor],
        keep: Callable[[Tensor], None] | None = None,
    ) -> DecodedWeight:
        """A stand-in for the weight ``[out, in]`` that ``decode`` makes when it is read."""
        weight: DecodedWeight = Tensor._make_wrapper_subclass(cls, tuple(shape), dtype=dtype, device=device)
        weight.decode, weight.keep = decode, keep
        return weight

    def __init__(self, *arguments: Any) -> None:
        """Made by ``__new__``."""

    def __repr__(self, **unused: Any) -> str:  # type: ignore[override]
        return f"DecodedWeight(shape={list(self.shape)}, dtype={self.dtype}, device={self.device})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return self.decode()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.decode().__reduce_ex__(protocol)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") == "__set__":  # .data, .grad and .requires_grad
            raise TypeError(_REFUSAL)
        if getattr(func, "__name__", "") in _TO_PYTHON:
            args = [value.decode() if isinstance(value, cls) else value for value in args]
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # the base class declares no classmethod
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten.detach.default:  # what .data is
            (weight,) = args
            return cls(weight.shape, weight.dtype, weight.device, weight.decode)
        named = dict(kwargs or {})
        changed: list[tuple[DecodedWeight, Tensor]] = []

        def dense_of(value: Any) -> Any:
            if not isinstance(value, cls):
                return value
            dense = next((dense for weight, dense in changed if weight is value), None)
            return value.decode() if dense is None else dense

        for position, argument in enumerate(func._schema.arguments):
            given = args[position] if position < len(args) else named.get(argument.name)
            written = argument.alias_info is not None and argument.alias_info.is_write
            if written and isinstance(given, cls):
                if given.keep is None:
                    raise TypeError(_REFUSAL)
                changed.append((given, given.decode()))
        args, named = tree_map(dense_of, (args, named))
        result = func(*args, **named)
        for weight, dense in changed:
            assert weight.keep is not None
            weight.keep(dense)
        return result
