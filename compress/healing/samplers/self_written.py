"""``self``: text that the dense model writes, beside real text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from compress.healing.samplers.base import TOGETHER, Model
from compress.healing.samplers.fresh import Fresh


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
        written = torch.randperm(len(windows), generator=generator)[: round(self.share * len(windows))]
        length, prompt = windows.shape[1], min(self.prompt, windows.shape[1] - 1)
        windows = windows.clone()
        seed = int(torch.randint(1 << 62, (1,), generator=generator))
        dense: Any = model()
        with torch.random.fork_rng(devices=[dense.device] if dense.device.type == "cuda" else []):
            torch.manual_seed(seed)
            for part in written.sort().values.split(TOGETHER):
                start = windows[part, :prompt].to(dense.device)
                text = dense.generate(
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
                windows[part] = text.to(windows)
        return windows[:count]
