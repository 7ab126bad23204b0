"""ADMM masks against a linear solve at each step in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compress.linalg.admm import split
from compress.linalg.factor_cache import FactorCache
from compress.score.metric import Kron, Side
from compress.structures.base import SparsityPattern
from compress.structures.sparse.patterns import NM, Unstructured


def slow_admm(weight: Tensor, gram: Tensor, pattern: SparsityPattern, steps: int) -> Tensor:
    """ADMM with a linear solve each time, in float64."""
    root = gram.double().diagonal().sqrt()
    normalised = gram.double() / root / root.unsqueeze(1)
    target = weight.double() * root
    point, dual, penalty = target, torch.zeros_like(target), 0.1
    before = pattern.choose(target.square().float())
    for step in range(1, steps + 1):
        left = normalised + penalty * torch.eye(len(root), dtype=torch.float64)
        free = torch.linalg.solve(left, (target @ normalised - dual + penalty * point).T).T
        mask = pattern.choose((free + dual / penalty).square().float())
        point = (free + dual / penalty) * mask
        dual = dual + penalty * (free - point)
        if step % 3 == 0:
            changed = int((mask & ~before).sum()) / int(mask.sum())
            if changed == 0:
                break
            penalty *= 1.3 if changed > 0.1 else 1.2 if changed > 0.005 else 1.1
            before = mask
    return mask


@pytest.mark.parametrize("pattern", [Unstructured(0.5), Unstructured(0.7, "layer"), NM(2, 4)], ids=str)
def test_the_mask_is_that_of_plain_admm(pattern: SparsityPattern) -> None:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(256, 64, generator=generator) @ (
        torch.eye(64) + 0.3 * torch.randn(64, 64, generator=generator) / 8
    )
    inputs[:, ::16] *= 20
    weight, gram = 0.05 * torch.randn(24, 64, generator=generator), inputs.T @ inputs / 256
    found = split(weight, Kron(right=Side(gram)), pattern.choose, 60, FactorCache())
    reference = slow_admm(weight, gram, pattern, 60)
    # A tie in the last bit may fall either way.
    assert int((found != reference).sum()) <= 4
