"""Errors of nearest rounding under several grids: against float64, by the C++ kernel and in plain torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from compress_kernels import native
from torch import Tensor

from compress.linalg import rounding_errors as module
from compress.linalg.rounding_errors import least_trial, rounding_errors

TRIALS, GROUPS = 5, 12


def drawn(width: int, rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Values, costs of ``rows`` rows, scales of both signs and zero points."""
    generator = torch.Generator().manual_seed(width)
    values = torch.randn(GROUPS, width, generator=generator)
    costs = torch.rand(rows, width, generator=generator)
    scale = torch.rand(TRIALS, GROUPS, generator=generator) * 0.3 + 0.05
    scale[:, ::3] *= -1
    return values, costs, scale, torch.randint(0, 8, (TRIALS, GROUPS), generator=generator).float()


def by_definition(values: Tensor, costs: Tensor, scale: Tensor, zero: Tensor, top: int) -> Tensor:
    """The same in float64, group by group."""
    errors = torch.zeros(scale.shape, dtype=torch.float64)
    for trial in range(len(scale)):
        for group in range(len(values)):
            s, z = float(scale[trial, group]), float(zero[trial, group])
            codes = (values[group].double() / s + z).round().clamp(0, top)
            cost = costs[group % len(costs)].double()
            errors[trial, group] = (cost * ((codes - z) * s - values[group].double()) ** 2).sum()
    return errors


@pytest.mark.parametrize("rows", [1, 4, GROUPS])
@pytest.mark.parametrize("width", [3, 64, 200])
@pytest.mark.parametrize("isa", ["torch", "portable", "avx2", "avx512", "avx512_bf16"])
def test_against_float64(isa: str, width: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    given = drawn(width, rows)
    wanted = by_definition(*given, 7)
    if isa == "torch":
        monkeypatch.setattr(native, "load", lambda: native.Native(False, "none", ""))
        monkeypatch.setattr(module, "_CACHED", 4 * width)
        torch.testing.assert_close(rounding_errors(*given, 7).double(), wanted, rtol=1e-5, atol=1e-6)
        return
    if isa not in native.available():
        pytest.skip(f"this CPU has no {isa}")
    with native.using(isa):
        torch.testing.assert_close(rounding_errors(*given, 7).double(), wanted, rtol=1e-5, atol=1e-6)


def test_the_least_trial_is_the_first_of_several() -> None:
    errors = torch.tensor([[2.0, 1.0, 3.0], [1.0, 1.0, 2.0], [1.0, 4.0, 1.0]])
    trials = torch.arange(9.0).view(3, 3)
    assert least_trial(errors, trials).tolist() == [3.0, 1.0, 8.0]


@pytest.mark.parametrize("wrong", ["dtype", "costs", "zero"])
def test_the_kernel_refuses_what_does_not_fit(wrong: str) -> None:
    if not native.load().loaded:
        pytest.skip("no compiler")
    given: dict[str, Any] = dict(zip(("values", "costs", "scale", "zero"), drawn(8, 4), strict=True))
    given |= {
        "dtype": {"values": given["values"].double()},
        "costs": {"costs": torch.rand(5, 8)},
        "zero": {"zero": given["zero"][:2]},
    }[wrong]
    with pytest.raises(ValueError, match="native_rounding_errors takes|costs are|scales and zero points"):
        torch.ops.compress_kernels.native_rounding_errors(*given.values(), 7)
