"""``sinkhorn``: optimal transport between the predictions of student and teacher over several positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compress.healing.losses.base import Positions


@dataclass(frozen=True)
class Sinkhorn:
    """``n Σ_j P_ij D_ij`` with ``D_ij = ‖p_i − q_j‖₁`` over blocks of n positions (SinKD, arXiv:2402.17110).

    P is the transport plan of ``iterations`` Sinkhorn steps on ``exp(−D / smoothing)``; it is not differentiated.
    """

    block: int = 32
    smoothing: float = 0.1
    iterations: int = 20
    weight: float = 1.0

    name: ClassVar[str] = "sinkhorn"

    def __post_init__(self) -> None:
        if self.smoothing <= 0:
            raise ValueError("smoothing is above 0")

    @property
    def together(self) -> int:
        """Positions that are compared, at least."""
        return self.block

    def __call__(self, positions: Positions) -> Tensor:
        """See :class:`~compress.healing.losses.base.Loss`."""
        pairs = zip(
            positions.log_p.exp().split(self.block), positions.log_q.exp().split(self.block), strict=True
        )
        return torch.cat([self._block(p, q) for p, q in pairs])

    def _block(self, p: Tensor, q: Tensor) -> Tensor:
        cost = torch.stack([(row - q).abs().sum(-1) for row in p])
        plan = transport(cost.detach(), self.smoothing, self.iterations)
        return len(p) * (plan * cost).sum(-1)


def transport(cost: Tensor, smoothing: float, iterations: int) -> Tensor:
    """The plan ``[n, n]`` between uniform masses that Sinkhorn's iteration reaches, computed with logarithms."""
    kernel = -cost / smoothing
    mass = -torch.log(torch.tensor(float(len(cost)), device=cost.device))
    rows = columns = torch.zeros(len(cost), dtype=cost.dtype, device=cost.device)
    for _ in range(iterations):
        columns = mass - torch.logsumexp(kernel + rows.unsqueeze(1), 0)
        rows = mass - torch.logsumexp(kernel + columns.unsqueeze(0), 1)
    return (kernel + rows.unsqueeze(1) + columns.unsqueeze(0)).exp()
