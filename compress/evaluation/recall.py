"""Recall: a task made in code, so that it needs no data: which number stands beside a word, in a list that was just read."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from compress.evaluation.generation import continue_prompts
from compress.text.tokenize import encode

WORDS = (
    "apple",
    "bridge",
    "cloud",
    "door",
    "engine",
    "forest",
    "garden",
    "house",
    "island",
    "lamp",
    "mirror",
    "river",
)
ENTRIES = 6
"""Lines of a list."""


@dataclass(frozen=True)
class RecallTask:
    """Prompts, int64 ``[length]`` each, and the tokens that answer them."""

    prompts: tuple[Tensor, ...]
    answers: tuple[Tensor, ...]


def recall_task(
    tokenizer: PreTrainedTokenizerBase, *, cases: int = 16, seed: int = 0, bos: bool = False
) -> RecallTask:
    """Lists of six words with a number each, in which one of the words is asked for again.

    Args:
        cases: lists, all different.
        seed: decides on words, numbers and the word that is asked for.
        bos: begin each prompt with the BOS token.
    """
    draw = random.Random(seed)
    prompts, answers = [], []
    for _ in range(cases):
        pairs = [(word, draw.randrange(10, 100)) for word in draw.sample(WORDS, ENTRIES)]
        asked, number = pairs[draw.randrange(ENTRIES)]
        lines = [f"{word} = {value}\n" for word, value in pairs]
        prompt = "".join(lines) + f"{asked} ="
        before = encode(tokenizer, prompt, special_tokens=False)
        whole = encode(tokenizer, f"{prompt} {number}\n", special_tokens=False)
        shared = next(
            (at for at, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b), len(before)
        )
        start = [tokenizer.bos_token_id] if bos else []
        # The line's end says that the number is over, but is not asked for.
        answer = whole[shared : len(encode(tokenizer, f"{prompt} {number}", special_tokens=False))]
        prompts.append(torch.tensor([*start, *whole[:shared]], dtype=torch.int64))
        answers.append(torch.tensor(answer, dtype=torch.int64))
    return RecallTask(tuple(prompts), tuple(answers))


def recall(model: PreTrainedModel, task: RecallTask) -> float:
    """The share of answers that the model writes token by token, 0 to 1."""
    right = 0
    for prompt, answer in zip(task.prompts, task.answers, strict=True):
        written = continue_prompts(model, prompt[None], len(answer))[0]
        right += int(torch.equal(written, answer))
    return right / len(task.prompts)
