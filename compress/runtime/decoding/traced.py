"""A decoding step of a model, traced: token and position in, logits out, keys and values written in place."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .attention import native_attention
from .cache import traced_cache
from .norms import native_norms, rms_norms

Step = Callable[..., Tensor]
"""``(token int64 [1, 1], position int64 [1], keys, values, …) → logits [1, 1, vocabulary]``."""


class PlainStep(nn.Module):
    """A decoding step by the model's code with its cache as arguments, norms and attention by ``compress_kernels``.

    A trace of it holds one path through the model's code. Whether another token takes another path (experts) shows where the
    trace and this give other logits.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self._norms = rms_norms(model)

    def forward(self, token: Tensor, position: Tensor, *cache: Tensor) -> Tensor:
        """Logits ``[1, 1, vocabulary]``; the key and value of ``token`` are written at ``position``."""
        with native_norms(self._norms), native_attention(self.model):
            output = self.model(
                token,
                past_key_values=traced_cache(cache, position),
                position_ids=position[None],
                use_cache=True,
                return_dict=True,
            )
        logits: Tensor = output.logits
        return logits


def trace(step: PlainStep, token: Tensor, position: Tensor, cache: Sequence[Tensor]) -> Step:
    """Trace a step on real inputs, which writes to ``cache``.

    Raises:
        Exception: whatever the model's code raises with such arguments.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # shapes that are read as numbers, which stay what they are
        traced: Step = torch.jit.trace(step, (token, position, *cache), check_trace=False, strict=False)
    return traced
