"""Masked weights: numbers of a dtype under a mask."""

from __future__ import annotations

import pytest
import torch

from compress.score.metric import Elementwise, Kron
from compress.structures.base import SparsityPattern
from compress.structures.sparse.masked import Masked
from compress.structures.sparse.patterns import NM, Blocks, Unstructured

PATTERNS = [Unstructured(0.5), Unstructured(0.33, "layer"), NM(2, 4), NM(4, 8), Blocks(0.5, 4, 8)]
SHAPE = (12, 64)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_masked_weights_round_trip(pattern: SparsityPattern, dtype: torch.dtype) -> None:
    weight = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    structure = Masked(pattern, dtype)
    parameters = structure.fit(weight, Kron())
    theta = structure.project(weight, parameters)
    packed = structure.encode(theta, parameters)
    assert torch.equal(packed.dense(torch.float32), theta)
    assert packed.nbytes == sum(t.nbytes for t in packed.tensors.values())
    assert packed.nbytes < weight.to(dtype).nbytes
    assert int((theta != 0).sum()) == pattern.kept(SHAPE)


def test_the_mask_costs_least_by_single_elements() -> None:
    generator = torch.Generator().manual_seed(2)
    weight, cost = torch.randn(SHAPE, generator=generator), torch.rand(SHAPE, generator=generator)
    mask = Masked(Unstructured(0.5)).fit(weight, Elementwise(cost)).mask
    loss = weight.square() * cost
    assert torch.equal(mask, loss > loss.median(1, keepdim=True).values)


def test_columns_are_numbers_of_the_dtype_under_the_mask() -> None:
    structure = Masked(NM(2, 4), torch.bfloat16)
    weight = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))
    parameters = structure.fit(weight, Kron())
    rounder = structure.column_rounder(parameters, SHAPE)
    columns = torch.stack([rounder(weight[:, j], j) for j in range(SHAPE[1])], 1)
    assert torch.equal(columns, weight.bfloat16().float() * parameters.mask)
    other = structure.with_mask(parameters, ~parameters.mask)
    assert torch.equal(structure.mask_of(other), ~parameters.mask)
