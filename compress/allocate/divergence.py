"""The true KL divergence of allocations from the dense model, on a few held-out windows, with one block in memory."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.allocate.trial_weights import Allocation, TrialWeights
from compress.allocate.units import GONE
from compress.calibrate.hidden_states import Activations
from compress.calibrate.loss_head import injection
from compress.calibrate.stream import BlockStream
from compress.calibrate.walk import walk_blocks
from compress.calibrate.whole_model import WholeModelStream
from compress.errors import UserError
from compress.evaluation.divergence import token_figures
from compress.models.skeleton import Skeleton

_IN_MEMORY = 1 << 29
"""Bytes of the dense model's logits above which they go to a file."""


@dataclass
class DivergenceMeter:
    """Measures KL(dense ‖ allocation) in nats a token.

    Attributes:
        skeleton: the dense model; no block may be loaded.
        trials: the weights that allocations are put together from.
        tokens: held-out windows, int64 ``[samples, length]``.
        device, dtype: where and in what blocks are computed.
        folder: for files of logits and hidden states.
        whole: the dense model where ``skeleton`` is one with fewer experts; None where it is the dense model itself.
        measured: how many allocations were measured.
    """

    skeleton: Skeleton
    trials: TrialWeights
    tokens: Tensor
    device: torch.device
    dtype: torch.dtype
    folder: Path
    whole: Skeleton | None = None
    measured: int = 0
    _reference: Activations | None = field(default=None, repr=False)
    _known: dict[tuple[tuple[str, str], ...], list[float]] = field(default_factory=dict, repr=False)

    def prepare(self) -> None:
        """Compute the dense model's logits.

        Raises:
            UserError: the model cannot be run block by block.
        """
        self._dense_logits()

    def by_window(self, allocation: Allocation) -> list[float]:
        """KL divergence of each window; an allocation that was measured before is not measured again."""
        key = tuple(sorted(allocation.items()))
        if key not in self._known:
            self._known[key] = self._measure(allocation)
            self.measured += 1
        return self._known[key]

    def mean(self, allocation: Allocation) -> float:
        """Mean KL divergence over the windows."""
        windows = self.by_window(allocation)
        return sum(windows) / len(windows)

    def close(self) -> None:
        """Free the reference's logits, and the file they may be in."""
        if self._reference is not None:
            self._reference.close()
            self._reference = None

    def _measure(self, allocation: Allocation) -> list[float]:
        reference = self._dense_logits()
        found: list[float] = []
        with self._logits(allocation) as batches:
            for rows, logits in batches:
                against = reference.read(rows, self.device, self.dtype)
                figures = token_figures(self.tokens[rows], logits, against)
                assert figures.kl is not None
                found += figures.kl.double().mean(1).tolist()
        return found

    def _dense_logits(self) -> Activations:
        if self._reference is None:
            with self._logits({}, self.whole) as batches:
                for rows, logits in batches:
                    if self._reference is None:
                        shape = (len(self.tokens), *logits.shape[1:])
                        large = torch.Size(shape).numel() * self.dtype.itemsize > _IN_MEMORY
                        self._reference = Activations(
                            shape, self.dtype, torch.device("cpu"), self.folder if large else None
                        )
                    self._reference.write(rows, logits)
        assert self._reference is not None
        return self._reference

    @contextmanager
    def _logits(
        self, allocation: Allocation, whole: Skeleton | None = None
    ) -> Iterator[Generator[tuple[slice, Tensor]]]:
        """The logits ``[b, length, vocabulary]`` of the model under an allocation, or of the ``whole`` one, by batch."""
        skeleton = whole or self.skeleton.with_weights(self.trials.decoder(allocation))
        options: dict[str, Any] = {"device": self.device, "dtype": self.dtype}
        gone = {unit.block for unit in self.trials.units if allocation.get(unit.name) == GONE}
        kept = [index for index in range(len(skeleton.blocks)) if index not in gone]
        with walk_blocks(
            skeleton,
            self.tokens,
            blocks=kept if gone else None,
            through_last=True,
            batch_size=1,
            spill_dir=self.folder,
            **options,
        ) as walk:
            if isinstance(walk.stream, WholeModelStream):
                raise UserError(
                    f"{type(skeleton.model).__name__} cannot be run block by block, as the search for a budget needs: "
                    "name a recipe with -r instead."
                )
            for _ in walk:
                pass
            with (
                skeleton.loaded_rest(head=True, **options),
                injection(skeleton.model, skeleton.blocks) as inject,
                closing(self._batches(walk.stream, kept[-1], inject)) as batches,
            ):
                yield batches

    def _batches(self, stream: BlockStream, last: int, inject: Any) -> Generator[tuple[slice, Tensor]]:
        with torch.no_grad():
            for number, (hidden, _) in enumerate(stream.inputs(last)):
                rows = slice(number, number + 1)
                yield rows, inject(self.tokens[rows].to(self.device), hidden).detach()
