"""Transformers' processors of logits, the slow ones by a quicker way to the same scores."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.generation import LogitsProcessor, MinNewTokensLengthLogitsProcessor


class _NotTheEnd(LogitsProcessor):
    """No end before so many new tokens: transformers looks for the end among all tokens of the vocabulary, at every token."""

    def __init__(self, slow: MinNewTokensLengthLogitsProcessor) -> None:
        self._first = slow.prompt_length_to_skip + slow.min_new_tokens
        self._ends = slow.eos_token_id.reshape(-1).long()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores ``[1, vocabulary]``, those of the ends −∞ as long as there are too few tokens."""
        if input_ids.shape[-1] >= self._first:
            return scores
        ends = self._ends[self._ends < scores.shape[-1]]
        return scores.index_fill(-1, ends[ends >= 0], -torch.inf)


def quick(processors: LogitsProcessorList) -> LogitsProcessorList:
    """The same scores from every processor."""
    return LogitsProcessorList(
        _NotTheEnd(each) if type(each) is MinNewTokensLengthLogitsProcessor else each for each in processors
    )
