"""Which linears read the same input, and so are fused by servers: found by watching one forward pass on
meta."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from compress.models.views import block_of


def groups_by_flow(model: PreTrainedModel, blocks: Sequence[str]) -> dict[str, int]:
    """The number of its group for each linear module in the blocks, in the order in which data meets them.

    Two linears are in one group if they are children of one module and are given the same tensor. A forward
    pass of the model (all on meta, so nothing is computed) tells; where the model cannot run on meta,
    linears of one parent with the same number of input features are taken together, which is at worst too
    careful.
    """
    linears = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and block_of(name, blocks) is not None
    }
    inputs = _watch(model, linears)
    groups: dict[object, int] = {}
    result = {}
    # The numbers rise in the order in which data meets the groups.
    for name in [*inputs, *(name for name in linears if name not in inputs)]:
        module = linears[name]
        features = module.weight.shape[0 if isinstance(module, Conv1D) else 1]
        # Linears that the pass did not reach are taken together by themselves, never with any that it did.
        key = (name.rpartition(".")[0], features, inputs.get(name))
        result[name] = groups.setdefault(key, len(groups))
    return result


def _watch(model: PreTrainedModel, linears: dict[str, nn.Module]) -> dict[str, tuple[int, int]]:
    """For each linear the identity of the memory that its input lies in; {} if the model cannot run on
    meta."""
    seen: dict[str, tuple[int, int]] = {}
    kept: list[Tensor] = []  # so that no memory is given twice while we compare

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def record(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            if arguments and isinstance(arguments[0], Tensor):
                kept.append(arguments[0])
                place = (arguments[0].untyped_storage()._cdata, int(arguments[0].storage_offset()))
                seen.setdefault(name, place)

        return record

    handles = [module.register_forward_pre_hook(hook(name)) for name, module in linears.items()]
    with contextlib.suppress(AttributeError, ValueError, KeyError):
        # Experts chosen by their tokens have shapes that only data decides; this way of running them has not.
        model.set_experts_implementation("batched_mm")
    try:
        # Fake tensors know that they have no values, and so does transformers, which else looks at masks; with a
        # cache, since without one it looks at the positions.
        with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
            model(input_ids=torch.zeros(1, 4, dtype=torch.long, device="meta"), use_cache=True)
    except Exception:  # any model code may fail on meta in any way; the careful answer is then to see nothing
        return {}
    finally:
        for handle in handles:
            handle.remove()
    return seen
