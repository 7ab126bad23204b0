"""The leading singular triples of a matrix."""

from __future__ import annotations

import torch
from torch import Tensor


def leading(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The first ``rank`` singular triples: ``[out, rank]``, ``[rank]`` and ``[rank, in]``."""
    u, values, v = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank].contiguous(), values[:rank].contiguous(), v[:rank].contiguous()
