"""Stand-in device: a device that is not the CPU, for machines without a GPU; its tensors are held in the memory of the CPU.

Inside :func:`standin_device` a tensor made for the device ``standin`` is a :class:`StandinTensor`. Every operator computes with
the values on the CPU and refuses what a GPU refuses: tensors of two devices in one operator. Results are those of the CPU bit
for bit, so that a whole run on it is compared with a run on the CPU. Transfers and reads of values are counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

NAME = "standin"
aten = torch.ops.aten
_COPIES = (aten._to_copy.default, aten.copy_.default, aten._copy_from.default, aten.set_.source_Tensor)
_INDEXED = (aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default)
"""Indices on the CPU are allowed here, as on a GPU."""
_READS = (aten._local_scalar_dense.default, aten.item.default, aten.equal.default, aten.is_nonzero.default)
_MATH_ATTENTION = 0


@dataclass
class Traffic:
    """What passed between the device and the CPU: transfers by direction, and values that Python read."""

    to_device: int = 0
    to_host: int = 0
    reads: int = 0
    operators: Counter[str] = field(default_factory=Counter)


class StandinTensor(Tensor):
    """A tensor on the stand-in device; ``held`` is its values on the CPU."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> StandinTensor:
        made = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=torch.device(NAME, 0),
        )
        made.held = held
        return made

    def __repr__(self, **_: Any) -> str:
        return f"StandinTensor({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatch(func, args, kwargs or {}, Traffic())


def is_standin(device: Any) -> bool:
    """Whether an argument names the stand-in device."""
    return device is not None and torch.device(device).type == NAME


def dispatch(func: Any, args: Any, kwargs: dict[str, Any], traffic: Traffic) -> Any:
    """Run an operator on the values, and give its results the device that they would have.

    Raises:
        RuntimeError: tensors of both devices meet in an operator that takes one device.
    """
    given = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
    ours = [value for value in given if isinstance(value, StandinTensor)]
    named = kwargs.get("device")
    if ours:
        _refuse_mixed(func, args, given)
    if func is aten._fused_sdp_choice.default:
        return _MATH_ATTENTION
    _count(func, args, ours, named, traffic)
    results = func(*tree_map(_on_cpu, args), **tree_map(_on_cpu, kwargs))
    on_device = is_standin(named) if named is not None else bool(ours)
    if func is aten.copy_.default:
        on_device = isinstance(args[0], StandinTensor)
    if not on_device:
        return args[0] if func is aten.copy_.default else results
    wrapped = tree_map(lambda value: StandinTensor(value) if isinstance(value, Tensor) else value, results)
    if not ours:
        return wrapped
    return return_and_correct_aliasing(func, args, kwargs, wrapped) if named is None else wrapped


def _on_cpu(value: Any) -> Any:
    if isinstance(value, StandinTensor):
        return value.held
    return torch.device("cpu") if isinstance(value, torch.device) and value.type == NAME else value


def _refuse_mixed(func: Any, args: Any, given: list[Tensor]) -> None:
    if func in _COPIES:
        return
    if func in _INDEXED and isinstance(args[0], StandinTensor):
        given = [args[0], *(value for value in args[2:3] if isinstance(value, Tensor))]
    elsewhere = [t for t in given if not isinstance(t, StandinTensor) and t.dim()]
    if elsewhere:
        shapes = ", ".join(f"{t.device} {list(t.shape)}" for t in given)
        raise RuntimeError(f"{func}: expected all tensors to be on the same device, but found {shapes}")


def _count(func: Any, args: Any, ours: list[Tensor], named: Any, traffic: Traffic) -> None:
    traffic.operators[str(func)] += 1
    if func in _READS and ours:
        traffic.reads += 1
    if func is aten._to_copy.default and named is not None:
        traffic.to_host += bool(ours) and not is_standin(named)
        traffic.to_device += not ours and is_standin(named)
    if func is aten.copy_.default:
        into, source = isinstance(args[0], StandinTensor), isinstance(args[1], StandinTensor)
        traffic.to_device += into and not source
        traffic.to_host += source and not into


class _Dispatch(TorchDispatchMode):
    def __init__(self, traffic: Traffic) -> None:
        super().__init__()
        self.traffic = traffic

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatch(func, args, kwargs or {}, self.traffic)


class _Functions(TorchFunctionMode):
    """What does not come to the dispatcher: ``torch.tensor`` and its like, which read Python values, and ``tolist``."""

    def __init__(self, traffic: Traffic) -> None:
        super().__init__()
        self.traffic = traffic

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.tolist and isinstance(args[0], StandinTensor):
            self.traffic.reads += 1
            return args[0].held.tolist()
        if func in (torch.tensor, torch.as_tensor, torch.asarray) and is_standin(kwargs.get("device")):
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)
        return func(*args, **kwargs)


class _Module(backend_registration._DummyBackendModule):  # type: ignore[misc]
    """``torch.standin``."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        """What autocast may compute in; checkpointing of activations asks, on any device."""
        return [torch.bfloat16, torch.float16]


@cache
def register() -> None:
    """Make the device known to torch, once in a process."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, _Module())


@contextmanager
def standin_device() -> Iterator[Traffic]:
    """The device ``standin`` exists; yields what passes between it and the CPU."""
    register()
    traffic = Traffic()
    with _Dispatch(traffic), _Functions(traffic):
        yield traffic
