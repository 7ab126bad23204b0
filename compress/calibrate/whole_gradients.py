"""Gradients of the model's loss where the model cannot be run block by block: by backwards of the whole model.

Every call costs a forward and a backward of the model for each batch; gradients are held for the weights of one block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from compress.calibrate.capture import first_tensor
from compress.calibrate.whole_model import check_fits
from compress.errors import UserError
from compress.models.skeleton import Skeleton
from compress.models.views import WeightView
from compress.system.precision import quick_products

_Recorded = dict[str, list[tuple[Tensor, Tensor]]]


@dataclass
class WholeBackward:
    """As the state of a backward from block to block, over a model whose blocks are all loaded.

    Attributes:
        skeleton: the model.
        tokens: int64 ``[samples, length]``.
        batches_of: the samples of each batch.
        labels: makes the labels ``[n]`` of a batch from its logits ``[n, vocabulary]`` and its tokens.
        device, dtype: where the model is, and in what it computes.
    """

    skeleton: Skeleton
    tokens: Tensor
    batches_of: Sequence[slice]
    labels: Callable[[Tensor, Tensor], Tensor]
    device: torch.device
    dtype: torch.dtype
    _drawn: list[Tensor] = field(default_factory=list)

    @property
    def output_gradients(self) -> Tensor:
        """Nothing: no block's gradients are needed for those of another."""
        return torch.empty(0)

    @property
    def batches(self) -> int:
        """How many batches the samples are divided into."""
        return len(self.batches_of)

    @contextmanager
    def loaded(self, reason: str) -> Iterator[None]:
        """Have the whole model in memory while the context lasts.

        Raises:
            UserError: it does not fit; ``reason`` is why it cannot be run block by block.
        """
        check_fits(self.skeleton, self.device, self.dtype, reason)
        with self.skeleton.loaded_whole(device=self.device, dtype=self.dtype):
            self.skeleton.model.eval()
            self._draw_labels()
            yield

    def _draw_labels(self) -> None:
        """The labels of every batch, once: each backward has the same loss."""
        with torch.no_grad(), quick_products():
            for rows in self.batches_of:
                ids = self.tokens[rows].to(self.device)
                self._drawn.append(self.labels(self._logits(ids), ids))

    def weight_gradients(self, index: int, views: Sequence[WeightView]) -> Iterator[dict[str, Tensor]]:
        """By batch, the gradients of some weights of a block."""
        parameters = {view.parameter: self.skeleton.parameter_of(view) for view in views}
        for batch in range(self.batches):
            gradients = self._backward(batch, parameters)
            result = {}
            for view in views:
                gradient = gradients[view.parameter]
                whole = torch.zeros_like(parameters[view.parameter]) if gradient is None else gradient
                result[view.name] = _finite(view.get(whole).float(), view)
            yield result

    def module_gradients(
        self, index: int, views: Sequence[WeightView]
    ) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
        """By batch, inputs and output gradients of the modules of some weights, over all their calls."""
        parameters = {view.parameter: self.skeleton.parameter_of(view) for view in views}
        modules = {view.module: self.skeleton.model.get_submodule(view.module) for view in views}
        for batch in range(self.batches):
            recorded: _Recorded = {}

            def keep(name: str, inputs: Tensor, gradient: Tensor, recorded: _Recorded = recorded) -> None:
                recorded.setdefault(name, []).append((inputs, gradient))

            with ExitStack() as stack:
                for name, module in modules.items():
                    stack.callback(module.register_forward_hook(partial(record_outputs, name, keep)).remove)
                self._backward(batch, parameters)
            result = {}
            for view in views:
                if calls := recorded.get(view.module):
                    inputs, gradients = (torch.cat(part) for part in zip(*calls, strict=True))
                    start, stop, step = view.rows
                    result[view.name] = (inputs, _finite(gradients, view)[:, start:stop:step])
            yield result

    def _backward(self, batch: int, parameters: dict[str, Tensor]) -> dict[str, Tensor | None]:
        ids = self.tokens[self.batches_of[batch]].to(self.device)
        required = {name: parameter.requires_grad for name, parameter in parameters.items()}
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        # Some code builds its graph by the inputs alone, and a weight may have no path to the loss.
        handle = self.skeleton.model.get_input_embeddings().register_forward_hook(_require_gradient)
        try:
            with torch.enable_grad(), quick_products():
                loss = F.cross_entropy(self._logits(ids), self._drawn[batch], reduction="sum")
                loss = loss / ids.numel() ** 0.5
                found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        finally:
            handle.remove()
            for name, parameter in parameters.items():
                parameter.requires_grad_(required[name])
        return dict(zip(parameters, found, strict=True))

    def _logits(self, ids: Tensor) -> Tensor:
        """fp32 ``[n, vocabulary]``, of the tokens that have a next one."""
        logits: Tensor = self.skeleton.model(input_ids=ids, use_cache=False).logits
        return logits[:, :-1].reshape(-1, logits.shape[-1]).float()


def _require_gradient(module: object, args: object, output: Tensor) -> Tensor:
    # A copy, for some code adds to what the embedding returns in place, which a leaf does not allow.
    return output if output.requires_grad else output.detach().requires_grad_(True).clone()


def record_outputs(
    name: str,
    keep: Callable[[str, Tensor, Tensor], None],
    module: nn.Module,
    args: tuple[Any, ...],
    output: Any,
) -> None:
    """Forward hook: hand on a module's inputs ``[tokens, in]`` and, in the backward, the gradient by its outputs
    ``[tokens, out]``. A layer that returns anything but a row of outputs for every row of inputs (a block-diagonal one)
    is passed over.

    Args:
        name: of the module.
        keep: is given the name, the inputs and the gradient.
        module: with a weight ``[out, in]``, or ``[in, out]`` in a ``Conv1D``.
        args, output: what it was given and has returned.
    """
    found, inputs = first_tensor(output), args[0]
    features = module.get_parameter("weight").shape[1 if isinstance(module, Conv1D) else 0]
    if not found.requires_grad or found.shape != (*inputs.shape[:-1], features):
        return
    rows = inputs.detach().flatten(0, -2)
    found.register_hook(lambda gradient: keep(name, rows, gradient.detach().flatten(0, -2)))


def _finite(gradient: Tensor, view: WeightView) -> Tensor:
    if not bool(torch.isfinite(gradient.sum())):
        raise UserError(f"the gradients of {view.name} are not finite: choose a recipe without gradients")
    return gradient
