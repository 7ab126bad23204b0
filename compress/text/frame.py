"""Special tokens around a text, for models that read whole texts instead of predicting the next token."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from compress.text.tokenize import encode


def special_tokens_around(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The ids that the tokenizer puts before and behind a text by itself, such as ``[CLS]`` and ``[SEP]``."""
    bare = encode(tokenizer, "a", special_tokens=False)
    whole = encode(tokenizer, "a")
    for start in range(len(whole) - len(bare) + 1):
        if bare and whole[start : start + len(bare)] == bare:
            return whole[:start], whole[start + len(bare) :]
    return [], []


def framed(windows: Tensor, before: list[int], behind: list[int]) -> Tensor:
    """Windows int64 ``[samples, length]`` with the same tokens before and behind each."""
    rows = len(windows)
    first = torch.tensor(before, dtype=torch.int64).expand(rows, -1)
    last = torch.tensor(behind, dtype=torch.int64).expand(rows, -1)
    return torch.cat([first, windows, last], dim=1)
