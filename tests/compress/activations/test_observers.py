"""Contract of the observers over the registry, and each against a slow search on the values themselves."""

from __future__ import annotations

import pytest
import torch
from compress_kernels.activations import ActivationScheme, fake_quantize, scale_of_range

from compress.activations.observers import MSE, MinMax, Observer, Percentile
from compress.recipe.registry import OBSERVERS, find
from compress.score.histogram import Histogram

SYMMETRIC = ActivationScheme(strategy="tensor", dynamic=False)
SHIFTED = ActivationScheme(symmetric=False, strategy="tensor", dynamic=False)
FLOAT = ActivationScheme(8, "float", strategy="tensor", dynamic=False)
VALUES = torch.cat(
    [torch.randn(20000, generator=torch.Generator().manual_seed(0)) + 0.5, torch.tensor([30.0, -8.0])]
)


def seen(values: torch.Tensor = VALUES) -> Histogram:
    histogram = Histogram()
    histogram.add(values)
    return histogram


def error(scheme: ActivationScheme, low: float, high: float) -> float:
    scale, zero = scale_of_range(scheme, torch.tensor([low]), torch.tensor([high]))
    return float((fake_quantize(VALUES, scheme, scale, zero) - VALUES).double().square().mean())


@pytest.mark.parametrize("name", OBSERVERS)
@pytest.mark.parametrize("scheme", [SYMMETRIC, SHIFTED, FLOAT], ids=lambda scheme: scheme.label)
def test_contract(name: str, scheme: ActivationScheme) -> None:
    observer: Observer = find("observer", name)()
    low, high = observer.range(seen(), scheme)
    assert float(VALUES.min()) <= low < high <= float(VALUES.max())
    assert observer.range(seen(), scheme) == (low, high)
    assert observer.range(seen(torch.full((9,), 2.0)), scheme)[1] <= 2.0


def test_min_max_clips_nothing() -> None:
    assert MinMax().range(seen(), SYMMETRIC) == (-8.0, 30.0)


@pytest.mark.parametrize("share", [99.0, 99.9])
def test_percentile_holds_its_share(share: float) -> None:
    low, high = Percentile(share).range(seen(), SYMMETRIC)
    wanted = float(VALUES.abs().sort().values[int(share / 100 * len(VALUES))])
    assert high == pytest.approx(wanted, abs=2 * 32 / 2048)
    low, high = Percentile(share).range(seen(), SHIFTED)
    inside = float(((low <= VALUES) & (high >= VALUES)).double().mean())
    assert inside == pytest.approx(share / 100, abs=1.5e-3)


@pytest.mark.parametrize("scheme", [SYMMETRIC, SHIFTED], ids=lambda scheme: scheme.label)
def test_mse_is_the_best_of_its_ratios(scheme: ActivationScheme) -> None:
    low, high = MSE().range(seen(), scheme)
    errors = [error(scheme, -8.0 * r, 30.0 * r) for r in torch.linspace(1, 0.2, 80).tolist()]
    assert error(scheme, low, high) == pytest.approx(min(errors), rel=0.02)
    assert min(errors) < 0.98 * errors[0]


def test_options_out_of_range() -> None:
    with pytest.raises(ValueError, match="percentile"):
        Percentile(40)
    with pytest.raises(ValueError, match="smallest"):
        MSE(smallest=0.0)
