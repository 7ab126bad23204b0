"""A forward and a backward of one block, batch by batch, wherever the block and its hidden states lie."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from compress.calibrate.capture import call_block
from compress.calibrate.hidden_states import Activations
from compress.calibrate.output_gradients import check_finite
from compress.calibrate.whole_gradients import record_outputs
from compress.models.views import WeightView
from compress.system.precision import quick_products


@dataclass
class BlockBackward:
    """A loaded block, what it is given, and the gradients by its outputs.

    Attributes:
        module: the block.
        prefix: its name in the model, with a dot behind it.
        inputs, output_gradients: ``[samples, length, hidden]``.
        input_gradients: the gradients by its inputs, which backwards fill.
        kwargs: its further arguments, by batch.
        batches: the samples of each batch.
        device, dtype: where and in what it is computed.
        carried: numbers of the batches whose ``input_gradients`` are there.
    """

    module: nn.Module
    prefix: str
    inputs: Activations
    output_gradients: Activations
    input_gradients: Activations
    kwargs: Sequence[Mapping[str, Any]]
    batches: Sequence[slice]
    device: torch.device
    dtype: torch.dtype
    carried: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.module.eval()

    def weight_gradients(
        self, views: Sequence[WeightView], numbers: Sequence[int]
    ) -> Iterator[dict[str, Tensor]]:
        """By batch of those ``numbers``, gradients of the block's weights, fp32 ``[out, in]`` by name.

        Raises:
            UserError: a gradient is not finite.
        """
        parameters = {
            view.parameter: self.module.get_parameter(view.parameter.removeprefix(self.prefix))
            for view in views
        }
        for batch in numbers:
            gradients = self.backward(batch, list(parameters.values()))[1:]
            by_parameter = dict(zip(parameters, gradients, strict=True))
            result = {}
            for view in views:
                gradient = by_parameter[view.parameter]
                # A parameter that no token reached has no gradient: an expert, say.
                whole = torch.zeros_like(parameters[view.parameter]) if gradient is None else gradient
                result[view.name] = view.get(whole).float()
                check_finite(result[view.name], view)
            yield result

    def module_gradients(
        self, views: Sequence[WeightView], numbers: Sequence[int]
    ) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
        """By batch of those ``numbers``, the inputs and the output gradients of linear modules, by the weight's name.

        Raises:
            UserError: a gradient is not finite.
        """
        modules = {
            view.module: self.module.get_submodule(view.module.removeprefix(self.prefix)) for view in views
        }
        for batch in numbers:
            recorded: dict[str, tuple[Tensor, Tensor]] = {}

            def keep(name: str, inputs: Tensor, gradient: Tensor, recorded: Any = recorded) -> None:
                recorded[name] = (inputs, gradient)

            with ExitStack() as stack:
                for name, module in modules.items():
                    stack.callback(module.register_forward_hook(partial(record_outputs, name, keep)).remove)
                self.backward(batch, [])
            result = {}
            for view in views:
                if view.module in recorded:
                    inputs, output_gradients = recorded[view.module]
                    check_finite(output_gradients, view)
                    start, stop, step = view.rows
                    result[view.name] = (inputs, output_gradients[:, start:stop:step])
            yield result

    def block_gradients(self) -> Iterator[tuple[Tensor, Tensor]]:
        """By batch: what the block adds to its inputs and the gradients by its outputs, fp32 ``[tokens, hidden]``."""
        for rows, kwargs in zip(self.batches, self.kwargs, strict=True):
            hidden = self.inputs.read(rows, self.device, self.dtype)
            with torch.no_grad(), quick_products():
                added = call_block(self.module, hidden, kwargs) - hidden
            gradient = self.output_gradients.read(rows, self.device, added.dtype)
            yield added.flatten(0, -2).float(), gradient.flatten(0, -2).float()

    def carry(self) -> None:
        """Fill the gradients by the block's inputs of the batches that went through no backward yet."""
        for batch in range(len(self.batches)):
            if batch not in self.carried:
                self.backward(batch, [])

    def backward(self, batch: int, parameters: list[Tensor]) -> tuple[Tensor | None, ...]:
        """Gradients by the block's input, which are kept, and by ``parameters`` for one batch."""
        rows = self.batches[batch]
        hidden = self.inputs.read(rows, self.device, self.dtype).requires_grad_(True)
        required = [parameter.requires_grad for parameter in parameters]
        for parameter in parameters:
            parameter.requires_grad_(True)
        try:
            with torch.enable_grad(), quick_products():
                output = call_block(self.module, hidden, self.kwargs[batch])
                gradient = self.output_gradients.read(rows, self.device, output.dtype)
                gradients = torch.autograd.grad(output, [hidden, *parameters], gradient, allow_unused=True)
        finally:
            for parameter, requires_grad in zip(parameters, required, strict=True):
                parameter.requires_grad_(requires_grad)
        if batch not in self.carried:
            assert gradients[0] is not None
            self.input_gradients.write(rows, gradients[0])
            self.carried.add(batch)
        return gradients
