"""LOST linear layers: low rank behind an activation, plus a few whole input columns (arXiv:2508.02668)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from compress.errors import UserError

LOST = "compress_lost"
"""The key of ``config.json``: linear layer → ``rank``, ``columns``, ``gamma``, ``activation``."""


class LostLinear(nn.Module):
    """``y = γ · B · SiLU(A x) + (1 − γ) · W_S x_S + b`` (eq. 5), ``[…, in] → […, out]``.

    Attributes:
        left: B ``[out, rank]`` and b; right: A ``[rank, in]``; kept: W_S ``[out, columns]``, ``None`` of no columns. They are
            linear layers, which are compressed like any other.
        index: S, int64 ``[columns]``, rising; chosen once.
    """

    index: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        rank: int,
        columns: int,
        gamma: float = 0.5,
        activation: bool = True,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """A layer whose values are not set; ``activation=False`` leaves out the SiLU.

        Raises:
            ValueError: a rank, a number of columns or a γ out of range.
        """
        super().__init__()
        most = min(in_features, out_features)
        if not 1 <= rank <= most:
            raise ValueError(f"rank is 1 to {most} for a weight {[out_features, in_features]}, not {rank}")
        if not 0 <= columns <= in_features:
            raise ValueError(f"columns are 0 to {in_features}, not {columns}")
        if not 0 < gamma <= 1:
            raise ValueError(f"gamma is above 0 and up to 1, not {gamma}")
        self.in_features, self.out_features = in_features, out_features
        self.rank, self.columns, self.gamma, self.activation = rank, columns, gamma, activation
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        self.right = nn.Linear(in_features, rank, bias=False, **place)
        self.left = nn.Linear(rank, out_features, bias=bias, **place)
        self.kept = nn.Linear(columns, out_features, bias=False, **place) if columns else None
        if columns:
            self.register_buffer("index", torch.zeros(columns, dtype=torch.int64, device=device))
        # Of no size, in the place of the dense weight: what loads the checkpoint as a dense model stops at the shape.
        self.register_buffer("weight", torch.zeros(0, device=device, dtype=dtype))

    @classmethod
    def of(
        cls,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        rank: int,
        columns: int,
        gamma: float = 0.5,
        components: int = 256,
        activation: bool = True,
    ) -> Self:
        """Begin at a dense weight ``[out, in]``.

        ``B = U √Σ`` and ``A = √Σ Vᵀ`` of its leading singular triples, and the columns S that lean most on the ``components``
        behind those, with their values in the weight (section 3.2).

        Raises:
            ValueError: as the layer itself.
        """
        settings: dict[str, Any] = {
            "rank": rank,
            "columns": columns,
            "gamma": gamma,
            "activation": activation,
        }
        layer = cls(weight.shape[1], weight.shape[0], **settings, bias=bias is not None, dtype=weight.dtype)
        dense = weight.detach().float()
        u, s, v = torch.linalg.svd(dense, full_matrices=False)
        behind = slice(rank, rank + components)
        leaning = (s[behind].unsqueeze(1) * v[behind]).norm(dim=0)
        root = s[:rank].sqrt()
        with torch.no_grad():
            layer.left.weight.copy_(u[:, :rank] * root)
            layer.right.weight.copy_(root.unsqueeze(1) * v[:rank])
            if bias is not None:
                layer.left.bias.copy_(bias)
            if layer.kept is not None:
                layer.index.copy_(leaning.topk(columns).indices.sort().values)
                layer.kept.weight.copy_(dense[:, layer.index])
        return layer

    @property
    def settings(self) -> dict[str, Any]:
        """What ``config.json`` says of the layer."""
        return {
            "rank": self.rank,
            "columns": self.columns,
            "gamma": self.gamma,
            "activation": self.activation,
        }

    def forward(self, x: Tensor) -> Tensor:
        """Outputs ``[…, out]`` for inputs ``[…, in]``: the low-rank part, with its activation, and the kept columns."""
        inner = self.right(x)
        inner = F.silu(inner) if self.activation else inner
        # The bias is added once, whatever γ.
        bias = self.left.bias
        low: Tensor = self.left(inner) if bias is None else self.left(inner) - bias
        y = self.gamma * low
        if self.kept is not None:
            y = y + (1 - self.gamma) * self.kept(x.index_select(-1, self.index))
        return y if bias is None else y + bias

    def extra_repr(self) -> str:
        """Sizes and settings, for ``print``."""
        return f"in={self.in_features}, out={self.out_features}, " + ", ".join(
            f"{key}={value}" for key, value in self.settings.items()
        )


def describe_lost(model: PreTrainedModel) -> None:
    """Say in the model's configuration which of its layers are LOST layers.

    ``save_pretrained`` then writes a checkpoint that loads with them, and that nothing else takes for a dense one.
    """
    setattr(model.config, LOST, lost_settings(model))
    model.config.quantization_config = {"quant_method": "compress", "version": 1, "weights": {}}


def lost_settings(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Layer → its settings, for every LOST layer of a model."""
    return {name: module.settings for name, module in model.named_modules() if isinstance(module, LostLinear)}


def put_lost_layers(model: PreTrainedModel, layers: Mapping[str, Mapping[str, Any]]) -> None:
    """Put LOST layers, their values unset, in the place of the linear layers that ``config.json`` names.

    ``model`` may be the bare decoder of the model that the names are from, or the other way round.

    Raises:
        UserError: a layer that the model does not have, or settings that do not fit it.
    """
    prefix = f"{model.base_model_prefix}."
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    for layer, settings in layers.items():
        names = (layer, layer.removeprefix(prefix), prefix + layer)
        name = next((one for one in names if one in linears), None)
        if name is None:
            raise UserError(
                f"{LOST} in config.json names {layer}, no linear layer of a {type(model).__name__}"
            )
        old = linears[name]
        try:
            made = LostLinear(
                old.in_features,
                old.out_features,
                bias=old.bias is not None,
                device=old.weight.device,
                dtype=old.weight.dtype,
                **settings,
            )
        except (TypeError, ValueError) as error:
            raise UserError(f"{LOST} in config.json does not fit {layer}: {error}") from error
        model.set_submodule(name, made)
