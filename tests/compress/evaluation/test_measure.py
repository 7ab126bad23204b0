"""Figures of logits: witnesses by hand, batches, and vocabularies that differ."""

from __future__ import annotations

import pytest
import torch

from compress.errors import UserError
from compress.evaluation.measure import compare_logits


def _logits(seed: int) -> torch.Tensor:
    return torch.randn(5, 7, 11, generator=torch.Generator().manual_seed(seed))


def test_figures_do_not_depend_on_batches_and_are_those_of_float64() -> None:
    windows = torch.randint(0, 11, (5, 7), generator=torch.Generator().manual_seed(3))
    logits, reference = _logits(1), _logits(2)
    whole = compare_logits(windows, iter([logits]), iter([reference]))
    parts = compare_logits(windows, iter(logits.split(2)), iter(reference.split(2)))
    log_p = reference.double().log_softmax(-1)
    log_q = logits.double().log_softmax(-1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    nll = -log_q[:, :-1].gather(-1, windows[:, 1:, None]).mean()
    for tally in (whole, parts):
        assert tally.kl == pytest.approx(float(kl), rel=1e-5)
        assert tally.perplexity == pytest.approx(float(nll.exp()), rel=1e-5)


def test_progress_and_kept_logits_cover_all_windows() -> None:
    windows = torch.zeros(5, 7, dtype=torch.int64)
    kept: list[torch.Tensor] = []
    seen: list[tuple[str, int, int]] = []
    compare_logits(
        windows, iter(_logits(1).split(2)), name="a", keep_in=kept, progress=lambda *step: seen.append(step)
    )
    assert torch.equal(torch.cat(kept), _logits(1))
    assert seen == [("a", 2, 5), ("a", 4, 5), ("a", 5, 5)]


def test_another_vocabulary_is_refused_with_both_sizes() -> None:
    windows = torch.zeros(5, 7, dtype=torch.int64)
    with pytest.raises(UserError, match="predicts 11 tokens and the reference 10"):
        compare_logits(windows, iter([_logits(1)]), iter([_logits(2)[..., :10]]), name="b")
