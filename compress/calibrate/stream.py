"""Activations between blocks: the inputs of one block are computed from those of the block before it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from compress.calibrate.capture import CannotStream, Pool, call_block, call_block_with, capture_of
from compress.calibrate.elsewhere import is_known_elsewhere
from compress.calibrate.forward_shares import Dealt, SentBlock, Watched, can_deal
from compress.calibrate.head_inputs import head_forward
from compress.calibrate.hidden_states import Activations, is_finite, refuse_not_finite
from compress.calibrate.observe import Observer
from compress.calibrate.simulate import Simulation
from compress.calibrate.stream_states import IN_MEMORY, StreamStates
from compress.models.skeleton import Skeleton
from compress.score.statistics import Statistics
from compress.system.ranks import Ranks

BATCH_TOKENS = {"cpu": 2048, "cuda": 16384}
"""Tokens in a batch where its samples are not given: enough for fast products, and small compared to a block."""


class BlockStream:
    """Calibration inputs of the blocks of a model, one after the other.

    The order of calls for block `i`, which the caller has loaded: :meth:`observe`, :meth:`advance_dense` if
    the dense activations are kept, then the weights change, then :meth:`advance`
    (:func:`compress.calibrate.walk.walk_blocks` does that). A context manager: the activations may be in a file.

    Args:
        skeleton: the model; its blocks are loaded and released by the caller.
        tokens: int64 `[samples, length]`.
        device: where blocks run.
        dtype: of the blocks and of the stored activations.
        batch_size: samples in a batch; None for as many as make a good batch of tokens.
        memory_limit: bytes of activations above which they are kept in a file.
        device_limit: bytes of activations that an accelerator may keep; None for a quarter of its free memory.
        spill_dir: the folder for that file; None for the system's temporary folder.
        dense: also keep the activations of the uncompressed model, for the cross moment.
        images: for each sample, what the model is given for its images, by name of its argument.
        simulation: rounds the inputs of layers in every forward but those of the dense model.
        ranks: this process, the first, among others that take batches (:mod:`compress.calibrate.forward_shares`); where inputs
            are rounded it takes all itself.
    """

    def __init__(
        self,
        skeleton: Skeleton,
        tokens: Tensor,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.bfloat16,
        batch_size: int | None = None,
        memory_limit: int = IN_MEMORY,
        device_limit: int | None = None,
        spill_dir: str | Path | None = None,
        dense: bool = False,
        images: Sequence[Mapping[str, Tensor]] | None = None,
        simulation: Simulation | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        if tokens.dim() != 2 or tokens.numel() == 0:
            raise ValueError(f"tokens must be [samples, length], not {tuple(tokens.shape)}")
        self.device = torch.device(device)
        self.dtype = dtype
        self._skeleton = skeleton
        self._tokens = tokens
        self._states = StreamStates(
            self.device,
            dtype,
            memory_limit=memory_limit,
            device_limit=device_limit,
            spill_dir=spill_dir,
            with_dense=dense,
        )
        self._images = images
        self._ranks = ranks
        self.simulation = simulation or Simulation()
        rows = (
            1
            if images is not None
            else batch_size or max(1, BATCH_TOKENS.get(self.device.type, 2048) // tokens.shape[1])
        )
        self._batches = [
            slice(start, min(start + rows, len(tokens))) for start in range(0, len(tokens), rows)
        ]
        self._kwargs: list[list[dict[str, Any]]] = []  # by batch, then by block
        self._added: list[list[Tensor | None]] = []  # likewise: what the model adds before the block

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def spilled(self) -> bool:
        """Whether the activations are in a file."""
        return self._states.spilled

    @torch.no_grad()
    def prepare(self) -> None:
        """Compute the inputs of the first block and the further arguments of every block; then free the rest of the model.

        Raises:
            UserError: the model cannot be run block by block, or the disk is full.
        """
        self.close()
        skeleton = self._skeleton
        if pair := skeleton.shared_blocks:
            raise CannotStream(f"{pair[0]} and {pair[1]} share weights")
        skeleton.model.eval()
        try:
            with (
                skeleton.loaded_rest(device=self.device, dtype=self.dtype),
                capture_of(skeleton.model, skeleton.blocks, Pool(), self._takes) as capture,
            ):
                for rows in self._batches:
                    captured = capture.run(self._tokens[rows].to(self.device), self._image_inputs(rows))
                    self._kwargs.append(captured.kwargs)
                    self._added.append(captured.added)
                    self._store(rows, captured.hidden)
        except BaseException:
            self.close()
            raise

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
        """Run every batch through the loaded block `index`; return statistics of the inputs of its weights.

        The forward ends as soon as every input that is needed has been recorded. Weights with the same input get the
        same `Statistics` object.

        Args:
            index: the block.
            needs: view name → statistics; names of other blocks are ignored.
            only: restrict it to these names.
            dense_parameters: the block's parameters before any was changed, by name within the block; for the
                cross moment when some weights of the block are already compressed. None: the block as it is.
            token_weights: view name → how much each token counts in Gram and cross moments, fp32 `[samples, length]`;
                such weights do not share their statistics.
            advance_dense: also do what :meth:`advance_dense` does, in the same forwards where these run the dense block.

        Returns:
            Statistics by view name. An expert that no token reached has 0 tokens.

        Raises:
            ValueError: the cross moment without `dense`, or a statistic that inputs do not have.
            UserError: no inputs of experts can be recorded in this architecture.
        """
        views = [
            view
            for view in self._skeleton.views
            if view.block == index and needs.get(view.name) and (only is None or view.name in only)
        ]
        if not views:
            if advance_dense:
                self.advance_dense(index, dense_parameters)
            return {}
        block = self._block(index)
        observer = Observer(block, self._skeleton.blocks[index], views, needs, self.device, token_weights)
        follows = self._states.dense if observer.needs_dense else None
        dealt = self._dealt(index, self._states.now, follows)
        at_once = advance_dense and follows is not None and dealt is None

        def run(batch: int) -> None:
            rows, kwargs = self._batches[batch], self._kwargs[batch][index]
            hidden = self._read(self._states.now, rows)
            dense_forward = None
            if follows is not None:
                dense = self._read(follows, rows)
                dense_forward = partial(call_block_with, block, dense_parameters, dense, kwargs)
            take = partial(self._take, self._states.dense, index, batch) if at_once else None
            observer.run(partial(self._call, index, None, hidden, kwargs), dense_forward, rows, take)

        if dealt is not None:
            sent = SentBlock(block, None), SentBlock(block, dense_parameters)
            prefix = self._skeleton.blocks[index]
            dealt.observe(observer, Watched(*sent, prefix, views, needs, token_weights), run)
        else:
            with observer.recording():
                for batch in range(len(self._batches)):
                    run(batch)
        if advance_dense and not at_once:
            self.advance_dense(index, dense_parameters)
        return observer.finish()

    @torch.no_grad()
    def advance(self, index: int) -> None:
        """Replace the activations by the outputs of block `index`, with the weights it has now.

        Raises:
            UserError: they are not finite.
        """
        self._advance(self._states.now, index, partial(self._call, index, None), None)

    @torch.no_grad()
    def advance_dense(self, index: int, dense_parameters: Mapping[str, Tensor] | None = None) -> None:
        """Replace the dense activations by the dense outputs of block `index`: before its weights change.

        Args:
            index: the block.
            dense_parameters: as in :meth:`observe`, where the weights have changed already.
        """
        call = partial(call_block_with, self._block(index), dense_parameters)
        self._advance(self._states.dense, index, call, dense_parameters)

    def inputs(self, index: int, *, dense: bool = False) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        """Yield, by batch, what block `index` is given: hidden states `[b, length, hidden]` and arguments.

        The hidden states are copies that take part in autograd like any other tensor; the arguments are
        shared with other batches and must not be changed.
        """
        states = self._states.dense if dense else self._states.now
        for batch, rows in enumerate(self._batches):
            yield self._read(states, rows), self._kwargs[batch][index]

    def run(self, index: int, *, dense: bool = False) -> Iterator[Tensor]:
        """Yield, by batch, the outputs `[b, length, hidden]` of block `index` with the weights it has now."""
        for hidden, kwargs in self.inputs(index, dense=dense):
            with torch.no_grad():
                output = (
                    call_block(self._block(index), hidden, kwargs)
                    if dense
                    else self._call(index, None, hidden, kwargs)
                )
            yield output

    @torch.no_grad()
    def head_inputs(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield, by batch, the inputs of the output head, and those of the dense model if it is carried along: after the last
        :meth:`advance`, with what lies outside of the blocks loaded by the caller."""
        follows = self._states.dense if self._states.with_dense else None
        with head_forward(self._skeleton.model.eval(), self._skeleton.blocks) as forward:
            for rows in self._batches:
                ids = self._tokens[rows].to(self.device)
                dense = None if follows is None else forward(ids, self._read(follows, rows))
                yield forward(ids, self._read(self._states.now, rows)), dense

    def follow(self, other: BlockStream) -> None:
        """Take over the inputs of the next block from another stream of the same model's shape and tokens."""
        if self._states.filled and other._states.filled:
            for rows in self._batches:
                self._states.now.write(rows, other._read(other._states.now, rows))

    @property
    def windows(self) -> tuple[int, int]:
        """Number of the calibration windows, and tokens in each."""
        return self._tokens.shape[0], self._tokens.shape[1]

    def by_batch(self, values: Tensor) -> list[Tensor]:
        """``[samples, ...]`` cut into the batches of :meth:`replay`."""
        return [values[rows] for rows in self._batches]

    @property
    def batches(self) -> int:
        """How many batches the windows are divided into."""
        return len(self._batches)

    @property
    def sizes(self) -> list[int]:
        """The windows in each batch."""
        return [rows.stop - rows.start for rows in self._batches]

    def goes_elsewhere(self, index: int) -> bool:
        """Whether another rank can run block `index` as this stream does: not where its inputs are rounded."""
        return is_known_elsewhere(self._block(index)) and not self.simulation.active(index)

    def replayed(self, index: int, batch: int) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """What :meth:`replay` runs block `index` on, the dense model's outputs of it, and the block's further arguments."""
        dense, rows = self._states.dense, self._batches[batch]
        return self._read(self._states.now, rows), self._read(dense, rows), self._kwargs[batch][index]

    def replay(self, index: int, batch: int, parameters: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Run block `index` on one batch with some of its parameters replaced, by name within the block.

        Returns:
            The outputs `[b, length, hidden]`, which take part in autograd, and the dense model's outputs of
            the block: :meth:`advance_dense` must have been called for it.
        """
        hidden, target, kwargs = self.replayed(index, batch)
        return self._call(index, parameters, hidden, kwargs), target

    def close(self) -> None:
        """Free the activations, and the file they may be in; harmless when done twice."""
        self._states.close()
        self._kwargs, self._added = [], []

    @property
    def _takes(self) -> str:
        return "input_ids" if self._images is None else "pixel_values"

    def _image_inputs(self, rows: slice) -> dict[str, Tensor]:
        given = {} if self._images is None else self._images[rows.start]
        return {
            name: value.to(self.device, self.dtype if value.is_floating_point() else None)
            for name, value in given.items()
        }

    def _block(self, index: int) -> nn.Module:
        return self._skeleton.block_module(index).eval()

    def _read(self, states: Activations, rows: slice) -> Tensor:
        return states.read(rows, self.device, self.dtype)

    def _call(
        self, index: int, parameters: Mapping[str, Tensor] | None, hidden: Tensor, kwargs: Mapping[str, Any]
    ) -> Tensor:
        """Run block ``index`` as the compressed model does, its inputs rounded."""
        block = self._block(index)
        if not self.simulation.active(index):
            return call_block_with(block, parameters, hidden, kwargs)
        with self.simulation.applied(index, block, self._skeleton.blocks[index]):
            return call_block_with(block, parameters, hidden, kwargs)

    def _advance(
        self,
        states: Activations,
        index: int,
        call: Callable[[Tensor, Mapping[str, Any]], Tensor],
        parameters: Mapping[str, Tensor] | None,
    ) -> None:
        def run(batch: int) -> None:
            hidden = self._read(states, self._batches[batch])
            self._take(states, index, batch, call(hidden, self._kwargs[batch][index]))

        def take(numbers: range, outputs: Tensor) -> None:
            first = self._batches[numbers.start].start
            for batch in numbers:
                rows = self._batches[batch]
                self._take(states, index, batch, outputs[rows.start - first : rows.stop - first])

        dealt = self._dealt(index, states, None)
        if dealt is not None:
            dealt.advance(SentBlock(self._block(index), parameters), run, take)
            return
        for batch in range(len(self._batches)):
            run(batch)

    def _take(self, states: Activations, index: int, batch: int, output: Tensor) -> None:
        """Keep the outputs of a block for one batch as the inputs of the next."""
        if not is_finite(output):
            refuse_not_finite(self._skeleton, output.dtype, index)
        added = self._added[batch][index + 1] if index + 1 < len(self._added[batch]) else None
        if added is not None:
            output = output + added.to(output.device, output.dtype)
        states.write(self._batches[batch], output)

    def _dealt(self, index: int, states: Activations, dense: Activations | None) -> Dealt | None:
        """The batches of block ``index`` dealt out to the ranks; None where this process takes all."""
        if not can_deal(self._ranks, self._block(index), len(self._batches)) or self.simulation.active(index):
            return None
        assert self._ranks is not None

        nbytes = (self._batches[0].stop - self._batches[0].start) * states.data[0].nbytes
        kwargs = [each[index] for each in self._kwargs]
        inputs = partial(self._read, states), None if dense is None else partial(self._read, dense)
        return Dealt.of(self._ranks, self._batches, kwargs, *inputs, nbytes=nbytes)

    def _store(self, rows: slice, hidden: Tensor) -> None:
        if not is_finite(hidden):
            refuse_not_finite(self._skeleton, hidden.dtype, None)
        self._states.begin(rows, hidden, len(self._tokens))
