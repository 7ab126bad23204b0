"""RMS norms are found by what they compute, not by their names."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from compress.runtime.decoding.norms import native_norms, recognise, rms_norms


class Plain(nn.Module):
    """As Llama, Gemma and T5 have it, by its arguments."""

    def __init__(self, eps: float, offset: float, round_first: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(48, generator=torch.Generator().manual_seed(1)).to(dtype))
        self.some_epsilon, self.offset, self.round_first = eps, offset, round_first

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.some_epsilon)
        if self.round_first:
            return (self.weight + self.offset) * wide.to(x.dtype)
        return (wide * (self.weight.float() + self.offset)).to(x.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("eps", [1e-6, 1e-3])
@pytest.mark.parametrize(("offset", "round_first"), [(0.0, True), (0.0, False), (1.0, False)])
def test_each_kind(eps: float, offset: float, round_first: bool, dtype: torch.dtype) -> None:
    module = Plain(eps, offset, round_first, dtype)
    norm = recognise(module)
    assert norm is not None
    assert (norm.eps, norm.offset) == (eps, offset)
    x = torch.randn(3, 48, generator=torch.Generator().manual_seed(2)).to(dtype)
    torch.testing.assert_close(norm(x), module(x), rtol=2e-2 if dtype == torch.bfloat16 else 1e-5, atol=0)


def test_what_is_none() -> None:
    assert recognise(nn.LayerNorm(16)) is None
    assert recognise(nn.Linear(16, 16)) is None
    assert recognise(nn.PReLU(16)) is None
    biased = Plain(1e-6, 0.0, True, torch.float32)
    biased.bias = nn.Parameter(torch.zeros(48))
    assert recognise(biased) is None
    assert recognise(Plain(1e-6, 0.5, True, torch.float32)) is None


def test_the_kernel_runs_within_the_context_alone() -> None:
    model = nn.Sequential(Plain(1e-6, 0.0, True, torch.float32), nn.Linear(48, 4))
    found = rms_norms(model)
    assert list(found) == [model[0]]
    with native_norms(found):
        assert "forward" in model[0].__dict__
    assert "forward" not in model[0].__dict__
