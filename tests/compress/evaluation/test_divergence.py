from __future__ import annotations

import math

import pytest
import torch

from compress.evaluation import divergence
from compress.evaluation.divergence import Tally, token_figures


def test_chunks_do_not_change_the_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    tokens = torch.randint(0, 50, (3, 7))
    logits, reference = torch.randn(3, 7, 50), torch.randn(3, 7, 50)
    whole = token_figures(tokens, logits, reference)
    monkeypatch.setattr(divergence, "CHUNK_ELEMENTS", 4 * 50)
    chunked = token_figures(tokens, logits, reference)
    assert torch.equal(whole.nll, chunked.nll)
    assert torch.equal(whole.kl, chunked.kl)
    assert torch.equal(whole.agrees, chunked.agrees)
    assert whole.nll.shape == (3, 6)
    assert whole.kl.shape == whole.agrees.shape == (3, 7)


def test_known_values() -> None:
    half, skewed = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
    figures = token_figures(torch.tensor([[0, 1]]), skewed.repeat(1, 2, 1), half.repeat(1, 2, 1))
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert figures.kl.tolist() == [[pytest.approx(expected)] * 2]
    assert figures.nll.tolist() == [[pytest.approx(-math.log(0.75))]]


def test_a_forbidden_token_adds_nothing() -> None:
    logits = torch.tensor([[[1.0, 2.0, -math.inf]]])
    assert token_figures(torch.tensor([[0]]), logits, logits).kl.item() == 0


def test_bf16_logits_are_compared_in_fp32() -> None:
    torch.manual_seed(0)
    logits, reference = torch.randn(1, 4, 1000).bfloat16(), torch.randn(1, 4, 1000).bfloat16()
    low = token_figures(torch.zeros(1, 4, dtype=torch.int64), logits, reference)
    high = token_figures(torch.zeros(1, 4, dtype=torch.int64), logits.float(), reference.float())
    assert torch.equal(low.kl, high.kl)


def test_an_empty_tally_has_no_divergence() -> None:
    tally = Tally()
    tally.add(token_figures(torch.zeros(1, 3, dtype=torch.int64), torch.zeros(1, 3, 4)))
    assert (tally.kl, tally.kl_error, tally.top1) == (None, None, None)
    assert tally.perplexity == pytest.approx(4)


def test_a_hopeless_model_does_not_overflow() -> None:
    logits = torch.zeros(1, 2, 2)
    logits[..., 1] = 1e4
    tally = Tally()
    tally.add(token_figures(torch.zeros(1, 2, dtype=torch.int64), logits))
    assert math.isinf(tally.perplexity)


def test_the_spread_of_the_divergence_and_the_shift_of_probabilities() -> None:
    torch.manual_seed(0)
    tokens = torch.randint(0, 20, (4, 300))
    logits, reference = torch.randn(4, 300, 20), torch.randn(4, 300, 20)
    figures, tally = token_figures(tokens, logits, reference), Tally()
    tally.add(figures)
    assert figures.kl is not None
    ordered = figures.kl.flatten().sort().values
    assert tally.kl_quantile(0.99) == pytest.approx(float(ordered[math.ceil(0.99 * 1200) - 1]))
    assert tally.kl_quantile(1.0) == pytest.approx(float(ordered[-1]))
    p, q = (each.double().softmax(-1)[:, :-1].gather(-1, tokens[:, 1:, None]) for each in (reference, logits))
    assert tally.rms_shift == pytest.approx(float((q - p).square().mean().sqrt()), rel=1e-5)
    alone = Tally()
    alone.add(token_figures(tokens, logits))
    assert (alone.kl_quantile(0.99), alone.rms_shift) == (None, None)


@pytest.mark.parametrize(("right", "error"), [(3, 0.0), (0, 0.75)])
def test_the_calibration_error(right: int, error: float) -> None:
    """The likeliest token has .75 and is right in three of four cases, or never."""
    logits = torch.tensor([0.75, 0.25]).log().expand(1, 401, 2)
    tokens = torch.tensor([[0, *([0] * right + [1] * (4 - right)) * 100]])
    tally = Tally()
    tally.add(token_figures(tokens, logits))
    assert tally.calibration_error == pytest.approx(error, abs=1e-6)


def test_logits_that_are_no_numbers_have_no_calibration_error() -> None:
    tally = Tally()
    tally.add(token_figures(torch.zeros(1, 3, dtype=torch.int64), torch.full((1, 3, 4), math.nan)))
    assert tally.calibration_error is None
