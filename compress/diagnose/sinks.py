"""Sinks: tokens and channels of the residual stream that dwarf all others (massive activations)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from compress.diagnose.base import Cell, Entry, Finding, mean, percent

MASSIVE = 20.0


class Sinks(Entry):
    """By block: the largest norm of a token over the median, how often the first token has it, and the top channel's share."""

    name = "sinks"
    hidden = True

    def __init__(self) -> None:
        self._rows: list[tuple[Cell, ...]] = []

    def see_block(self, index: int, states: Iterable[Tensor]) -> None:
        """Keep the norms of tokens and the loudest channel of hidden states ``[b, length, hidden]``, batch by batch."""
        ratios: list[float] = []
        first: list[float] = []
        energy: Tensor | None = None
        for batch in states:
            wide = batch.detach().double()
            norms = wide.norm(dim=-1)
            ratios += (norms.amax(1) / norms.median(1).values.clamp_min(1e-30)).tolist()
            first += (norms.argmax(1) == 0).double().tolist()
            squares = wide.square().sum((0, 1)).cpu()
            energy = squares if energy is None else energy + squares
        share = float(energy.max() / energy.sum().clamp_min(1e-300)) if energy is not None else 0.0
        self._rows.append((index, mean(ratios), mean(first), share))

    def finish(self) -> Finding:
        """The table by block, and what to do about tokens that dwarf all others."""
        table = torch.tensor([[float(str(cell)) for cell in row] for row in self._rows])
        worst = int(table[:, 1].argmax())
        block, ratio, first, _ = (float(value) for value in table[worst])
        advice = (
            f"Before block {block:.0f} one token is {ratio:.0f} times the median (the first in {percent(first)} of windows): "
            "keep BOS in calibration windows, and the first positions of a key-value cache unrounded."
            if ratio >= MASSIVE
            else f"No token stands out by more than {ratio:.1f} times the median: no sinks to keep."
        )
        columns = (
            "block",
            "largest token / median",
            "first token is the largest",
            "energy of the loudest channel",
        )
        return Finding(self.name, "Sinks and massive activations", columns, tuple(self._rows), advice)
