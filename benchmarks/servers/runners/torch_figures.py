"""Perplexity, likeliest tokens and greedy continuations of a causal model of transformers."""

from __future__ import annotations

import math
from typing import Any

import torch


@torch.no_grad()
def torch_figures(model: Any, ids: Any, job: dict[str, Any]) -> dict[str, Any]:
    """The figures that ``children.py`` describes; ``ids`` int64 ``[windows, length]``, an array."""
    windows = torch.as_tensor(ids)
    loss, top1 = 0.0, []
    for window in windows:
        logits = model(input_ids=window[None], use_cache=False).logits[0, :-1].float()
        loss += float(torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum"))
        top1.append(logits.argmax(-1).tolist())
    perplexity = math.exp(loss / windows[:, 1:].numel())
    prompts = windows[: job["prompts"], : job["prompt"]]
    return {"perplexity": perplexity, "top1": top1, "greedy": greedy(model, prompts, job["new"])}


def greedy(model: Any, prompts: torch.Tensor, new: int) -> list[list[int]]:
    """``new`` likeliest tokens after each of ``prompts`` ``[windows, prompt]``; the end of a text does not end them."""
    tokens, past, added = prompts, None, []
    for _ in range(new):
        out = model(input_ids=tokens, past_key_values=past, use_cache=True)
        past = out.past_key_values
        tokens = out.logits[:, -1:].argmax(-1)
        added.append(tokens)
    return [[int(token) for token in row] for row in torch.cat(added, 1)]
