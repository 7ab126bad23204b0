"""Inputs of single experts where all experts are slices of one 3-D parameter.

The module's own loop over its experts runs, so routing, biases, gating and clamping are the model's. Every product with a
slice of the parameter is recorded, whichever way round the parameter is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_PRODUCTS: frozenset[Any] = frozenset(
    (nn.functional.linear, torch.matmul, torch.mm, torch.bmm, Tensor.matmul, Tensor.mm, Tensor.bmm)
) | {Tensor.__matmul__}
_ADDED_PRODUCTS: frozenset[Any] = frozenset((torch.addmm, torch.baddbmm, Tensor.addmm, Tensor.baddbmm))


class ExpertRecorder(TorchFunctionMode):
    """Context that reports every product of an input with an expert's slice of a parameter.

    Args:
        parameters: `[experts, …, …]` by name.
        report: called with the name, the expert, and the input `[tokens, in]`.
    """

    def __init__(self, parameters: Mapping[str, Tensor], report: Callable[[str, int, Tensor], None]) -> None:
        super().__init__()
        self._report = report
        self._spans = [
            (tensor.data_ptr(), tensor.data_ptr() + tensor.numel() * tensor.element_size(), name, tensor)
            for name, tensor in parameters.items()
        ]

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _PRODUCTS:
            self._look(*args[:2])
        elif func in _ADDED_PRODUCTS:
            self._look(*args[1:3])
        return func(*args, **(kwargs or {}))

    def _look(self, inputs: Any = None, weight: Any = None) -> None:
        if not isinstance(weight, Tensor) or not isinstance(inputs, Tensor):
            return
        if self._match(weight, inputs):
            return
        if weight.dim() > 1:  # some models put the weight first: W xᵀ
            self._match(inputs, weight.transpose(-1, -2))

    def _match(self, weight: Tensor, inputs: Tensor) -> bool:
        for start, end, name, parameter in self._spans:
            address = weight.data_ptr()
            if not start <= address < end:
                continue
            if weight.dim() == 2:
                expert = (address - start) // (parameter.element_size() * parameter.stride(0))
                self._report(name, expert, inputs.reshape(-1, inputs.shape[-1]))
            else:
                self._report_all(name, inputs)
            return True
        return False

    def _report_all(self, name: str, inputs: Tensor) -> None:
        """Inputs of all experts at once, `[experts, tokens, in]`: rows of tokens that are not routed to one are zero."""
        for expert, rows in enumerate(inputs):
            self._report(name, expert, rows[rows.any(-1)])


def expert_product(
    func: Any, args: tuple[Any, ...], parameters: Mapping[str, Tensor]
) -> tuple[int, str, bool] | None:
    """Which argument of a product is the input of an expert.

    Args:
        func, args: as a ``TorchFunctionMode`` is given them.
        parameters: ``[experts, …, …]`` by name.

    Returns:
        The place of the input among the arguments, the name of the parameter, and whether the weight comes first in the
        product (W xᵀ); None where it is no product of an expert.
    """
    first = 0 if func in _PRODUCTS else 1 if func in _ADDED_PRODUCTS else None
    if first is None or len(args) < first + 2:
        return None
    left, right = args[first : first + 2]
    if not isinstance(left, Tensor) or not isinstance(right, Tensor):
        return None
    for place, weight in ((first, right), (first + 1, left)):
        for name, parameter in parameters.items():
            start = parameter.data_ptr()
            if start <= weight.data_ptr() < start + parameter.numel() * parameter.element_size():
                return place, name, place != first
    return None


@contextmanager
def eager_experts(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Expert modules of transformers run their own loop over the experts while the context lasts: the products of a fused
    kernel cannot be recorded."""
    configs: dict[int, Any] = {
        id(module.config): module.config for module in modules if hasattr(module, "config")
    }
    before = {key: getattr(config, "_experts_implementation", None) for key, config in configs.items()}
    try:
        for config in configs.values():
            config._experts_implementation = "eager"
        yield
    finally:
        for key, config in configs.items():
            config._experts_implementation = before[key]
