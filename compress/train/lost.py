"""A linear layer to train from scratch in little memory: low rank plus a few whole input columns (LOST, arXiv:2508.02668)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LostLinear(nn.Module):
    """``y = γ · B · SiLU(A x) + (1 − γ) · W_S x_S + b`` (eq. 5), ``[…, in] → […, out]``.

    It begins at a dense initial weight W: ``B = U √Σ`` and ``A = √Σ Vᵀ`` of its leading singular triples, and the columns S
    that lean most on the components behind those, with their values in W (section 3.2).

    Attributes:
        left: B ``[out, rank]``, right: A ``[rank, in]``, kept: W_S ``[out, columns]``, all trained.
        index: S, int64 ``[columns]``, rising; chosen once.
    """

    index: Tensor

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        rank: int,
        columns: int,
        gamma: float = 0.5,
        components: int = 256,
        activation: bool = True,
    ) -> None:
        """``weight`` ``[out, in]`` is the dense weight to begin at; ``activation=False`` leaves out the SiLU.

        Raises:
            ValueError: a rank, a number of columns or a γ out of range.
        """
        super().__init__()
        self.out_features, self.in_features = weight.shape
        if not 1 <= rank <= min(weight.shape):
            raise ValueError(
                f"rank is 1 to {min(weight.shape)} for a weight {list(weight.shape)}, not {rank}"
            )
        if not 0 <= columns <= self.in_features:
            raise ValueError(f"columns are 0 to {self.in_features}, not {columns}")
        if not 0 < gamma <= 1:
            raise ValueError(f"gamma is above 0 and up to 1, not {gamma}")
        self.gamma, self.activation = gamma, activation
        dense = weight.detach().float()
        u, s, v = torch.linalg.svd(dense, full_matrices=False)
        behind = slice(rank, rank + components)
        leaning = (s[behind].unsqueeze(1) * v[behind]).norm(dim=0)
        index = leaning.topk(columns).indices.sort().values
        root = s[:rank].sqrt()
        self.left = nn.Parameter((u[:, :rank] * root).to(weight.dtype))
        self.right = nn.Parameter((root.unsqueeze(1) * v[:rank]).to(weight.dtype))
        self.kept = nn.Parameter(dense[:, index].to(weight.dtype))
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        self.register_buffer("index", index)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.linear(x, self.right)
        low = F.linear(F.silu(inner) if self.activation else inner, self.left)
        y = self.gamma * low + (1 - self.gamma) * F.linear(x.index_select(-1, self.index), self.kept)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        rank, columns = self.left.shape[1], self.kept.shape[1]
        return f"in={self.in_features}, out={self.out_features}, rank={rank}, columns={columns}, gamma={self.gamma}"


def rank_within(shape: tuple[int, int], ratio: float, columns: int) -> int:
    """The rank with which factors and ``columns`` of a weight ``[out, in]`` take ``ratio`` of its parameters, at least 1."""
    out, inputs = shape
    return max(1, int((ratio * out * inputs - columns * out) / (out + inputs) + 1e-9))


def with_lost_linears(
    model: nn.Module,
    *,
    ratio: float,
    columns: float = 0.05,
    wanted: Callable[[str], bool] = lambda name: "lm_head" not in name,
    gamma: float = 0.5,
    activation: bool = True,
) -> nn.Module:
    """Put :class:`LostLinear` in the place of every ``nn.Linear`` whose name is ``wanted``; the same ``model``, changed.

    Args:
        model: freshly initialised.
        ratio: the share of a weight's parameters that its layer takes, columns included.
        columns: the share of the inputs that are kept whole; 0 is plain low rank.
    """
    if not 0 < ratio <= 1:
        raise ValueError(f"ratio is a share of the parameters above 0 and up to 1, not {ratio}")
    for name, module in list(model.named_modules()):
        if not isinstance(module, nn.Linear) or not wanted(name):
            continue
        shape = (module.out_features, module.in_features)
        count = int(columns * module.in_features)
        bias = None if module.bias is None else module.bias
        layer = LostLinear(
            module.weight,
            bias,
            rank=rank_within(shape, ratio, count),
            columns=count,
            gamma=gamma if count else 1.0,
            activation=activation,
        )
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, layer)
    return model
