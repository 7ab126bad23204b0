"""The LOST layer: its beginning, its parameters, and that it learns beside a dense and a plain low-rank model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from compress.models.lost_linear import LostLinear
from compress.train.lost import rank_within, with_lost_linears

CONFIG = LlamaConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    max_position_embeddings=64,
)


def test_beginning() -> None:
    weight = torch.randn(24, 40, generator=torch.Generator().manual_seed(0))
    layer = LostLinear.of(weight, rank=6, columns=4, components=8)
    u, s, v = torch.linalg.svd(weight)
    torch.testing.assert_close(
        layer.left.weight @ layer.right.weight, (u[:, :6] * s[:6]) @ v[:6], rtol=1e-4, atol=1e-5
    )
    behind = ((u[:, 6:14] * s[6:14]) @ v[6:14]).norm(dim=0)
    assert layer.index.tolist() == sorted(behind.topk(4).indices.tolist())
    assert torch.equal(layer.kept.weight, weight[:, layer.index])
    x = torch.randn(2, 3, 40)
    low = nn.functional.silu(x @ layer.right.weight.T) @ layer.left.weight.T
    expected = 0.5 * low + 0.5 * x[..., layer.index] @ layer.kept.weight.T
    torch.testing.assert_close(layer(x), expected)


def test_out_of_range() -> None:
    weight = torch.randn(8, 16)
    for settings, message in (
        ({"rank": 9, "columns": 0}, "rank is 1 to 8"),
        ({"rank": 4, "columns": 17}, "columns are 0 to 16"),
        ({"rank": 4, "columns": 2, "gamma": 0.0}, "gamma"),
    ):
        with pytest.raises(ValueError, match=message):
            LostLinear.of(weight, **settings)
    with pytest.raises(ValueError, match="ratio"):
        with_lost_linears(nn.Linear(4, 4), ratio=0)


def train(change: Callable[[nn.Module], nn.Module], steps: int = 60) -> tuple[float, float, int]:
    """Loss before and after, and the parameters of the blocks."""
    torch.manual_seed(0)
    model = change(LlamaForCausalLM(CONFIG))
    generator = torch.Generator().manual_seed(1)
    # Each token follows from the one before by a fixed permutation, but for some noise.
    follow = torch.randperm(64, generator=generator)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(steps):
        ids = torch.randint(0, 64, (8, 1), generator=generator)
        for _ in range(15):
            ids = torch.cat([ids, follow[ids[:, -1:]]], dim=1)
        noise = torch.rand(ids.shape, generator=generator) < 0.05
        ids = torch.where(noise, torch.randint(0, 64, ids.shape, generator=generator), ids)
        loss = model(ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    count = sum(p.numel() for name, p in model.named_parameters() if ".layers." in name)
    return losses[0], sum(losses[-10:]) / 10, count


def test_trains_beside_dense_and_low_rank() -> None:
    start, dense, whole = train(lambda model: model)
    _, low, low_count = train(lambda model: with_lost_linears(model, ratio=0.5, columns=0, activation=False))
    _, lost, lost_count = train(lambda model: with_lost_linears(model, ratio=0.5, columns=0.1))
    assert low_count < 0.55 * whole
    assert abs(lost_count - low_count) < 0.06 * whole
    assert dense < 0.6 * start
    assert low < 0.6 * start
    assert lost < 0.6 * start


def test_ranks_and_budget() -> None:
    for shape in ((64, 64), (32, 96)):
        for columns in (0, 3):
            rank = rank_within(shape, 0.5, columns)
            assert rank * sum(shape) + columns * shape[0] <= 0.5 * shape[0] * shape[1]
