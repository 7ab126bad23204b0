"""Line fit: the scale and the bias of every group of columns, all groups of a row together, by least squares in a metric."""

from __future__ import annotations

import torch
from torch import Tensor

_BYTES = 1 << 26
"""Working memory, in bytes."""
_RIDGE = 1e-5
"""Added to the diagonal of the normal equations, relative to itself: a group of one code has no scale of its own."""


def line_steps(error: Tensor, codes: Tensor, gram: Tensor, groups: int) -> Tensor:
    """Changes of scales and biases that take away most of an error, fp32 ``[out, groups, 2]``.

    With ``Θ = q · s + β`` the error ``Δ`` becomes ``Δ − q · ds − dβ`` in each group, and ``tr(Δ C Δᵀ)`` is least where
    ``A x = b`` with ``A_ij = f_iᵀ C f_j`` and ``b_i = f_iᵀ C Δ``; the features f of a group are its codes and ones.

    Args:
        error: Δ, fp32 ``[out, in]``.
        codes: q, fp32 ``[out, in]``.
        gram: C, fp32 ``[in, in]``.
        groups: that divide ``in``.
    """
    out, size = codes.shape
    width = size // groups
    at_once = max(1, _BYTES // (8 * size * groups))
    ones = torch.zeros(groups, size, device=codes.device)
    for group in range(groups):
        ones[group, group * width : (group + 1) * width] = 1
    flat = ones @ gram  # [groups, in], the same for all rows
    steps = []
    for rows in range(0, out, at_once):
        part, wanted = codes[rows : rows + at_once], error[rows : rows + at_once]
        grouped = part.view(len(part), groups, width)
        sloped = torch.stack(
            [grouped[:, g] @ gram[g * width : (g + 1) * width] for g in range(groups)], 1
        )  # [rows, groups, in]
        by_group = sloped.view(len(part), groups, groups, width)
        slopes = (by_group * grouped.unsqueeze(1)).sum(-1)
        mixed = by_group.sum(-1)
        level = flat.view(groups, groups, width).sum(-1).expand(len(part), -1, -1)
        normal = torch.cat((torch.cat((slopes, mixed), 2), torch.cat((mixed.mT, level), 2)), 1)
        right = torch.cat((torch.einsum("rgi,ri->rg", sloped, wanted), wanted @ flat.T), 1)
        diagonal = normal.diagonal(dim1=1, dim2=2)
        ridge = torch.where(diagonal > 0, _RIDGE * diagonal, torch.ones_like(diagonal))
        lower, failed = torch.linalg.cholesky_ex(normal + torch.diag_embed(ridge))
        found = torch.cholesky_solve(right.unsqueeze(-1), lower).squeeze(-1)
        found = torch.where((failed == 0).unsqueeze(1), found, torch.zeros_like(found))
        steps.append(found.view(len(part), 2, groups).mT)
    return torch.cat(steps)
