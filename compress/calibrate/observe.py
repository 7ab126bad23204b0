"""Input statistics: the inputs of a block's weights are recorded by hooks while it runs, and their moments summed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from compress.calibrate.accumulate import Accumulator
from compress.calibrate.experts import ExpertRecorder, eager_experts
from compress.errors import UserError
from compress.models.views import WeightView
from compress.score.statistics import Statistics


class InputsSeen(Exception):
    """Ends a forward early: every input that is needed has been recorded."""


@dataclass(eq=False)
class _Shared:
    """An accumulator, and how many inputs it was given in this batch."""

    accumulator: Accumulator
    calls: int = 0


@dataclass(eq=False)
class _Slot:
    """A place where inputs are recorded: a module with a weight, or an expert's slice of a parameter."""

    owner: str
    names: list[str]
    in_features: int
    needs: frozenset[str]
    weights: Tensor | None = None
    shared: _Shared | None = None
    calls: int = 0
    dense: list[Tensor] = field(default_factory=list)


class Observer:
    """Statistics of the inputs of some weights of one block.

    Weights that see the same tensor (q/k/v, gate/up) share one accumulator, so the work is done once and they
    get the same :class:`Statistics` object.

    Args:
        block: the loaded block.
        prefix: its module name in the model, which the views' parameters begin with.
        views: the weights whose inputs are recorded.
        needs: view name → statistics.
        device: where the sums are stored.
        token_weights: view name → how much each token counts in Gram and cross moments, fp32 ``[samples, length]``.

    Raises:
        ValueError: a statistic that inputs of a block do not have.
    """

    def __init__(
        self,
        block: nn.Module,
        prefix: str,
        views: Sequence[WeightView],
        needs: Mapping[str, frozenset[str]],
        device: torch.device,
        token_weights: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._block = block
        self._token_weights = token_weights or {}
        self._rows = slice(0, 0)
        self._device = device
        self._linears: dict[str, _Slot] = {}
        self._experts: dict[str, dict[int, _Slot]] = {}
        self._flattened: dict[str, int] = {}
        self._alive: dict[tuple[Any, ...], tuple[Tensor, _Shared]] = {}
        self._fired: list[str] = []
        self._last: tuple[str, int] | None = None
        self._recording_dense = self._to_the_end = False
        for view in views:
            self._add_slot(view, prefix, needs[view.name])

    @property
    def needs_dense(self) -> bool:
        """Whether a pass over the dense activations must come before each batch."""
        return any("cross" in slot.needs for slot in self._slots())

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Hooks are in place while the context lasts."""
        with ExitStack() as stack:
            for owner, slot in self._linears.items():
                hook = partial(self._on_linear, slot)
                handle = self._module(owner).register_forward_pre_hook(hook, with_kwargs=True)
                stack.callback(handle.remove)
            owners = {
                path.rpartition(".")[0]: self._module(path.rpartition(".")[0]) for path in self._experts
            }
            for owner, module in owners.items():
                stack.callback(module.register_forward_hook(partial(self._after_experts, owner)).remove)
            stack.enter_context(eager_experts(owners.values()))
            yield

    def run(
        self,
        forward: Callable[[], object],
        dense_forward: Callable[[], Any] | None = None,
        rows: slice = slice(0, 0),
        take_dense: Callable[[Tensor], None] | None = None,
    ) -> None:
        """Run one batch under :meth:`recording`; both run the block, the second on the dense activations.

        ``rows`` are the samples of the batch, by which tokens find their weights. ``take_dense`` is given the block's dense
        outputs, for which it then runs to its end.
        """
        self._rows = rows
        if dense_forward is not None:
            self._start(recording_dense=True)
            self._forward(dense_forward, take_dense)
        self._start(recording_dense=False)
        finished = self._forward(forward)
        if (
            finished
            and self._last is None
            and all(slot.calls for slot in self._linears.values())
            and self._fired
        ):
            # Every module has run: in later batches the forward can end after the one that ran last.
            self._last = (self._fired[-1], self._fired.count(self._fired[-1]))
        self._alive.clear()

    def sums(self) -> list[tuple[list[str], Accumulator]]:
        """What has been added up so far: the weights of one input, and its sums."""
        found: dict[int, tuple[list[str], Accumulator]] = {}
        for slot in self._slots():
            if slot.shared is not None:
                names, _ = found.setdefault(id(slot.shared), ([], slot.shared.accumulator))
                names += slot.names
        return list(found.values())

    def merge(self, names: Sequence[str], sums: Accumulator) -> None:
        """Add what another observer of the same weights has seen (:meth:`sums`).

        Raises:
            ValueError: these weights do not see one input here.
        """
        slots = [slot for slot in self._slots() if set(slot.names) <= set(names)]
        here = {id(slot.shared): slot.shared for slot in slots}
        if len(here) != 1 or {name for slot in slots for name in slot.names} != set(names):
            raise ValueError(f"{', '.join(names)} do not see one input")
        shared = next(iter(here.values()))
        if shared is None:  # experts that no token has reached here
            shared = _Shared(self._accumulator(slots[0]))
            for slot in slots:
                slot.shared = shared
        shared.accumulator.merge(sums)

    def finish(self) -> dict[str, Statistics]:
        """Return the statistics by view name.

        Raises:
            UserError: no inputs of experts were recorded.
        """
        for path, slots in self._experts.items():
            if all(slot.shared is None for slot in slots.values()):
                raise UserError(
                    f"No inputs of the experts in {path} could be recorded in this architecture; ignore these weights "
                    "or choose a recipe that needs no data."
                )
        finished: dict[int, Statistics] = {}
        result: dict[str, Statistics] = {}
        for slot in self._slots():
            shared = slot.shared or _Shared(self._accumulator(slot))
            if id(shared) not in finished:
                finished[id(shared)] = shared.accumulator.finish()
            result |= dict.fromkeys(slot.names, finished[id(shared)])
        return result

    def _add_slot(self, view: WeightView, prefix: str, needs: frozenset[str]) -> None:
        if "squared_gradient" in needs:
            raise ValueError(f"{view.name}: gradients are not statistics of inputs")
        path = view.parameter.removeprefix(prefix + ".")
        owner = path.rpartition(".")[0]
        if view.kind == "expert":
            if "cross" in needs:
                raise ValueError(
                    f"{view.name}: an expert's tokens differ between the dense and the compressed model"
                )
            slots = self._experts.setdefault(path, {})
            self._flattened[path] = view.flattened
            slot = slots.setdefault(view.expert or 0, _Slot(owner, [], view.shape[1], needs))
        elif view.kind in ("linear", "conv1d"):
            slot = self._linears.setdefault(owner, _Slot(owner, [], view.shape[1], needs))
        else:
            raise ValueError(f"{view.name} is no weight of a block")
        slot.names.append(view.name)
        weights = self._token_weights.get(view.name)
        if weights is not None and view.kind != "expert":
            # Weights that are parts of one parameter have one Gram matrix: it counts a token as they do on average.
            before = weights if slot.weights is None else slot.weights
            slot.weights = before + (weights - before) / len(slot.names)
        slot.needs |= needs

    def _slots(self) -> Iterator[_Slot]:
        yield from self._linears.values()
        for slots in self._experts.values():
            yield from slots.values()

    def _module(self, path: str) -> nn.Module:
        return self._block.get_submodule(path)

    def _start(self, recording_dense: bool) -> None:
        self._recording_dense = recording_dense
        self._fired.clear()
        for slot in self._slots():
            slot.calls = 0
            if slot.shared is not None:
                slot.shared.calls = 0
            if recording_dense:
                slot.dense.clear()

    def _forward(self, forward: Callable[[], Any], take: Callable[[Tensor], None] | None = None) -> bool:
        """Run once; False where the forward was ended early, which it is not where something takes its output."""
        parameters = {} if self._recording_dense else self._expert_parameters()
        self._to_the_end = take is not None
        with ExpertRecorder(parameters, self._on_expert) if parameters else nullcontext():
            try:
                output = forward()
            except InputsSeen:
                return False
        if take is not None:
            take(output)
        return True

    def _expert_parameters(self) -> dict[str, Tensor]:
        parameters = {path: self._block.get_parameter(path) for path in self._experts}
        return {
            path: parameter.unflatten(0, (count, -1)) if (count := self._flattened[path]) else parameter
            for path, parameter in parameters.items()
        }

    def _on_linear(
        self, slot: _Slot, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self._see(slot, args[0] if args else next(iter(kwargs.values())))
        self._after(slot.owner)

    def _on_expert(self, path: str, expert: int, inputs: Tensor) -> None:
        slot = self._experts[path].get(expert)
        if slot is not None:
            self._see(slot, inputs)

    def _after_experts(self, owner: str, module: nn.Module, args: object, output: object) -> None:
        self._after(owner)

    def _after(self, owner: str) -> None:
        self._fired.append(owner)
        ends = not self._to_the_end and self._last is not None
        if ends and self._last == (owner, self._fired.count(owner)):
            raise InputsSeen

    def _see(self, slot: _Slot, inputs: Tensor) -> None:
        inputs = inputs.detach()
        if self._recording_dense:
            if "cross" in slot.needs:
                slot.dense.append(inputs)
            return
        slot.calls += 1
        if slot.shared is None:
            slot.shared = self._shared_with(slot, inputs)
        if slot.calls > slot.shared.calls:  # else this input was added for another weight
            slot.shared.calls = slot.calls
            dense = slot.dense[slot.calls - 1] if "cross" in slot.needs else None
            slot.shared.accumulator.add(inputs, dense, self._weights_of(slot, inputs))

    def _weights_of(self, slot: _Slot, inputs: Tensor) -> Tensor | None:
        """How much each token of this batch counts; ``None`` where the inputs are not one for each token."""
        if slot.weights is None:
            return None
        weights = slot.weights[self._rows].flatten().to(inputs.device)
        return weights if len(weights) == inputs.numel() // inputs.shape[-1] else None

    def _shared_with(self, slot: _Slot, inputs: Tensor) -> _Shared:
        """The accumulator of the same tensor, or a new one; tensors are kept until the batch ends, so that ids stay unique."""
        layout = None if inputs.is_contiguous() else (inputs.shape, inputs.stride())
        weighed = None if slot.weights is None else slot.owner
        key = (inputs.data_ptr(), inputs.numel(), inputs.shape[-1], layout, inputs._version, weighed)
        _, shared = self._alive.get(key, (None, None))
        if shared is None or not slot.needs <= shared.accumulator.needs:
            shared = _Shared(self._accumulator(slot))
            self._alive[key] = (inputs, shared)
        return shared

    def _accumulator(self, slot: _Slot) -> Accumulator:
        return Accumulator(slot.needs, slot.in_features, self._device)
