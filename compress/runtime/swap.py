"""Modules that hold packed weights, put in the place of dense ones while the model is still on meta."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from compress_kernels.modules import DenseLinear, PackedLinear
from compress_kernels.ops.dispatch import AUTO
from compress_kernels.packed_module import PackedModule
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from compress.errors import UserError
from compress.formats.packed_weight import PackedWeight
from compress.models.experts import runs_experts
from compress.models.views import WeightView
from compress.runtime.embeddings import embedding_modules, packed_modules
from compress.runtime.experts import WEIGHTS, PackedExperts
from compress.system.units import in_bytes

_LOG = logging.getLogger(__name__)

Put = Callable[[str, nn.Module], None]
"""Puts a module in the place of the one of that name."""


def swap(
    model: nn.Module,
    views: Iterable[WeightView],
    packed: Mapping[str, PackedWeight],
    *,
    put: Put | None = None,
    backend: str = AUTO,
) -> dict[str, str]:
    """Replace what can run packed; linears, transposed linears, experts and embeddings can, with the heads tied to these.

    Args:
        model: on meta.
        views: of the model, those to look at; all views of a parameter or none.
        packed: the packed weights, by the names of their views.
        put: how a module is replaced; ``model.set_submodule`` unless given.
        backend: who multiplies.

    Returns:
        Weight → name of the :class:`~compress_kernels.packed_module.PackedModule` that waits for its tensors. Weights of
        ``packed`` that are not in it have to be decoded.
    """
    replace = put or model.set_submodule
    by_module: dict[str, list[WeightView]] = {}
    for view in views:
        by_module.setdefault(view.module, []).append(view)
    places: dict[str, str] = {}
    for name, found in by_module.items():
        if not all(view.name in packed and view.shape == packed[view.name].shape for view in found):
            continue
        module: Any = model.get_submodule(name)
        if len(found) == 1 and _is_linear(module, found[0]):
            replace(name, _room(packed[found[0].name], backend, module.bias))
            places[found[0].name] = name
        elif len(found) == 1 and found[0].kind == "embedding":
            if (together := embedding_modules(model, found[0])) is not None:
                for place, made in packed_modules(together, packed[found[0].name], backend).items():
                    replace(place, made)
                places[found[0].name] = name
        elif (table := _of_experts(module, found)) is not None:
            places |= _swap_experts(name, module, table, packed, replace, backend)
    return places


def swap_dense(model: nn.Module) -> None:
    """Let the linears of a packed model that stayed dense, the head above all, decode as fast as the packed ones do."""
    plain = [name for name, child in model.named_modules() if type(child) is nn.Linear]
    for name in plain:
        linear = model.get_submodule(name)
        if isinstance(linear, nn.Linear) and linear.weight.ndim == 2:
            model.set_submodule(name, DenseLinear.of(linear))


@contextmanager
def stand_ins(model: nn.Module) -> Iterator[None]:
    """While the context lasts, ``weight`` of every packed module is an empty tensor that initialisation code leaves alone."""
    modules = [module for module in model.modules() if isinstance(module, PackedModule)]
    for module in modules:
        module.stand_in = empty_weight()
    try:
        yield
    finally:
        for module in modules:
            module.stand_in = None


def empty_weight() -> Tensor:
    """A tensor without values that transformers takes for loaded."""
    empty = torch.empty(0)
    empty._is_hf_initialized = True  # type: ignore[attr-defined]  # transformers' mark: leave it as it is
    return empty


def set_compute_dtype(model: nn.Module, dtype: torch.dtype) -> None:
    """Say in which dtype the packed modules of a model answer."""
    for module in model.modules():
        if isinstance(module, PackedModule):
            module.compute_dtype = dtype


def prepare(module: nn.Module, where: object) -> None:
    """Check the tensors of every packed module below ``module`` and make them ready for their device.

    Raises:
        UserError: the tensors of a weight contradict each other; the sentence names it and ``where`` it is.
    """
    for name, child in module.named_modules():
        if isinstance(child, PackedModule) and not any(t.is_meta for t in child.tensors().values()):
            try:
                child.prepare()
            except ValueError as error:
                raise UserError(f"{where}: the packed weight {name} is damaged: {error}") from error


def tell_decoded(names: Sequence[str], nbytes: int) -> None:
    """Say which packed weights take their dense size in memory."""
    if names:
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        _LOG.warning("%s%s cannot run packed and is decoded: %s", names[0], others, in_bytes(nbytes))


def _room(weight: PackedWeight, backend: str, bias: nn.Parameter | None = None) -> PackedLinear:
    return PackedLinear(
        weight.layout,
        weight.shape,
        bias=bias,
        backend=backend,
        device="meta",
        activations=weight.activations,
    )


def _is_linear(module: Any, view: WeightView) -> bool:
    # A tied weight has to stay a parameter; a subclass with a forward of its own does more than multiply.
    plain = type(module).forward in (nn.Linear.forward, Conv1D.forward)
    return plain and not view.tied and view.expert is None and module.weight.numel() == _numel(view)


def _numel(view: WeightView) -> int:
    return view.shape[0] * view.shape[1]


def _of_experts(module: nn.Module, views: Sequence[WeightView]) -> dict[str, list[list[WeightView]]] | None:
    """Parameter → expert → its views, if together they are all of the module's weights."""
    if not runs_experts(module):
        return None
    weights = [name for name, _ in module.named_parameters(recurse=False) if name in WEIGHTS]
    table: dict[str, list[list[WeightView]]] = {}
    for name in weights:
        parameter = module.get_parameter(name)
        experts = [
            [v for v in views if v.expert == expert and v.parameter.endswith(f".{name}")]
            for expert in range(parameter.shape[0])
        ]
        if any(sum(map(_numel, parts)) * parameter.shape[0] != parameter.numel() for parts in experts):
            return None
        table[name] = experts
    return table


def _swap_experts(
    name: str,
    module: nn.Module,
    table: Mapping[str, Sequence[Sequence[WeightView]]],
    packed: Mapping[str, PackedWeight],
    replace: Put,
    backend: str,
) -> dict[str, str]:
    parts = {
        leaf: [[(view.rows, _room(packed[view.name], backend)) for view in views] for views in experts]
        for leaf, experts in table.items()
    }
    replace(name, PackedExperts(module, parts))
    return {
        view.name: f"{name}.packed.{leaf}.{expert}.{part}"
        for leaf, experts in table.items()
        for expert, views in enumerate(experts)
        for part, view in enumerate(views)
    }
