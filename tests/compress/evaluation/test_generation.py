from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from compress.evaluation.generation import agreement, continue_prompts, repetition


def test_repetition_counts_runs_that_were_there_before() -> None:
    assert repetition(torch.arange(12)[None]) == 0.0
    # Of nine runs of a cycle of four, four are new.
    assert repetition(torch.tensor([[1, 2, 3, 4] * 3])) == pytest.approx(5 / 9)
    assert repetition(torch.tensor([[1, 2, 3]])) == 0.0


def test_agreement_ends_at_the_first_difference() -> None:
    dense = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 4]])
    other = torch.tensor([[1, 9, 3, 4], [1, 2, 3, 4]])
    assert agreement(dense, other) == 2.5
    assert agreement(dense, dense) == 4.0


def test_continuations_are_greedy(models: SimpleNamespace, dense: Path) -> None:
    model = models.load(dense, dtype=torch.float32, device=torch.device("cpu")).eval()
    prompts = torch.tensor([[5, 6, 7], [8, 9, 10]])
    written = continue_prompts(model, prompts, 5)
    ids = prompts.clone()
    for _ in range(5):
        with torch.no_grad():
            scores = model(ids).logits[:, -1]
        scores[:, 1] = -torch.inf  # the end of text is not written before all tokens are
        ids = torch.cat([ids, scores.argmax(-1, keepdim=True)], 1)
    assert torch.equal(written, ids[:, 3:])
