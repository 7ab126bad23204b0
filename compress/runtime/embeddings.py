"""Packed token embeddings, and the output heads that are tied to them, in the places of dense ones."""

from __future__ import annotations

from typing import Any

from compress_kernels.modules import PackedEmbedding, PackedLinear
from torch import nn

from compress.formats.packed_weight import PackedWeight
from compress.models.views import WeightView


def embedding_modules(model: nn.Module, view: WeightView) -> dict[str, nn.Module] | None:
    """The modules that use the weight of ``view``, by name, the embedding first; ``None`` where it cannot run packed.

    An embedding runs packed unless it rescales its rows (``max_norm``), and so does whatever is tied to it: other embeddings,
    and linears that only multiply.
    """
    names = (view.module, *(name for name in view.tied if has_module(model, name)))
    modules = {name: model.get_submodule(name) for name in names}
    return modules if all(_can_run(module, view) for module in modules.values()) else None


def packed_modules(
    modules: dict[str, nn.Module], weight: PackedWeight, backend: str
) -> dict[str, PackedEmbedding | PackedLinear]:
    """A packed module on meta for each of ``modules``; the first holds the tensors, and the others are tied to it."""
    made = {name: _packed(module, weight, backend) for name, module in modules.items()}
    holder, *others = made.values()
    for other in others:
        other.tie(holder)
    return made


def has_module(model: nn.Module, name: str) -> bool:
    """Whether the model has a module of that name."""
    try:
        model.get_submodule(name)
    except AttributeError:
        return False
    return True


def _can_run(module: Any, view: WeightView) -> bool:
    if isinstance(module, nn.Embedding):
        return module.max_norm is None and tuple(module.weight.shape) == view.shape
    return type(module).forward is nn.Linear.forward and tuple(module.weight.shape) == view.shape


def _packed(module: nn.Module, weight: PackedWeight, backend: str) -> PackedEmbedding | PackedLinear:
    if isinstance(module, nn.Embedding):
        return _packed_embedding(module, weight, backend)
    assert isinstance(module, nn.Linear)
    return PackedLinear(weight.layout, weight.shape, bias=module.bias, backend=backend, device="meta")


def _packed_embedding(module: nn.Embedding, weight: PackedWeight, backend: str) -> PackedEmbedding:
    """The packed counterpart of ``module``.

    A model's class of embedding (one that scales its rows, say) keeps its ``forward``: the counterpart is of a class that
    inherits it and looks rows up in the packed weight where the model's class asks ``nn.Embedding`` to.
    """
    kind: type[PackedEmbedding] = PackedEmbedding
    if type(module) is not nn.Embedding:
        kind = type(f"Packed{type(module).__name__}", (type(module), PackedEmbedding), {})
    made = kind.__new__(kind)
    PackedEmbedding.__init__(
        made, weight.layout, weight.shape, padding_idx=module.padding_idx, backend=backend, device="meta"
    )
    made._buffers.update(module._buffers)
    made._non_persistent_buffers_set |= module._non_persistent_buffers_set
    made._parameters.update({k: p for k, p in module._parameters.items() if k != "weight"})
    made._modules.update(module._modules)
    for name, value in vars(module).items():
        vars(made).setdefault(name, value)
    return made.train(module.training)
