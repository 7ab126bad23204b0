"""A model whose blocks cannot be run one by one, in memory as a whole: the same answers as :class:`BlockStream` gives.

Some models call a block several times, hand it more than hidden states, or change these in between. Where the whole model fits
into memory its own forward is run instead, and watched at the block in question. Blocks that were compressed before are in it
as they are now.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from compress_kernels.forward import quick_forward
from torch import Tensor, nn
from torch.func import functional_call

from compress.calibrate.capture import first_tensor, runs_in
from compress.calibrate.head_inputs import head_reached
from compress.calibrate.observe import Observer
from compress.calibrate.stream import BlockStream
from compress.errors import UserError
from compress.models.skeleton import Skeleton
from compress.score.statistics import Statistics
from compress.system.memory import available_memory

_SHARE = 0.7
"""Of the memory that is available; the rest is for activations and solvers."""


def check_fits(skeleton: Skeleton, device: torch.device, dtype: torch.dtype, reason: str) -> None:
    """Refuse a model that cannot be streamed and does not fit into memory.

    Raises:
        UserError: with the ``reason``, the sizes and what to do.
    """
    parameters = {id(parameter): parameter.numel() for parameter in skeleton.model.parameters()}
    needed, free = sum(parameters.values()) * dtype.itemsize, available_memory(device)
    if needed > _SHARE * free:
        raise UserError(
            f"{reason}, so that it is run as a whole, which takes {needed / 2**30:.1f} GiB of which "
            f"{_SHARE * free / 2**30:.1f} GiB are available on {device.type}: run it on a machine with more memory"
        )


class _BlockSeen(Exception):
    """Ends a forward: what was asked for has been recorded."""


class WholeModelStream(BlockStream):
    """Statistics and outputs of every block, by forwards of the whole model, whose blocks are all loaded.

    There are no activations to keep: :meth:`advance` does nothing. The cross moment is that of the inputs with themselves,
    since no dense model runs beside this one. Where a block is called several times in a forward, :meth:`run`, :meth:`inputs`
    and :meth:`replay` tell of the first call, :meth:`observe` of all.
    """

    _dense_outputs: dict[int, Tensor]

    def prepare(self) -> None:
        """The blocks are loaded by the caller; the rest of the model is loaded here and stays until :meth:`close`."""
        self._dense_outputs = {}
        self._skeleton.load_rest(device=self.device, dtype=self.dtype, head=True)
        self._skeleton.model.eval()

    @torch.no_grad()
    def observe(
        self,
        index: int,
        needs: Mapping[str, frozenset[str]],
        *,
        only: Collection[str] | None = None,
        dense_parameters: Mapping[str, Tensor] | None = None,
        token_weights: Mapping[str, Tensor] | None = None,
        advance_dense: bool = False,
    ) -> dict[str, Statistics]:
        """As :meth:`BlockStream.observe`, over all calls of block ``index``."""
        if advance_dense:
            self.advance_dense(index, dense_parameters)
        views = [
            view
            for view in self._skeleton.views
            if view.block == index and needs.get(view.name) and (only is None or view.name in only)
        ]
        if not views:
            return {}
        block, prefix = self._block(index), self._skeleton.blocks[index]
        observer = Observer(block, prefix, views, needs, self.device, token_weights)
        with observer.recording():
            for rows in self._batches:
                forward = partial(self._forward, rows)
                observer.run(forward, forward if observer.needs_dense else None, rows)
        return observer.finish()

    @torch.no_grad()
    def head_inputs(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """As :meth:`BlockStream.head_inputs`; no dense model runs beside this one."""
        with head_reached(self._skeleton.model) as run:
            for rows in self._batches:
                inputs = run(partial(self._forward, rows))
                yield inputs, inputs

    def advance(self, index: int) -> None:
        """Nothing: the next forward goes through the block as it is then."""

    @torch.no_grad()
    def advance_dense(self, index: int, dense_parameters: Mapping[str, Tensor] | None = None) -> None:
        """Keep the block's dense outputs, by batch, for :meth:`replay`."""
        self._dense_outputs = {}
        for batch, (args, kwargs) in enumerate(self._calls(index)):
            parameters = dict(dense_parameters or {})
            output = functional_call(self._block(index), parameters, args, kwargs)
            self._dense_outputs[batch] = first_tensor(output)

    def inputs(self, index: int, *, dense: bool = False) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        """As :meth:`BlockStream.inputs`: the first argument of the block's first call, and those given by name."""
        for args, kwargs in self._calls(index):
            first, rest = (args[0], kwargs) if args else _split(kwargs)
            yield first, dict(rest)

    def run(self, index: int, *, dense: bool = False) -> Iterator[Tensor]:
        """Yield, by batch, the first outputs of block ``index`` with the weights that the model has now."""
        for rows in self._batches:
            seen: list[Tensor] = []

            def record(module: nn.Module, args: Any, output: Any, seen: list[Tensor] = seen) -> None:
                seen.append(first_tensor(output).detach().clone())
                raise _BlockSeen

            self._until(rows, self._block(index).register_forward_hook(record))
            yield seen[0]

    def replay(self, index: int, batch: int, parameters: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """As :meth:`BlockStream.replay`, of the block's first call."""
        for number, (args, kwargs) in enumerate(self._calls(index, only=batch)):
            assert number == 0
            with self.simulation.applied(index, self._block(index), self._skeleton.blocks[index]):
                output = functional_call(self._block(index), dict(parameters), args, kwargs)
            return first_tensor(output), self._dense_outputs[batch]
        raise ValueError(f"there is no batch {batch}")

    def close(self) -> None:
        """Put what lies outside of the blocks back on meta; harmless when done twice."""
        super().close()
        self._skeleton.release_rest()

    def _calls(self, index: int, only: int | None = None) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
        """By batch, the arguments of the first call of a block."""
        for batch, rows in enumerate(self._batches):
            if only is not None and batch != only:
                continue
            seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

            def record(module: nn.Module, args: Any, kwargs: Any, seen: list[Any] = seen) -> None:
                seen.append((args, dict(kwargs)))
                raise _BlockSeen

            self._until(rows, self._block(index).register_forward_pre_hook(record, with_kwargs=True))
            yield seen[0]

    def _until(self, rows: slice, handle: Any) -> None:
        try:
            with torch.no_grad():
                self._forward(rows)
        except _BlockSeen:
            pass
        finally:
            handle.remove()

    def _forward(self, rows: slice) -> None:
        model = self._skeleton.model
        with ExitStack() as stack:
            stack.enter_context(runs_in(self.dtype, model))
            stack.enter_context(quick_forward())
            for index, name in enumerate(self._skeleton.blocks):
                if self.simulation.active(index):
                    stack.enter_context(self.simulation.applied(index, self._block(index), name))
            model(input_ids=self._tokens[rows].to(self.device), use_cache=False)


def _split(kwargs: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    name, *others = kwargs
    return kwargs[name], {other: kwargs[other] for other in others}
