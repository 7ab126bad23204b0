"""How fast a loaded model reads and writes, at batch 1."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

REPEATS = 3
PROMPT = 16


def prefill_rate(model: PreTrainedModel, window: Tensor) -> float:
    """Tokens per second of one forward pass over a window `[length]`, best of three."""
    tokens = window[None].to(model.device)
    with torch.inference_mode():
        seconds = min(
            _timed(lambda: model(input_ids=tokens, use_cache=False), model.device) for _ in range(REPEATS)
        )
    return window.numel() / seconds


def decode_rate(model: PreTrainedModel, window: Tensor, *, new_tokens: int = 64) -> float | None:
    """Tokens per second of greedy decoding after a prompt of 16 tokens of `window`, best of two.

    The time of a single new token, which holds the prompt, is taken off. None if the model cannot generate.
    """
    if not model.can_generate():
        return None
    prompt = window[: min(PROMPT, window.numel())][None].to(model.device)
    _generate(model, prompt, 1)
    rates = []
    for _ in range(2):
        short = _timed(lambda: _generate(model, prompt, 1), model.device)
        long = _timed(lambda: _generate(model, prompt, 1 + new_tokens), model.device)
        rates.append(new_tokens / max(long - short, 1e-9))
    return max(rates)


def _generate(model: PreTrainedModel, prompt: Tensor, count: int) -> None:
    config = GenerationConfig(
        max_new_tokens=count,
        min_new_tokens=count,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        pad_token_id=0,
    )
    with torch.inference_mode():
        model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=config)


def _timed(action: Callable[[], object], device: torch.device) -> float:
    _synchronize(device)
    start = time.perf_counter()
    action()
    _synchronize(device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def loaded_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers, a shared tensor counted once."""
    sizes = {
        tensor.data_ptr(): tensor.nbytes
        for tensor in (*model.parameters(), *model.buffers())
        if tensor.device.type != "meta" and tensor.numel()
    }
    return sum(sizes.values())
