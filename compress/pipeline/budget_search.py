"""A search over the whole model and, for a mixture of experts, over models with fewer of them.

How many experts every block keeps is no choice of single weights: a router chooses among those that there are. So the search is
done once for each share of experts, and the best of the results is taken. All are judged by their divergence from the whole
model on the same held-out windows; so are, of each share, the model without the other experts and the one into which they are
merged, and the search is done for the better one.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import Tensor

from compress.checkpoint.source import Source
from compress.errors import UserError
from compress.models.skeleton import open_skeleton
from compress.pipeline.budget import (
    Found,
    Measured,
    SearchSettings,
    base_recipe,
    divergence_of,
    find_allocation,
    measure,
)
from compress.pipeline.budget_space import Space, fewer_experts, space_of
from compress.pipeline.calibration import draw_corpus, fit_recipe
from compress.prune.expert_likeness import Likeness, expert_likeness
from compress.prune.expert_saliency import expert_saliency
from compress.prune.experts import RoutedExperts, without_experts
from compress.prune.merge_experts import check_mergeable, merged_experts
from compress.system.progress import Progress, Silent

_LOG = logging.getLogger(__name__)


@dataclass
class BudgetSearch:
    """The search for allocations; a context manager, as measured models keep files.

    Attributes:
        space: what can become of the whole model.
        settings: of the search.
        bits: that a number takes about, for probes.
        folder: for what is to be gone on with.
        progress: told what is being done.
    """

    space: Space
    settings: SearchSettings
    bits: float
    folder: Path
    progress: Progress = field(default_factory=Silent)
    _measured: dict[tuple[float | None, str], Measured] = field(default_factory=dict)
    _stack: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def find(self, budget: int, text: str) -> Found:
        """The best allocation of a budget, of the whole model or of one with fewer experts.

        Args:
            budget: bytes of the weight files.
            text: the budget as it was written.

        Raises:
            UserError: no allocation fits.
        """
        best: Found | None = None
        tried: list[dict[str, Any]] = []
        for spaces in ((self.space,), *self._fewer):
            if budget < spaces[0].smallest:  # that of the others, too: their shapes are the same
                continue
            removals = [self._removal(space) for space in spaces]
            removal, space = min(zip(removals, spaces, strict=True), key=lambda pair: pair[0])
            if space.experts is not None:
                tried += [_tried(one, kl) for one, kl in zip(spaces, removals, strict=True)]
            if best is not None and removal >= _kl(best):
                continue
            folder = self._folder(space)
            found = find_allocation(
                space, self._measure(space), self.settings, budget, text, folder, self.progress
            )
            if space.experts is not None:
                tried[spaces.index(space) - len(spaces)]["measured_kl"] = _kl(found)
            if best is None or _kl(found) < _kl(best):
                best = found
        if best is None:
            raise UserError(f"No allocation has {budget} bytes or fewer.")
        return replace(best, figures=_with_experts(best.figures, tried)) if tried else best

    def _measure(self, space: Space) -> Measured:
        key = (space.experts, space.experts_by)
        if key not in self._measured:
            folder = self._folder(space)
            measured = measure(space, self.settings, self.bits, folder, self.progress)
            self._stack.callback(measured.meter.close)
            self._measured[key] = measured
        return self._measured[key]

    def _removal(self, space: Space) -> float:
        """Divergence of the model with fewer experts and else as it was, in nats a token."""
        if space.experts is None:
            return 0.0
        self.progress.step("experts")
        return divergence_of(space, self.settings, self._folder(space))

    def _folder(self, space: Space) -> Path:
        if space.experts is None:
            return self.folder
        folder = self.folder / f"experts-{space.experts:g}-{space.experts_by}"
        folder.mkdir(exist_ok=True)
        return folder

    @cached_property
    def _fewer(self) -> tuple[tuple[Space, ...], ...]:
        """The models with fewer experts: those of each share."""
        if self.settings.time is not None:
            return ()
        try:
            return tuple(self._spaces())
        except UserError as error:
            self.progress.note(f"models with fewer experts are not searched: {error}")
            return ()

    def _spaces(self) -> Iterator[tuple[Space, ...]]:
        whole = self.space.skeleton
        options: dict[str, Any] = {"device": self.settings.device, "dtype": self.settings.dtype}
        saliency: list[list[float]] | None = None
        likeness: list[Likeness] | None = None
        for share, routed, shape in fewer_experts(self.space):
            _LOG.info("%d of %d experts: at least %d bytes", routed.kept, routed.total, shape.smallest)
            if saliency is None:
                self.progress.step("experts")
                saliency = expert_saliency(whole, routed, self._tokens, "reap", **options)
                if self._merges(routed):
                    likeness = expert_likeness(whole, routed, self._tokens, **options)
            kept = [routed.best(values) for values in saliency]
            pruned = self._space(without_experts(whole, routed, kept), share, "reap")
            if likeness is None:
                yield (pruned,)
                continue
            merged = replace(pruned, experts_by="merge")
            source = merged_experts(whole, routed, likeness, self._folder(merged))
            yield pruned, self._space(source, share, "merge")

    def _space(self, source: Source, share: float, by: str) -> Space:
        space = space_of(open_skeleton(source), self.space.runtime, self.space.size)
        return replace(space, experts=share, experts_by=by, whole=self.space.skeleton)

    def _merges(self, routed: RoutedExperts) -> bool:
        """Whether experts can be merged; where they cannot, the reason is told."""
        try:
            check_mergeable(self.space.skeleton, routed)
        except UserError as error:
            self.progress.note(f"models with merged experts are not searched: {error}")
            return False
        return True

    @cached_property
    def _tokens(self) -> Tensor:
        """The calibration windows of the run behind the search, so that it keeps the same experts."""
        recipe, note = fit_recipe(base_recipe(self.settings.calibrate), self.space.skeleton)
        return draw_corpus(self.space.skeleton, recipe, self.settings.seed, note).tokens


def _kl(found: Found) -> float:
    return float(found.figures["budget"]["measured_kl"])


def _tried(space: Space, removal: float) -> dict[str, Any]:
    return {"experts": space.experts, "by": space.experts_by, "removal_kl": removal}


def _with_experts(figures: Mapping[str, Any], tried: list[dict[str, Any]]) -> dict[str, Any]:
    return {**figures, "budget": {**figures["budget"], "experts_tried": tried}}
