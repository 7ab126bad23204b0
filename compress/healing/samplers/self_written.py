"""``self``: text that the dense model writes, beside real text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from compress.healing.samplers.base import TOGETHER, Model
from compress.healing.samplers.fresh import Fresh

GPU_TOGETHER = 512
"""Windows that are written at once on a GPU, which a step of one token hardly occupies."""


@dataclass(frozen=True)
class SelfWritten(Fresh):
    """A share of the windows goes on behind its first ``prompt`` tokens as the dense model does, sampled at temperature 1.

    Where the text is short this is more of its kind; real text stays beside it, since models that read themselves alone
    degrade (arXiv:2404.01413).
    """

    share: float = 0.5
    prompt: int = 16

    name: ClassVar[str] = "self"

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1 or self.prompt < 1:
            raise ValueError("share is from 0 to 1, and prompt at least 1")

    def candidates(self, count: int) -> int:
        """See :class:`~compress.healing.samplers.base.Selecting`."""
        return count

    @torch.no_grad()
    def select(self, windows: Tensor, count: int, model: Model, generator: torch.Generator) -> Tensor:
        """See :class:`~compress.healing.samplers.base.Selecting`."""
        written = (
            torch.randperm(len(windows), generator=generator)[: round(self.share * len(windows))]
            .sort()
            .values
        )
        seed = int(torch.randint(1 << 62, (1,), generator=generator))
        windows = windows.clone()
        windows[written] = continued(model(), windows[written], self.prompt, seed)
        return windows[:count]


@torch.no_grad()
def continued(model: Any, windows: Tensor, prompt: int, seed: int, together: int = 0) -> Tensor:
    """Windows whose first tokens stay and whose others a model writes, sampled at temperature 1.

    Args:
        model: of transformers.
        windows: tokens int64 ``[windows, length]``.
        prompt: tokens that stay.
        seed: of the sampling.
        together: windows that are written at once; 0 for as many as suit the device.
    """
    length, prompt = windows.shape[1], min(prompt, windows.shape[1] - 1)
    found = windows.clone()
    on_gpu = model.device.type == "cuda"
    with torch.random.fork_rng(devices=[model.device] if on_gpu else []):
        torch.manual_seed(seed)
        for first in range(0, len(windows), step := together or (GPU_TOGETHER if on_gpu else TOGETHER)):
            part = slice(first, first + step)
            start = windows[part, :prompt].to(model.device)
            text = model.generate(
                input_ids=start,
                attention_mask=torch.ones_like(start),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                min_new_tokens=length - prompt,
                max_new_tokens=length - prompt,
                pad_token_id=0,
            )
            found[part] = text.to(found)
    return found
