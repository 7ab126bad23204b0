"""Quicker processors of logits give what transformers' give."""

from __future__ import annotations

import torch
from transformers import LogitsProcessorList, MinNewTokensLengthLogitsProcessor, TemperatureLogitsWarper

from compress.runtime.decoding.processors import quick


def test_no_end_before_so_many_tokens() -> None:
    torch.manual_seed(0)
    scores = torch.randn(1, 20)
    for ends in (torch.tensor([3]), torch.tensor([0, 19, 25]), torch.tensor(7)):
        slow = LogitsProcessorList(
            [MinNewTokensLengthLogitsProcessor(4, 3, ends), TemperatureLogitsWarper(0.5)]
        )
        made = quick(slow)
        assert type(made[0]) is not type(slow[0])
        assert made[1] is slow[1]
        for length in (4, 6, 7, 8):
            ids = torch.zeros(1, length, dtype=torch.long)
            assert torch.equal(made(ids, scores.clone()), slow(ids, scores.clone())), (ends, length)


def test_other_processors_stay() -> None:
    processors = LogitsProcessorList([TemperatureLogitsWarper(2.0)])
    assert list(quick(processors)) == list(processors)
