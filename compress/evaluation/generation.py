"""Greedy continuations of prompts: whether a model repeats itself, and how long it says what the dense one says."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

GRAM = 4
"""Tokens of a run that counts as repeated."""


def continue_prompts(model: PreTrainedModel, prompts: Tensor, new_tokens: int) -> Tensor:
    """The likeliest continuation, token by token.

    Args:
        prompts: int64 ``[prompts, length]``.
        new_tokens: written for every prompt, beyond an end of text too.

    Returns:
        int64 ``[prompts, new_tokens]``, on the CPU.
    """
    config = GenerationConfig(
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        pad_token_id=0,
    )
    out = []
    with torch.inference_mode():
        # One by one: kernels for packed weights may round otherwise for several rows.
        for prompt in prompts:
            ids = prompt[None].to(model.device)
            whole = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
            out.append(whole[0, prompts.shape[1] :].cpu())
    return torch.stack(out)


def repetition(written: Tensor) -> float:
    """The share of runs of four tokens that stood in the same continuation before, 0 to 1."""
    seen = again = 0
    for ids in written.tolist():
        grams = [tuple(ids[start : start + GRAM]) for start in range(len(ids) - GRAM + 1)]
        seen += len(grams)
        again += len(grams) - len(set(grams))
    return again / seen if seen else 0.0


def agreement(dense: Tensor, other: Tensor) -> float:
    """The mean number of tokens before the first that differs, of int64 ``[prompts, tokens]`` twice."""
    same = (dense == other).to(torch.int64).cumprod(1).sum(1)
    return float(same.double().mean())
