"""Special tokens around windows, as the tokenizer itself puts them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from compress.text.frame import framed, special_tokens_around


def tokenizer_of(template: str | None) -> Any:
    vocabulary = {"[CLS]": 0, "[SEP]": 1, "a": 2, "[UNK]": 3}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if template is not None:
        special = [("[CLS]", 0), ("[SEP]", 1)]
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


@pytest.mark.parametrize(
    ("template", "expected"),
    [("[CLS] $A [SEP]", ([0], [1])), ("$A [SEP]", ([], [1])), ("[CLS] $A", ([0], [])), (None, ([], []))],
)
def test_what_stands_around_a_text(template: str | None, expected: tuple[list[int], list[int]]) -> None:
    assert special_tokens_around(tokenizer_of(template)) == expected


def test_every_window_is_framed() -> None:
    windows = torch.tensor([[5, 6], [7, 8]])
    assert framed(windows, [0], [1, 1]).tolist() == [[0, 5, 6, 1, 1], [0, 7, 8, 1, 1]]
    assert torch.equal(framed(windows, [], []), windows)
