"""Whose output gradients can be taken, and whether gradients are numbers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from compress.errors import UserError
from compress.models.skeleton import Skeleton
from compress.models.views import WeightView


def check_finite(gradient: Tensor, view: WeightView) -> None:
    """Raise a UserError unless all gradients of a weight are finite."""
    if not bool(torch.isfinite(gradient.sum())):
        raise UserError(f"the gradients of {view.name} are not finite: choose a recipe without gradients")


def has_output_gradients(skeleton: Skeleton, view: WeightView) -> bool:
    """Whether the weight is that of a linear module: not for experts, which are slices of one parameter."""
    return view.expert is None and isinstance(skeleton.model.get_submodule(view.module), nn.Linear | Conv1D)
