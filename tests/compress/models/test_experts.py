"""Which way round experts lie, asked of the module itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from compress.models.experts import gate_and_up, runs_experts

Gate = Callable[[Tensor], Tensor]


class Experts(nn.Module):
    has_gate = True
    is_transposed = False

    def __init__(self, gate: Gate | None) -> None:
        super().__init__()
        if gate is not None:
            self._apply_gate = gate


def halves(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, dim=-1)
    return nn.functional.silu(gate) * up


def halves_up_first(x: Tensor) -> Tensor:
    up, gate = x.chunk(2, dim=-1)
    return nn.functional.gelu(gate) * (up + 1)


def turns(x: Tensor) -> Tensor:
    gate, up = x[..., ::2].clamp(max=7), x[..., 1::2].clamp(-7, 7)
    return (up + 1) * gate * torch.sigmoid(1.7 * gate)


def linear(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, dim=-1)
    return nn.functional.relu(gate) * up


def mixed(x: Tensor) -> Tensor:
    return x[..., :4] * x.sum(-1, keepdim=True)


def fails(x: Tensor) -> Tensor:
    raise RuntimeError("only with real weights")


@pytest.mark.parametrize(
    ("gate", "expected"),
    [
        (halves, ((0, 4, 1), (4, 8, 1))),
        (halves_up_first, ((4, 8, 1), (0, 4, 1))),
        (turns, ((0, 8, 2), (1, 8, 2))),
        (linear, ((0, 4, 1), (4, 8, 1))),
        (mixed, None),
        (fails, None),
        (None, None),
    ],
)
def test_gate_and_up(gate: Gate | None, expected: object) -> None:
    assert gate_and_up(Experts(gate), 8) == expected


def test_only_what_the_experts_interface_runs() -> None:
    assert not runs_experts(nn.Linear(2, 2))
    module = Experts(halves)
    module.down_proj = nn.Parameter(torch.zeros(2, 4, 4))
    assert not runs_experts(module)
    module.gate_up_proj = nn.Parameter(torch.zeros(2, 8, 4))
    assert runs_experts(module)
