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
