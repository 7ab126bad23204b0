"""Gradients of the model's loss with one block in memory: forward once, then backward from block to block.

The forward stores what every block is given; the backward loads the blocks from the last to the first, runs each again,
and carries the gradient by its output to the gradient by its input. Both sets of hidden states live in files where they
are large, so that memory holds one block, its gradients and one batch, however many blocks there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from compress.calibrate.capture import call_block
from compress.calibrate.hidden_states import Activations
from compress.calibrate.loss_head import injection
from compress.calibrate.stream import BlockStream
from compress.errors import UserError
from compress.models.skeleton import Skeleton
from compress.models.views import WeightView

Labels = Literal["model", "data"]

TOKENS = 1 << 16
"""Tokens that gradients are taken on, at most: every block's inputs are stored, and a backward costs two forwards."""

_IN_MEMORY = 1 << 28
"""Bytes of all blocks' hidden states above which they go to files."""


@dataclass
class BlockGradients:
    """The gradients of one loaded block. Use it before going on to the next.

    Attributes:
        index: the block.
        count: how many batches there are.
    """

    index: int
    count: int
    _walk: _Walk = field(repr=False)

    def each(self, views: Sequence[WeightView]) -> Iterator[dict[str, Tensor]]:
        """By batch: view name → gradient fp32 ``[out, in]``, divided by the root of the batch's tokens.

        So ``E[g gᵀ]`` over batches is the Fisher information of a token where the labels are drawn from the model. It can
        be gone through as often as needed; each time costs a forward and a backward of the block.

        Raises:
            UserError: a gradient is not finite.
        """
        yield from self._walk.gradients(self.index, views)

    def has_output_gradients(self, view: WeightView) -> bool:
        """Whether :meth:`output_gradients` tells of a weight."""
        return has_output_gradients(self._walk.skeleton, view)

    def output_gradients(self, views: Sequence[WeightView]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
        """By batch: view name → its inputs ``[tokens, in]`` and the gradients by its outputs ``[tokens, out]``, fp32.

        Only of weights that a module of their own multiplies with (see :meth:`has_output_gradients`).
        """
        yield from self._walk.slopes_of(self.index, views)


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
) -> Iterator[BlockGradients]:
    """Go through the blocks of the dense model from the last to the first, each loaded while it is yielded.

    Args:
        skeleton: the model; no block may be loaded.
        tokens: int64 ``[samples, length]``; of more than :data:`TOKENS` tokens evenly spaced samples are taken.
        device, dtype: where and in what blocks are computed.
        labels: ``"model"`` draws every next token from the model's own distribution, whose expected squared gradient is
            the Fisher information; ``"data"`` takes the text's, as the papers do (the observed Fisher).
        rows: samples whose gradients are summed into one batch.
        seed: for the labels.
        spill_dir: the folder for files of hidden states.
    """
    keep = max(1, TOKENS // tokens.shape[1])
    if len(tokens) > keep:
        tokens = tokens[torch.linspace(0, len(tokens) - 1, keep).long()]
    with BlockStream(
        skeleton, tokens, device=device, dtype=dtype, batch_size=rows, spill_dir=spill_dir
    ) as stream:
        walk = _Walk(skeleton, tokens, stream, rows, dtype, torch.device(device), labels, seed, spill_dir)
        try:
            walk.forward()
            walk.head()
            for index in range(len(skeleton.blocks) - 1, -1, -1):
                skeleton.load_block(index, device=device, dtype=dtype)
                yield BlockGradients(index, stream.batches, walk)
                if index:
                    walk.carry(index)
                walk.inputs[index].close()
                skeleton.release_block(index)
        finally:
            walk.close()


@dataclass
class _Walk:
    skeleton: Skeleton
    tokens: Tensor
    stream: BlockStream
    rows: int
    dtype: torch.dtype
    device: torch.device
    labels: Labels
    seed: int
    spill_dir: str | Path | None
    inputs: list[Activations] = field(default_factory=list)
    kwargs: list[list[dict[str, Any]]] = field(default_factory=list)
    output_gradients: Activations | None = None
    before: Activations | None = None
    carried: set[int] = field(default_factory=set)

    def forward(self) -> None:
        """Store what every block is given, and what the last one returns."""
        self.stream.prepare()
        for index in range(len(self.skeleton.blocks)):
            self.skeleton.load_block(index, device=self.device, dtype=self.dtype)
            self.kwargs.append(self._store(index))
            self.stream.advance(index)
            self.skeleton.release_block(index)
        # What the stream holds now are the outputs of the last block: their output_gradients will take that place.
        self._store(len(self.skeleton.blocks) - 1)

    def head(self) -> None:
        """The gradient of the loss by the last block's outputs, for every batch."""
        last = self.inputs.pop()
        self.output_gradients, self.before = self._room(last.data.shape), self._room(last.data.shape)
        skeleton = self.skeleton
        skeleton.load_rest(device=self.device, dtype=self.dtype, head=True)
        generator = torch.Generator(device="cpu").manual_seed(self.seed)
        try:
            with injection(skeleton.model, skeleton.blocks) as inject:
                for rows in self._batches():
                    hidden = last.read(rows, self.device, self.dtype).requires_grad_(True)
                    ids = self.tokens[rows].to(self.device)
                    loss = self._loss(inject(ids, hidden), ids, generator)
                    (slope,) = torch.autograd.grad(loss, [hidden])
                    self.output_gradients.write(rows, slope / (ids.numel() ** 0.5))
        finally:
            last.close()
            skeleton.release_rest()

    def gradients(self, index: int, views: Sequence[WeightView]) -> Iterator[dict[str, Tensor]]:
        parameters = {view.parameter: self.skeleton.parameter_of(view) for view in views}
        for batch in range(len(self._batches())):
            found = dict(
                zip(parameters, self._pull(index, batch, list(parameters.values()))[1:], strict=True)
            )
            result = {}
            for view in views:
                gradient = found[view.parameter]
                # A parameter that no token reached has no gradient: an expert, say.
                whole = torch.zeros_like(parameters[view.parameter]) if gradient is None else gradient
                result[view.name] = view.get(whole).float()
                _check_finite(result[view.name], view)
            yield result

    def slopes_of(
        self, index: int, views: Sequence[WeightView]
    ) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
        modules = {view.module: self.skeleton.model.get_submodule(view.module) for view in views}
        for batch in range(len(self._batches())):
            seen: dict[str, tuple[Tensor, Tensor]] = {}
            with ExitStack() as stack:
                for name, module in modules.items():
                    handle = module.register_forward_hook(partial(_watch, seen, name))
                    stack.callback(handle.remove)
                self._pull(index, batch, [])
            found = {}
            for view in views:
                if view.module in seen:
                    inputs, output_gradients = seen[view.module]
                    _check_finite(output_gradients, view)
                    start, stop, step = view.rows
                    found[view.name] = (inputs, output_gradients[:, start:stop:step])
            yield found

    def carry(self, index: int) -> None:
        """Replace the output_gradients by those of the block's inputs, which every backward through it has told on the way."""
        for batch in range(len(self._batches())):
            if batch not in self.carried:
                self._pull(index, batch, [])
        self.output_gradients, self.before = self.before, self.output_gradients
        self.carried.clear()

    def close(self) -> None:
        for states in (*self.inputs, self.output_gradients, self.before):
            if states is not None:
                states.close()

    def _pull(self, index: int, batch: int, parameters: list[Tensor]) -> tuple[Tensor | None, ...]:
        """Gradients by the block's input, which are kept, and by ``parameters`` for one batch."""
        assert self.output_gradients is not None
        assert self.before is not None
        rows = self._batches()[batch]
        block = self.skeleton.block_module(index).eval()
        hidden = self.inputs[index].read(rows, self.device, self.dtype).requires_grad_(True)
        before = [parameter.requires_grad for parameter in parameters]
        for parameter in parameters:
            parameter.requires_grad_(True)
        try:
            with torch.enable_grad():
                output = call_block(block, hidden, self.kwargs[index][batch])
                slope = self.output_gradients.read(rows, self.device, output.dtype)
                pulled = torch.autograd.grad(output, [hidden, *parameters], slope, allow_unused=True)
        finally:
            for parameter, wanted in zip(parameters, before, strict=True):
                parameter.requires_grad_(wanted)
        if batch not in self.carried:
            assert pulled[0] is not None
            self.before.write(rows, pulled[0])
            self.carried.add(batch)
        return pulled

    def _loss(self, logits: Tensor, ids: Tensor, generator: torch.Generator) -> Tensor:
        """Summed cross entropy of the next tokens."""
        flat = logits[:, :-1].reshape(-1, logits.shape[-1]).float()
        if self.labels == "data":
            return F.cross_entropy(flat, ids[:, 1:].reshape(-1), reduction="sum")
        with torch.no_grad():
            chances = flat.softmax(-1).cpu()
            drawn = torch.multinomial(chances, 1, generator=generator).squeeze(1).to(flat.device)
        return F.cross_entropy(flat, drawn, reduction="sum")

    def _store(self, index: int) -> list[dict[str, Any]]:
        kwargs = []
        states: Activations | None = None
        for rows, (hidden, extra) in zip(self._batches(), self.stream.inputs(index), strict=True):
            if states is None:
                states = self._room((len(self.tokens), *hidden.shape[1:]))
                self.inputs.append(states)
            states.write(rows, hidden)
            kwargs.append(extra)
        return kwargs

    def _room(self, shape: Sequence[int]) -> Activations:
        # There is one for every block: together they decide, so that memory does not grow with depth.
        nbytes = torch.Size(shape).numel() * self.dtype.itemsize * (len(self.skeleton.blocks) + 2)
        folder = Path(self.spill_dir) if self.spill_dir is not None and nbytes > _IN_MEMORY else None
        return Activations(tuple(shape), self.dtype, torch.device("cpu"), folder)

    def _batches(self) -> list[slice]:
        return [slice(i, min(i + self.rows, len(self.tokens))) for i in range(0, len(self.tokens), self.rows)]


def _check_finite(gradient: Tensor, view: WeightView) -> None:
    if not bool(torch.isfinite(gradient.sum())):
        raise UserError(f"the gradients of {view.name} are not finite: choose a recipe without gradients")


def has_output_gradients(skeleton: Skeleton, view: WeightView) -> bool:
    """Whether a module of its own multiplies with the weight: not for experts, which are slices of one parameter."""
    return view.expert is None and isinstance(skeleton.model.get_submodule(view.module), nn.Linear | Conv1D)


def _watch(
    seen: dict[str, tuple[Tensor, Tensor]],
    name: str,
    module: nn.Module,
    args: tuple[Any, ...],
    output: Tensor,
) -> None:
    """Note a module's inputs, and once the backward has come there the gradient by its outputs."""
    inputs = args[0].detach().flatten(0, -2).float()

    def note(slope: Tensor) -> None:
        seen[name] = (inputs, slope.detach().flatten(0, -2).float())

    if output.requires_grad:
        output.register_hook(note)
