"""What the student is trained towards: one dense model, the mean of several, or what they said, kept on disk."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from compress.checkpoint.output import disk_errors, sync
from compress.healing.inner import Seen, forward


class Teaching(Protocol):
    """The predictions that a training aims at."""

    def seen(self, place: int, tokens: Tensor, *, states: bool = False) -> Seen:
        """Those at windows of tokens ``[windows, length]``, the first of which is window ``place`` of the training."""
        ...


@dataclass(frozen=True)
class Live:
    """Models that are run when they are asked; of several the logits are averaged (arXiv:2509.14786), and
    the first one shows its blocks."""

    models: Sequence[nn.Module]

    @torch.no_grad()
    def seen(self, place: int, tokens: Tensor, *, states: bool = False) -> Seen:
        """See :class:`Teaching`."""
        first = forward(self.models[0], tokens, states=states)
        if len(self.models) == 1:
            return first
        total = first.logits.clone()
        for model in self.models[1:]:
            total += forward(model, tokens).logits
        return Seen(total / len(self.models), first.states)


@dataclass(frozen=True)
class Cached:
    """The ``count`` largest log-probabilities of every position, in a file for ``batch`` windows.

    The probability of all other words is kept as one number and spread over them evenly: sums stay 1 (without it the student
    learns to be too sure). A position takes 6 · count + 4 bytes.

    Attributes:
        folder: of the files.
        count: words kept of a position.
        vocabulary: words in all.
        batch: windows of a file.
        places: the windows that are kept, rising, as their numbers in the training; all of them if ``None``.
    """

    folder: Path
    count: int
    vocabulary: int
    batch: int
    places: Sequence[int] | None = None

    def fill(self, teaching: Teaching, windows: Tensor, device: torch.device) -> None:
        """Ask ``teaching`` about those of windows ``[windows, length]`` that are kept; files that are there stay."""
        self.folder.mkdir(exist_ok=True, parents=True)
        kept = range(len(windows)) if self.places is None else self.places
        for first in range(0, len(kept), self.batch):
            path = self._file(first)
            if path.exists():
                continue
            parts = [
                self._kept(teaching.seen(at, windows[at : at + 1].to(device)).logits)
                for at in kept[first : first + self.batch]
            ]
            tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            beside = path.with_suffix(".new")
            with disk_errors(path, sum(tensor.nbytes for tensor in tensors.values())):
                save_file(tensors, beside)
                sync(beside)
                beside.rename(path)

    def seen(self, place: int, tokens: Tensor, *, states: bool = False) -> Seen:
        """See :class:`Teaching`; there are no states. Windows of several files are put together."""
        rows = [self._window(at, tokens.device) for at in range(place, place + len(tokens))]
        return Seen(torch.stack(rows))

    def _file(self, number: int) -> Path:
        return self.folder / f"{number // self.batch:06d}.safetensors"

    def _kept(self, logits: Tensor) -> dict[str, Tensor]:
        log_p = logits.float().log_softmax(-1)
        top, index = log_p.topk(self.count, dim=-1)
        rest = (1 - top.double().exp().sum(-1)).clamp(min=1e-30).log()
        return {
            "top": top.to(torch.float16).cpu(),
            "index": index.to(torch.int32).cpu(),
            "rest": rest.float().cpu(),
        }

    def _window(self, place: int, device: torch.device) -> Tensor:
        """Logits fp32 ``[length, vocabulary]`` of one window."""
        number = place if self.places is None else bisect_left(self.places, place)
        with safe_open(self._file(number), framework="pt") as file:
            row = number % self.batch
            top, index, rest = (file.get_slice(name)[row] for name in ("top", "index", "rest"))
        others = max(1, self.vocabulary - self.count)
        logits = (rest - torch.tensor(float(others)).log()).unsqueeze(-1).repeat(1, self.vocabulary)
        return logits.scatter_(-1, index.to(torch.int64), top.float()).to(device)
