"""Gradients of the model's loss with one block in memory: forward once, then backward from block to block.

The forward stores what every block is given; the backward loads the blocks from the last to the first, runs each again,
and carries the gradient by its output to the gradient by its input. Both sets of hidden states live in files where they
are large, so that memory holds one block, its gradients and one batch, however many blocks there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from compress.calibrate.block_backward import BlockBackward
from compress.calibrate.capture import CannotStream
from compress.calibrate.hidden_states import Activations
from compress.calibrate.loss_head import injection
from compress.calibrate.output_gradients import has_output_gradients
from compress.calibrate.stream import BlockStream
from compress.calibrate.walk import loaded_blocks, walk_blocks
from compress.calibrate.whole_gradients import WholeBackward
from compress.models.architecture import require_next_token_loss
from compress.models.skeleton import Skeleton
from compress.models.views import WeightView
from compress.recipe.sections import GRADIENT_TOKENS
from compress.system.monitor import return_free_memory
from compress.system.precision import quick_products
from compress.system.ranks import Ranks

Labels = Literal["model", "data"]

_IN_MEMORY = 1 << 28
"""Bytes of all blocks' hidden states above which they go to files."""


@dataclass(frozen=True)
class BlockGradients:
    """The gradients of the loaded block ``index``; they can be computed until the next block is loaded."""

    index: int
    _state: _Backward | WholeBackward = field(repr=False)

    @property
    def count(self) -> int:
        """How many batches there are."""
        return self._state.batches

    @property
    def walked(self) -> BlockBackward | None:
        """The block with its hidden states; None where the model is not run block by block."""
        return self._state.of_block(self.index) if isinstance(self._state, _Backward) else None

    def by_weight(self, views: Sequence[WeightView]) -> Iterator[dict[str, Tensor]]:
        """Weight gradients. By batch: view name → fp32 ``[out, in]``, divided by the root of the batch's tokens.

        So ``E[g gᵀ]`` over batches is the Fisher information of a token where the labels are drawn from the model. Each
        call costs a forward and a backward of the block.

        Raises:
            UserError: a gradient is not finite.
        """
        if isinstance(self._state, _Backward):
            yield from self._state.of_block(self.index).weight_gradients(views, range(self.count))
        else:
            yield from self._state.weight_gradients(self.index, views)

    def has_output_gradients(self, view: WeightView) -> bool:
        """Whether :meth:`by_output` can be computed for a weight."""
        return has_output_gradients(self._state.skeleton, view)

    def by_output(self, views: Sequence[WeightView]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
        """Output gradients. By batch: view name → its inputs ``[tokens, in]`` and the gradients by its outputs
        ``[tokens, out]``, in the dtype that the block is computed in.

        Only for weights with a linear module of their own (see :meth:`has_output_gradients`).

        Raises:
            UserError: a gradient is not finite.
        """
        if isinstance(self._state, _Backward):
            yield from self._state.of_block(self.index).module_gradients(views, range(self.count))
        else:
            yield from self._state.module_gradients(self.index, views)

    def by_block(self) -> Iterator[tuple[Tensor, Tensor]]:
        """By batch: what the block adds to its inputs and the gradients by its outputs, fp32 ``[tokens, hidden]``.

        Nothing where the model is not run block by block.
        """
        if self.walked is not None:
            yield from self.walked.block_gradients()

    @property
    def at_outputs(self) -> Tensor:
        """Gradients by the block's outputs ``[samples, length, hidden]``, from which a backward can go on (``resume``)."""
        states = self._state.output_gradients
        assert states is not None
        return states if isinstance(states, Tensor) else states.data


def gradient_windows(samples: int, length: int, *, at_most: int) -> Tensor:
    """Numbers of the windows that gradients are taken on, int64: all of ``samples``, or evenly spaced ones.

    Those have ``at_most`` tokens together, but there is one at least.
    """
    keep = max(1, at_most // length)
    return torch.arange(samples) if samples <= keep else torch.linspace(0, samples - 1, keep).long()


@contextmanager
def backward(
    skeleton: Skeleton,
    tokens: Tensor,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    labels: Labels = "model",
    rows: int = 1,
    seed: int = 0,
    spill_dir: str | Path | None = None,
    resume: tuple[int, Tensor] | None = None,
    ranks: Ranks | None = None,
    at_most: int = GRADIENT_TOKENS,
) -> Iterator[Iterator[BlockGradients]]:
    """Backward pass: go through the blocks of the dense model from the last to the first, one in memory at a time.

    When the context ends, by an exception or otherwise, the block in memory is released and all hidden states are freed.

    Args:
        skeleton: the model; no block may be loaded.
        tokens: int64 ``[samples, length]``; of more than ``at_most`` tokens evenly spaced samples are taken.
        device, dtype: where and in what blocks are computed; products of fp32 matrices as :func:`quick_products` says.
        labels: ``"model"`` draws every next token from the model's own distribution, whose expected squared gradient is
            the Fisher information; ``"data"`` takes the text's, as the papers do (the observed Fisher).
        rows: samples whose gradients are summed into one batch.
        seed: for the labels.
        spill_dir: the folder for files of hidden states.
        resume: the block to begin with and its :attr:`BlockGradients.at_outputs`, of an earlier call with the same
            arguments; the last block and what the loss says if None.
        ranks: the processes that share the windows of the forward pass; None for this one alone.

    Raises:
        UserError: the model cannot be run block by block, activations are not finite, or the disk is full.
    """
    require_next_token_loss(skeleton.model, "Gradients are those of")
    tokens = tokens[gradient_windows(*tokens.shape, at_most=at_most)]
    state = _Backward(skeleton, tokens, rows, dtype, torch.device(device), labels, seed, spill_dir, ranks)
    first = len(skeleton.blocks) - 1 if resume is None else resume[0]
    with closing(state):
        try:
            state.forward(first, whole=resume is None)
            if resume is None:
                state.head()
            else:
                state.begin_at(resume[1])
        except CannotStream as error:
            cannot = error
        else:
            last_to_first = range(first, -1, -1)
            with loaded_blocks(
                skeleton, last_to_first, device=device, dtype=dtype, leave=state.leave
            ) as indices:
                yield (BlockGradients(index, state) for index in indices)
            return
    generator = torch.Generator(device="cpu").manual_seed(seed)
    labels_of = partial(state.labels_of, generator)
    whole = WholeBackward(skeleton, tokens, state.batch_slices(), labels_of, state.device, dtype)
    with whole.loaded(str(cannot)):
        yield (BlockGradients(index, whole) for index in range(first, -1, -1))


@dataclass
class _Backward:
    """The hidden states of a backward, by block and for the block that is loaded.

    Attributes:
        inputs: by block, what it is given.
        kwargs: by block and batch, its further arguments.
        output_gradients: gradients by the outputs of the loaded block.
        input_gradients: gradients by its inputs, as far as backwards have filled them.
    """

    skeleton: Skeleton
    tokens: Tensor
    rows: int
    dtype: torch.dtype
    device: torch.device
    labels: Labels
    seed: int
    spill_dir: str | Path | None
    ranks: Ranks | None = None
    inputs: list[Activations] = field(default_factory=list)
    kwargs: list[list[dict[str, Any]]] = field(default_factory=list)
    output_gradients: Activations | None = None
    input_gradients: Activations | None = None
    _current: tuple[int, BlockBackward] | None = None

    def forward(self, last: int, *, whole: bool) -> None:
        """Store what every block up to ``last`` is given, and of the ``whole`` model what the last one returns."""
        with (
            quick_products(),
            walk_blocks(
                self.skeleton,
                self.tokens,
                device=self.device,
                dtype=self.dtype,
                batch_size=self.rows,
                spill_dir=self.spill_dir,
                blocks=range(last + 1),
                through_last=whole,
                ranks=self.ranks,
            ) as walk,
        ):
            for index in walk:
                self.kwargs.append(self._store(walk.stream, index))
            if whole:
                # The stream now holds the outputs of the last block.
                self._store(walk.stream, last)

    def head(self) -> None:
        """The gradient of the loss by the last block's outputs, for every batch."""
        last = self.inputs.pop()
        self.output_gradients, self.input_gradients = self._room(last.data.shape), self._room(last.data.shape)
        skeleton = self.skeleton
        generator = torch.Generator(device="cpu").manual_seed(self.seed)
        with (
            closing(last),
            quick_products(),
            skeleton.loaded_rest(device=self.device, dtype=self.dtype, head=True),
            injection(skeleton.model, skeleton.blocks) as inject,
        ):
            for rows in self.batch_slices():
                hidden = last.read(rows, self.device, self.dtype).requires_grad_(True)
                ids = self.tokens[rows].to(self.device)
                loss = self._loss(inject(ids, hidden), ids, generator)
                (gradient,) = torch.autograd.grad(loss, [hidden])
                self.output_gradients.write(rows, gradient / (ids.numel() ** 0.5))
        return_free_memory()  # pieces as large as the logits of a batch

    def begin_at(self, output_gradients: Tensor) -> None:
        """Take over the gradients by the outputs of the last block that is gone through."""
        self.output_gradients, self.input_gradients = (self._room(output_gradients.shape) for _ in range(2))
        self.output_gradients.write(slice(None), output_gradients)

    def of_block(self, index: int) -> BlockBackward:
        """The loaded block and its hidden states."""
        if self._current is None or self._current[0] != index:
            assert self.output_gradients is not None
            assert self.input_gradients is not None
            block = BlockBackward(
                self.skeleton.block_module(index),
                self.skeleton.blocks[index] + ".",
                self.inputs[index],
                self.output_gradients,
                self.input_gradients,
                self.kwargs[index],
                self.batch_slices(),
                self.device,
                self.dtype,
            )
            self._current = (index, block)
        return self._current[1]

    def leave(self, index: int) -> None:
        """Make the gradients by the block's inputs the output gradients of the block before it; free the inputs.

        Batches that went through a backward already have theirs.
        """
        if index:
            self.of_block(index).carry()
            self.output_gradients, self.input_gradients = self.input_gradients, self.output_gradients
        self._current = None
        self.inputs[index].close()

    @property
    def batches(self) -> int:
        """How many batches the samples are divided into."""
        return len(self.batch_slices())

    def close(self) -> None:
        """Free all hidden states; harmless when done twice."""
        for states in (*self.inputs, self.output_gradients, self.input_gradients):
            if states is not None:
                states.close()

    def _loss(self, logits: Tensor, ids: Tensor, generator: torch.Generator) -> Tensor:
        """Summed cross entropy of the next tokens."""
        flat = logits[:, :-1].reshape(-1, logits.shape[-1]).float()
        return F.cross_entropy(flat, self.labels_of(generator, flat, ids), reduction="sum")

    def labels_of(self, generator: torch.Generator, flat: Tensor, ids: Tensor) -> Tensor:
        """The next tokens ``[n]``: those of the text ``ids``, or drawn from the logits ``flat`` ``[n, vocabulary]``."""
        if self.labels == "data":
            return ids[:, 1:].reshape(-1)
        with torch.no_grad():
            return _drawn(flat.softmax(-1), generator)

    def _store(self, stream: BlockStream, index: int) -> list[dict[str, Any]]:
        """Store what the stream holds for a block; the block's further arguments by batch."""
        kwargs = []
        states: Activations | None = None
        for rows, (hidden, extra) in zip(self.batch_slices(), stream.inputs(index), strict=True):
            if states is None:
                states = self._room((len(self.tokens), *hidden.shape[1:]))
                self.inputs.append(states)
            states.write(rows, hidden)
            kwargs.append(extra)
        return kwargs

    def _room(self, shape: Sequence[int]) -> Activations:
        # The sizes of all blocks' states are added up, so that memory does not grow with the number of blocks.
        nbytes = torch.Size(shape).numel() * self.dtype.itemsize * (len(self.skeleton.blocks) + 2)
        folder = Path(self.spill_dir) if self.spill_dir is not None and nbytes > _IN_MEMORY else None
        return Activations(tuple(shape), self.dtype, torch.device("cpu"), folder)

    def batch_slices(self) -> list[slice]:
        """The samples of each batch."""
        return [slice(i, min(i + self.rows, len(self.tokens))) for i in range(0, len(self.tokens), self.rows)]


def _drawn(probabilities: Tensor, generator: torch.Generator) -> Tensor:
    """One number of each row of ``probabilities`` ``[n, choices]``, int64 ``[n]``, by where a uniform number falls in the sums,
    which take the place of the probabilities.

    As ``torch.multinomial``, which draws an exponential variable for every choice and takes eight times as long on a CPU.
    """
    sums = probabilities.cumsum_(-1)
    uniform = torch.rand(len(sums), 1, generator=generator, dtype=sums.dtype).to(sums.device)
    # Of a number that rounding brought to the very end the last choice that has a probability is drawn.
    found = torch.searchsorted(sums, uniform * sums[:, -1:], right=True)
    last = torch.searchsorted(sums, sums[:, -1:].contiguous())
    return torch.minimum(found, last).squeeze(1)
