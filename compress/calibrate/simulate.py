"""Activation rounding while a model is calibrated: the inputs of linear layers and experts are what a server multiplies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from compress_kernels.activations import (
    GLOBAL_SUFFIX,
    SCALE_SUFFIX,
    ZERO_SUFFIX,
    ActivationScheme,
    fake_quantize,
)
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from compress.calibrate.experts import eager_experts, expert_product
from compress.models.kv_cache import Store, store_through
from compress.models.views import WeightView


@dataclass(frozen=True)
class InputRounding:
    """How the inputs of one weight are rounded.

    Attributes:
        scheme: the activation scheme.
        stored: suffix → calibrated tensor ``[1]``; empty for a dynamic scheme.
    """

    scheme: ActivationScheme
    stored: Mapping[str, Tensor] = field(default_factory=dict)

    def __call__(self, x: Tensor) -> Tensor:
        """The rounded inputs ``[…, in]`` in their dtype; gradients pass straight through."""
        stored = {suffix: tensor.to(x.device) for suffix, tensor in self.stored.items()}
        scale = stored.get(SCALE_SUFFIX, stored.get(GLOBAL_SUFFIX))
        rounded = fake_quantize(x.detach(), self.scheme, scale, stored.get(ZERO_SUFFIX))
        return x + (rounded - x.detach()) if x.requires_grad else rounded

    def same_as(self, other: InputRounding) -> bool:
        """Whether both give the same values for the same inputs."""
        pairs = [(self.stored.get(key), other.stored.get(key)) for key in {*self.stored, *other.stored}]
        return self.scheme == other.scheme and all(
            first is not None and second is not None and torch.equal(first, second) for first, second in pairs
        )


@dataclass
class Simulation:
    """Activation rounding of a model's blocks, set block by block as their scales become known.

    Weights of one parameter (experts) are rounded alike. :meth:`applied` puts the rounding in place for a forward of a block.
    """

    _modules: dict[int, dict[str, InputRounding]] = field(default_factory=dict)
    _experts: dict[int, dict[str, InputRounding]] = field(default_factory=dict)
    _caches: dict[int, dict[str, Store]] = field(default_factory=dict)

    def set(
        self, index: int, views: Mapping[str, WeightView], roundings: Mapping[str, InputRounding]
    ) -> None:
        """Round the inputs of a block's weights from now on.

        Args:
            index: the block.
            views: name → the weight.
            roundings: name → how; weights that are not named keep their inputs.
        """
        self._modules[index], self._experts[index] = {}, {}
        for name, rounding in roundings.items():
            view = views[name]
            if view.kind == "expert":
                self._experts[index][view.parameter] = rounding
            else:
                self._modules[index][view.module] = rounding

    def set_caches(self, index: int, stores: Mapping[str, Store]) -> None:
        """Store keys and values of a block's attention modules (by name in the model) through ``stores`` from now on."""
        self._caches[index] = dict(stores)

    def active(self, index: int) -> bool:
        """Whether anything in the block is rounded."""
        return any(table.get(index) for table in (self._modules, self._experts, self._caches))

    @contextmanager
    def applied(self, index: int, block: nn.Module, prefix: str) -> Iterator[None]:
        """Round inputs in forwards of the loaded ``block`` of module name ``prefix`` while the context lasts."""
        with ExitStack() as stack:
            same = _Latest()
            for name, rounding in self._modules.get(index, {}).items():
                module = block.get_submodule(name.removeprefix(f"{prefix}."))
                # Before the hooks that record inputs: these see what is multiplied.
                hook = partial(round_argument, partial(same, rounding))
                handle = module.register_forward_pre_hook(hook, with_kwargs=True, prepend=True)
                stack.callback(handle.remove)
            for name, store in self._caches.get(index, {}).items():
                handle = store_through(block.get_submodule(name.removeprefix(f"{prefix}.")), store)
                stack.callback(handle.remove)
            if experts := self._experts.get(index, {}):
                owners = {name.rpartition(".")[0].removeprefix(f"{prefix}.") for name in experts}
                stack.enter_context(eager_experts(block.get_submodule(owner) for owner in owners))
                parameters = {name: block.get_parameter(name.removeprefix(f"{prefix}.")) for name in experts}
                stack.enter_context(_RoundExperts(parameters, experts))
            yield


@dataclass
class _Latest:
    """The latest rounded input: layers that read the same tensor (q/k/v) are given one rounded tensor."""

    _source: Tensor | None = None
    _version: int = 0
    _rounding: InputRounding | None = None
    _result: Tensor | None = None

    def __call__(self, rounding: InputRounding, x: Tensor) -> Tensor:
        known = self._source is x and self._version == x._version and self._result is not None
        if not (known and self._rounding is not None and rounding.same_as(self._rounding)):
            self._source, self._version, self._rounding = x, x._version, rounding
            self._result = rounding(x)
        assert self._result is not None
        return self._result


def round_argument(
    rounding: Any, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a layer with the first one rounded: a forward pre-hook once ``rounding`` is bound."""
    if args:
        return (rounding(args[0]), *args[1:]), kwargs
    name = next(iter(kwargs))
    return args, {**kwargs, name: rounding(kwargs[name])}


class _RoundExperts(TorchFunctionMode):
    """Rounds the inputs of every product with an expert's slice of a parameter."""

    def __init__(self, parameters: Mapping[str, Tensor], roundings: Mapping[str, InputRounding]) -> None:
        super().__init__()
        self._parameters, self._roundings = parameters, roundings

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = expert_product(func, args, self._parameters)
        if found is not None:
            place, name, weight_first = found
            changed = list(args)
            changed[place] = self._round(name, args[place], weight_first)
            args = tuple(changed)
        return func(*args, **(kwargs or {}))

    def _round(self, name: str, inputs: Tensor, weight_first: bool) -> Tensor:
        """Inputs ``[…, in]``, or ``[…, in, tokens]`` where the weight comes first in the product."""
        rounding = self._roundings[name]
        return rounding(inputs.mT).mT if weight_first else rounding(inputs)
