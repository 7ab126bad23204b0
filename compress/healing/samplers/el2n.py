"""``el2n``: the windows that the dense model predicts worst."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from compress.healing.samplers.base import TOGETHER, Model
from compress.healing.samplers.fresh import Fresh


@dataclass(frozen=True)
class EL2N(Fresh):
    """The share ``keep`` of the windows with the largest score, in their order (Data Diet, arXiv:2107.07075, definition 2.2).

    ``by: el2n`` scores a window by the mean over its tokens of ``‖p − y‖₂``, p the model's probabilities and y 1 at the text's
    token; ``by: loss`` by the mean of ``−log p(y)``. The paper scores by networks early in their training; here it is the
    dense model, which is there.
    """

    keep: float = 0.5
    by: Literal["el2n", "loss"] = "el2n"

    name: ClassVar[str] = "el2n"

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise ValueError("keep is a share above 0 and up to 1")

    def candidates(self, count: int) -> int:
        """See :class:`~compress.healing.samplers.base.Selecting`."""
        return max(count, round(count / self.keep))

    @torch.no_grad()
    def select(self, windows: Tensor, count: int, model: Model, generator: torch.Generator) -> Tensor:
        """See :class:`~compress.healing.samplers.base.Selecting`."""
        dense = model()
        device = next(dense.parameters()).device
        scores = []
        for part in windows.split(TOGETHER):
            logits = dense(input_ids=part.to(device), use_cache=False).logits[:, :-1]
            scores.append(self._scores(logits.float(), part[:, 1:].to(device)).cpu())
        hardest = torch.cat(scores).topk(count).indices
        return windows[hardest.sort().values]

    def _scores(self, logits: Tensor, following: Tensor) -> Tensor:
        """``[windows]`` of logits ``[windows, length, vocabulary]`` and tokens ``[windows, length]``."""
        if self.by == "loss":
            return F.cross_entropy(logits.mT, following, reduction="none").mean(1)
        p = logits.softmax(-1)
        chosen = p.gather(-1, following.unsqueeze(-1)).squeeze(-1)
        square = p.square().sum(-1) - chosen.square() + (1 - chosen).square()
        return square.clamp(min=0).sqrt().mean(1)
