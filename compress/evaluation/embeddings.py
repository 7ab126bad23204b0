"""Embedding models side by side: hidden states and pooled embeddings against those of the dense model."""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from compress_kernels.forward import quick_forward
from torch import Tensor
from transformers import PreTrainedModel

MEAN, FIRST, LAST, MAX = "mean", "first token", "last token", "maximum"
_MODES = {"mean": MEAN, "cls": FIRST, "lasttoken": LAST, "max": MAX}
_SWITCHES = {
    "pooling_mode_cls_token": FIRST,
    "pooling_mode_lasttoken": LAST,
    "pooling_mode_max_tokens": MAX,
    "pooling_mode_mean_tokens": MEAN,
}
_REPEATS = 3


def pooling_of(folder: Path) -> str:
    """How the checkpoint makes one embedding of a text: as the pooling module of sentence-transformers beside it says, else the
    mean over tokens."""
    for file in sorted(folder.glob("*Pooling*/config.json")):
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(config, dict):
            switched = next((mode for switch, mode in _SWITCHES.items() if config.get(switch) is True), None)
            return switched or _MODES.get(str(config.get("pooling_mode")), MEAN)
    return MEAN


def pooled(hidden: Tensor, pooling: str) -> Tensor:
    """One embedding `[batch, width]` of hidden states `[batch, length, width]` without padding."""
    if pooling == FIRST:
        return hidden[:, 0]
    if pooling == LAST:
        return hidden[:, -1]
    return hidden.amax(1) if pooling == MAX else hidden.mean(1)


@torch.inference_mode()
def hidden_states(model: PreTrainedModel, windows: Tensor, batch_size: int) -> Iterator[Tensor]:
    """Yield the last hidden states `[batch, length, width]` of all windows, without the model's head."""
    for batch in windows.split(batch_size):
        yield _last(model, batch)


def encode_rate(model: PreTrainedModel, window: Tensor) -> float:
    """Tokens per second of one forward pass over a window `[length]`, best of three."""
    seconds = []
    with torch.inference_mode():
        for _ in range(_REPEATS):
            start = time.perf_counter()
            _last(model, window[None]).cpu()
            seconds.append(time.perf_counter() - start)
    return window.numel() / min(seconds)


def _last(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    base = model.base_model
    options = {"use_cache": False} if "use_cache" in inspect.signature(base.forward).parameters else {}
    with quick_forward():
        output: Tensor = base(input_ids=tokens.to(model.device), **options)[0]
    return output


@dataclass
class EmbeddingTally:
    """Sums over all batches.

    Attributes:
        pooling: how embeddings are made of hidden states.
    """

    pooling: str
    _difference: float = 0.0
    _energy: float = 0.0
    _cosines: list[Tensor] = field(default_factory=list)

    def add(self, hidden: Tensor, reference: Tensor) -> None:
        """Take a batch of hidden states `[batch, length, width]` of both models."""
        ours, dense = hidden.float().cpu(), reference.float().cpu()
        self._difference += float((ours - dense).square().sum(dtype=torch.float64))
        self._energy += float(dense.square().sum(dtype=torch.float64))
        pair = (pooled(ours, self.pooling), pooled(dense, self.pooling))
        self._cosines.append(F.cosine_similarity(*pair, dim=-1))

    @property
    def hidden_error(self) -> float:
        """‖h − h₀‖ ÷ ‖h₀‖ over all positions."""
        return float((self._difference / max(self._energy, 1e-300)) ** 0.5)

    @property
    def cosine(self) -> float:
        """Cosine of the pooled embedding with the dense model's, mean over windows."""
        return float(torch.cat(self._cosines).double().mean())

    @property
    def cosine_min(self) -> float:
        """The smallest cosine of a window."""
        return float(torch.cat(self._cosines).min())
