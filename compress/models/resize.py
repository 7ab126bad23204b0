"""Parameters of other shapes than the settings of ``config.json`` give them: blocks of unequal widths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from compress.errors import UserError

SHAPES = "compress_shapes"
"""The key of ``config.json``: parameter → its shape."""


def resize(model: PreTrainedModel, shapes: Mapping[str, Sequence[int]]) -> None:
    """Give the named parameters their shapes, their values unset, and linear layers the sizes that go with them.

    ``model`` may be the bare decoder of the model that the names are from, or the other way round.

    Raises:
        UserError: a parameter that the model does not have, or a shape that cannot be its own.
    """
    known = dict(model.named_parameters(remove_duplicate=False))
    prefix = f"{model.base_model_prefix}."
    for parameter, shape in shapes.items():
        names = (parameter, parameter.removeprefix(prefix), prefix + parameter)
        name = next((one for one in names if one in known), None)
        if name is None:
            raise UserError(
                f"{SHAPES} in config.json names {parameter}, which {type(model).__name__} does not have"
            )
        place, _, leaf = name.rpartition(".")
        module, old = model.get_submodule(place), known[name]
        if len(shape) != old.ndim:
            raise UserError(
                f"{SHAPES} in config.json gives {parameter} the shape {shape}, not one of {old.ndim} sizes"
            )
        fresh = torch.empty(tuple(shape), dtype=old.dtype, device=old.device)
        setattr(module, leaf, nn.Parameter(fresh, requires_grad=old.requires_grad))
        if leaf == "weight" and isinstance(module, nn.Linear):
            module.out_features, module.in_features = shape
        elif leaf == "weight" and isinstance(module, Conv1D):
            module.nx, module.nf = shape
