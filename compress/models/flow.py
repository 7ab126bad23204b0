"""Data flow of a model, found by watching one forward on the meta device: which linear layers read the same input, and which
weights other code than their layer's reads or changes."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from compress.models.views import block_of


@dataclass(frozen=True)
class Flow:
    """What a forward of a model does with the linear layers of its blocks.

    Attributes:
        groups: linear layer → the number of its group, in the order in which data meets them. Two are in one group if they are
            children of one module and read the same tensor.
        read: linear layers whose weight is read by other code than their forward.
        changed: parameters that the forward changes in place.
        without_head: whether the forward came to its end without calling an output head as a module.
    """

    groups: Mapping[str, int]
    read: frozenset[str]
    changed: frozenset[str]
    without_head: bool = False


def watch_flow(model: PreTrainedModel, blocks: Sequence[str]) -> Flow:
    """Run a model once on the meta device, where nothing is computed, and watch its linear layers.

    Where the forward ends early, because values on meta cannot decide a shape, linear layers of one parent with the same number
    of input features are taken together, which is at worst too careful; ``read`` and ``changed`` hold what was seen till then.

    Args:
        model: on meta; its forward may leave marks on it, so it is used for nothing else.
        blocks: the names of the decoder blocks.
    """
    linears = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and block_of(name, blocks) is not None
    }
    versions = {name: parameter._version for name, parameter in model.named_parameters()}
    reads = _Reads(linears)
    head, calls = model.get_output_embeddings(), []
    with contextlib.ExitStack() as stack:
        if head is not None:
            hook = head.register_forward_pre_hook(lambda module, arguments: calls.append(module))
            stack.callback(hook.remove)
        inputs = _run(model, linears, reads)
    changed = {name for name, parameter in model.named_parameters() if parameter._version != versions[name]}
    return Flow(
        _groups(linears, inputs), frozenset(reads.found), frozenset(changed), bool(inputs) and not calls
    )


class _Reads(TorchFunctionMode):
    """Notices operators on the weight of a linear layer while its forward is not running."""

    def __init__(self, linears: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self._names: dict[int, set[str]] = {}
        for name, module in linears.items():
            self._names.setdefault(id(module.weight), set()).add(name)
        self.running: set[str] = set()
        self.found: set[str] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # Shapes and dtypes are properties: they say nothing about values.
        if not _is_property(func):
            for value in tree_leaves((args, kwargs)):
                names = self._names.get(id(value), set())  # several, where layers share a weight
                if not names & self.running:
                    self.found |= names
        return func(*args, **(kwargs or {}))


def _is_property(func: Any) -> bool:
    """Whether a function is the reading of an attribute other than a transposed view."""
    name = resolve_name(func) or ""
    return name.endswith(".__get__") and not name.endswith((".T.__get__", ".mT.__get__"))


def _groups(
    linears: Mapping[str, nn.Linear | Conv1D], inputs: Mapping[str, tuple[int, int]]
) -> dict[str, int]:
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


def _run(
    model: PreTrainedModel, linears: Mapping[str, nn.Module], reads: _Reads
) -> dict[str, tuple[int, int]]:
    """For each linear layer the identity of the memory that its input lies in; {} if the forward ends early."""
    seen: dict[str, tuple[int, int]] = {}
    with contextlib.suppress(AttributeError, ValueError, KeyError):
        # Experts chosen by their tokens have shapes that only data decides; this way of running them has not.
        model.set_experts_implementation("batched_mm")
    try:
        # Fake tensors know that they have no values, and so does transformers, which else looks at masks; with a
        # cache, since without one it looks at the positions.
        with (
            _silent(logging.getLogger(FakeTensorMode.__module__)),
            _watched(linears, seen, reads.running),
            torch.no_grad(),
            FakeTensorMode(allow_non_fake_inputs=True),
            reads,
        ):
            model(input_ids=torch.zeros(1, 4, dtype=torch.long, device="meta"), use_cache=True)
    except Exception:  # any model code may fail on meta in any way; the careful answer is then to see nothing
        return {}
    return seen


@contextlib.contextmanager
def _silent(logger: logging.Logger) -> Iterator[None]:
    """Drop what a logger says: torch prints a traceback where an operator fails on meta, which is an answer here."""
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


@contextlib.contextmanager
def _watched(
    linears: Mapping[str, nn.Module], seen: dict[str, tuple[int, int]], running: set[str]
) -> Iterator[None]:
    """Hooks on the linear layers: ``seen`` gets the memory of their inputs, ``running`` those whose forward runs."""
    kept: list[Tensor] = []  # so that no memory is given twice while we compare

    def enters(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def record(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            running.add(name)
            if arguments and isinstance(arguments[0], Tensor):
                kept.append(arguments[0])
                place = (arguments[0].untyped_storage()._cdata, int(arguments[0].storage_offset()))
                seen.setdefault(name, place)

        return record

    def leaves(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def record(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
            running.discard(name)

        return record

    with contextlib.ExitStack() as stack:
        for name, module in linears.items():
            stack.callback(module.register_forward_pre_hook(enters(name)).remove)
            stack.callback(module.register_forward_hook(leaves(name)).remove)
        yield
