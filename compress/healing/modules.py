"""Modules whose weight is made from trained tensors in every forward pass, and made anew in the backward pass."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from compress_kernels.activations import (
    GLOBAL_SUFFIX,
    SCALE_SUFFIX,
    ZERO_SUFFIX,
    ActivationScheme,
    fake_quantize,
    rotate_inputs,
)
from compress_kernels.modules import PackedLinear
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

from compress.errors import UserError
from compress.healing.trained import Trained, TrainedWeight, rounded_to


class _Product(torch.autograd.Function):
    """``x Wᵀ`` where nothing of the size of W outlives the call: backward decodes it a second time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: TrainedWeight, dtype: torch.dtype, *masters: Tensor) -> Tensor:
        ctx.weight, ctx.dtype = weight, dtype
        ctx.save_for_backward(x, *masters)
        return F.linear(x.to(dtype), weight.dense().to(dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, *masters = ctx.saved_tensors
        (grad,) = gradients
        with torch.enable_grad():
            dense = ctx.weight.dense()
        rows = grad.reshape(-1, grad.shape[-1]).to(ctx.dtype)
        columns = x.reshape(-1, x.shape[-1]).to(ctx.dtype)
        grad_x = (rows @ dense.detach().to(ctx.dtype)).view(x.shape).to(x.dtype)
        grad_weight = (rows.T @ columns).to(dense.dtype)
        return grad_x, None, None, *torch.autograd.grad(dense, masters, grad_weight)


class TrainedLinear(nn.Module):
    """``y = x Wᵀ + b`` with the weight of a :class:`~compress.healing.trained.TrainedWeight`.

    Inputs are rounded as the packed layer rounds them, with the gradient passed straight through.
    """

    def __init__(self, packed: PackedLinear, weight: TrainedWeight) -> None:
        """``packed`` is the layer whose place it takes; its bias and its scales of inputs are used as they are."""
        super().__init__()
        self.in_features, self.out_features = packed.in_features, packed.out_features
        self.dtype = packed.compute_dtype
        self.bias = packed.bias
        self.activations: ActivationScheme | None = packed.activations
        stored = packed.activations.stored if packed.activations is not None else {}
        self._inputs = {suffix: packed._buffers[suffix] for suffix in stored}
        self.trained = weight
        # Known to the module, so that they move with it and are counted.
        self.masters = nn.ParameterList([one.master for one in weight.trained.values()])

    @property
    def weight(self) -> Tensor:
        """The weight ``[out, in]`` as it would be stored now, for code that reads its dtype or its values."""
        with torch.no_grad():
            return self.trained.dense().to(self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs ``[…, out]`` for inputs ``[…, in]``, in their dtype; gradients reach the masters of the weight."""
        product = _Product.apply(self._rounded(x), self.trained, self.dtype, *self.masters).to(x.dtype)
        return product if self.bias is None else product + self.bias.to(product.dtype)

    def _rounded(self, x: Tensor) -> Tensor:
        if self.activations is None:
            return x
        scale = self._inputs.get(SCALE_SUFFIX, self._inputs.get(GLOBAL_SUFFIX))
        rounded = fake_quantize(x.detach(), self.activations, scale, self._inputs.get(ZERO_SUFFIX))
        return rotate_inputs(x + (rounded - x.detach()), self.activations)


class Stored(nn.Module):
    """A parameter as it will be stored, in the dtype that the model computes in: a parametrization of torch."""

    def __init__(self, stored: torch.dtype, computed: torch.dtype) -> None:
        super().__init__()
        self.stored, self.computed = stored, computed

    def forward(self, master: Tensor) -> Tensor:
        """A master fp32 of any shape, rounded to what is stored, in the dtype that the model computes in."""
        return rounded_to(master, self.stored).to(self.computed)


def train_parameter(model: nn.Module, trained: Trained) -> None:
    """Let a model read the parameter ``trained.name`` from its master from here on."""
    owner, _, leaf = trained.name.rpartition(".")
    module = model.get_submodule(owner)
    computed = module.get_parameter(leaf).dtype
    module._parameters[leaf] = trained.master
    parametrize.register_parametrization(module, leaf, Stored(trained.dtype, computed), unsafe=True)


def keep_block_inputs_alone(model: PreTrainedModel) -> None:
    """Let the blocks of a model keep their inputs alone and compute their activations anew in the backward pass.

    Raises:
        UserError: the model's code cannot.
    """
    if not model.supports_gradient_checkpointing:
        raise UserError(
            f"heal: the code of {type(model).__name__} has no checkpointing: leave out 'checkpointing'"
        )
    model.gradient_checkpointing_enable({"use_reentrant": False})
    # transformers checkpoints a block in training mode only; what is inside stays as it is, without dropout and noise.
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False):
            module.training = True
