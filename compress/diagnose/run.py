"""The pass of a diagnosis: one over the blocks for all entries that look at weights and inputs, one for each comparison."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from compress.assets import EMBEDDED, embedded_model
from compress.calibrate.corpus import load_corpus
from compress.calibrate.text_length import check_text_length
from compress.calibrate.walk import BlockWalk, loaded_blocks, walk_blocks
from compress.calibrate.whole_model import check_fits
from compress.diagnose import coverage, drift, holdout, scales
from compress.diagnose import noise as noises
from compress.diagnose.base import Entry, Finding
from compress.diagnose.control import Control
from compress.diagnose.diagnosis import Diagnosis
from compress.diagnose.masks import Masks
from compress.diagnose.norms import Norms
from compress.diagnose.outliers import Outliers
from compress.diagnose.redundancy import Redundancy
from compress.diagnose.shape import Shape
from compress.diagnose.sinks import Sinks
from compress.diagnose.spectrum import Spectrum
from compress.errors import UserError
from compress.formats.dense_source import open_dense
from compress.models.skeleton import Skeleton, open_skeleton
from compress.recipe.registry import nearest
from compress.system.device import resolve_device, resolve_dtype
from compress.text.check import check_text
from compress.text.limits import check_token_ids, embedding_rows, fit_length, reserved_positions
from compress.text.tokenize import load_tokenizer

_LOG = logging.getLogger(__name__)

PASSES: dict[str, type[Entry]] = {
    entry.name: entry for entry in (Shape, Spectrum, Norms, Redundancy, Outliers, Sinks, Masks, Control)
}
"""Entries that are answered in one pass over the blocks."""

ENTRIES: dict[str, str] = {
    "shape": "tails of the weights, and the entropy of their codes",
    "spectrum": "how much of a weight lies in few singular directions",
    "norms": "how unlike rows and columns are",
    "redundancy": "neurons that point the same way",
    "outliers": "how far the loudest inputs stand out (needs a text)",
    "sinks": "tokens and channels that dwarf all others (needs a text)",
    "masks": "whether the text decides what is pruned (needs a text)",
    "control": "what methods gain over random choices of the same bytes (needs a text)",
    coverage.NAME: "whether the text is like the calibration text (needs a text)",
    noises.NOISE: "KL under noise of a 4-bit grid, kind by kind (needs a text)",
    noises.CONFIDENCE: "calibration error of the probabilities (needs a text)",
    drift.NAME: "where a compressed model leaves the dense one (needs a text and the dense model)",
    scales.NAME: "whether the ranking of methods holds in a model of another size (needs a text and that model)",
    holdout.NAME: "how often a text was asked (needs an output that was measured)",
}
"""Every entry and what it tells."""


@dataclass(frozen=True)
class DiagnosisSettings:
    """How a diagnosis runs: windows of the text, and where and in what blocks are computed."""

    samples: int = 8
    length: int = 512
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"
    trust_remote_code: bool = False


def diagnose(
    path: str | Path,
    *,
    data: str | None = None,
    against: str | Path | None = None,
    other_size: str | Path | None = None,
    calibration: str = EMBEDDED,
    entries: Sequence[str] | None = None,
    settings: DiagnosisSettings | None = None,
) -> Diagnosis:
    """Diagnose a model, dense or compressed, block by block.

    Args:
        path: a folder or a hub name.
        data: a text, as for calibration; without one the entries that need it are left out.
        against: the dense model of a compressed ``path``, for ``drift``.
        other_size: a model of the same family in another size, for ``scales``.
        calibration: the text that ``coverage`` compares ``data`` with.
        entries: names of :data:`ENTRIES`; all that can be answered unless given.

    Raises:
        UserError: an entry that there is not or that lacks its text or model, a model or a text that cannot be read.
    """
    wanted = settings or DiagnosisSettings()
    lacks = _Lacks(
        data is not None, against is not None, other_size is not None, holdout.is_asked(Path(path))
    )
    names = _chosen(entries, lacks)
    for text in (data, calibration):
        if text is not None:
            check_text(text)
    skeleton = _open(path, wanted)
    device = resolve_device(wanted.device)
    dtype = resolve_dtype(wanted.dtype, skeleton.dtype, device.type)
    place = _Place(skeleton, device, dtype)
    other = None if other_size is None or scales.NAME not in names else _open(other_size, wanted)
    if data is not None and other is not None:
        _check_length(other, data, wanted)
    if data is not None and coverage.NAME in names:
        _check_length(skeleton, calibration, wanted)
    tokens = _tokens(skeleton, data, wanted) if data is not None else None
    found: dict[str, Finding] = {}
    passes = [PASSES[name]() for name in names if name in PASSES]
    moments = coverage.Moments() if tokens is not None and coverage.NAME in names else None
    if passes or moments is not None:
        place.pass_over(passes, tokens, moments)
        found |= {entry.name: entry.finish() for entry in passes}
    if moments is not None:
        known = coverage.Moments()
        _LOG.info("comparing with the calibration text")
        place.pass_over([], _tokens(skeleton, calibration, wanted), known)
        found[coverage.NAME] = coverage.compared(known, moments)
    if tokens is not None and {noises.NOISE, noises.CONFIDENCE} & set(names):
        found |= {finding.entry: finding for finding in place.noise(tokens)}
    if tokens is not None and against is not None and drift.NAME in names:
        found[drift.NAME] = place.drift(_open(against, wanted), tokens)
    if data is not None and other is not None:
        found[scales.NAME] = _two_sizes(place, other, data, wanted)
    if holdout.NAME in names:
        found[holdout.NAME] = holdout.finding(Path(path))
    return Diagnosis(skeleton.source.name, data, tuple(found[name] for name in names))


@dataclass(frozen=True)
class _Place:
    """A model and where it is computed."""

    skeleton: Skeleton
    device: torch.device
    dtype: torch.dtype

    def pass_over(
        self, entries: Sequence[Entry], tokens: Tensor | None, moments: coverage.Moments | None = None
    ) -> None:
        """Show every weight of the blocks to the entries, with its inputs where there is a text; gather ``moments`` of it."""
        needs: frozenset[str] = frozenset().union(*(entry.needs for entry in entries))
        with self._walk(tokens) as (walk, indices):
            for index in indices:
                _LOG.info("reading block %d of %d", index + 1, len(self.skeleton.blocks))
                views = self.skeleton.block_views(index)
                wanted = {view.name: needs for view in views}
                seen = walk.stream.observe(index, wanted) if walk is not None and needs else {}
                if walk is not None:
                    for entry in entries:
                        if entry.hidden:
                            entry.see_block(index, (hidden for hidden, _ in walk.stream.inputs(index)))
                    if moments is not None:
                        moments.see_block(hidden for hidden, _ in walk.stream.inputs(index))
                for view in views if entries else ():
                    weight = view.get(self.skeleton.parameter_of(view)).detach().float()
                    for entry in entries:
                        entry.see_weight(view, weight, seen.get(view.name))

    @contextmanager
    def _walk(self, tokens: Tensor | None) -> Iterator[tuple[BlockWalk | None, Iterator[int]]]:
        if tokens is None:
            with loaded_blocks(
                self.skeleton, range(len(self.skeleton.blocks)), device=self.device, dtype=self.dtype
            ) as indices:
                yield None, indices
        else:
            with walk_blocks(self.skeleton, tokens, device=self.device, dtype=self.dtype) as walk:
                yield walk, iter(walk)

    def drift(self, dense: Skeleton, tokens: Tensor) -> Finding:
        """The same text through the dense and the compressed model."""
        if len(dense.blocks) != len(self.skeleton.blocks):
            raise UserError(
                f"{dense.source.name} has {len(dense.blocks)} blocks where {self.skeleton.source.name} has "
                f"{len(self.skeleton.blocks)}: "
                "drift compares models of one depth"
            )
        _LOG.info("comparing with the dense model")
        pairs = self._side_by_side(dense, tokens, tokens)
        return drift.finding([drift.angle_and_error(first, second) for first, second in pairs])

    def _side_by_side(
        self, other: Skeleton, others: Tensor, tokens: Tensor
    ) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
        """Hidden states before each block: those of ``other`` for its tokens, and of this model."""
        with (
            walk_blocks(other, others, device=self.device, dtype=self.dtype) as one,
            walk_blocks(self.skeleton, tokens, device=self.device, dtype=self.dtype) as two,
        ):
            for index, _ in zip(one, two, strict=True):
                yield (
                    [hidden for hidden, _ in one.stream.inputs(index)],
                    [hidden for hidden, _ in two.stream.inputs(index)],
                )

    def noise(self, tokens: Tensor) -> tuple[Finding, Finding]:
        """The whole model in memory, a forward for each kind of weight."""
        check_fits(self.skeleton, self.device, self.dtype, "noise is measured on the whole model")
        few = tokens[: max(1, min(len(tokens), 4))].to(self.device)
        with self.skeleton.loaded_whole(device=self.device, dtype=self.dtype):
            return noises.noise(self.skeleton, few, lambda role: _LOG.info("adding noise to %s", role))


def _two_sizes(place: _Place, other: Skeleton, data: str, settings: DiagnosisSettings) -> Finding:
    """The nulls and methods of ``control`` in both models; each reads the text with its own tokenizer."""
    _LOG.info("comparing with %s", other.source.name)
    seen = []
    for here in (place, _Place(other, place.device, place.dtype)):
        entry = Control()
        here.pass_over([entry], _tokens(here.skeleton, data, settings))
        seen.append((here.skeleton.source.name, entry.means))
    return scales.finding(*seen)


@dataclass(frozen=True)
class _Lacks:
    """What was given; called with an entry's name it says in words what that lacks, or None."""

    text: bool
    dense: bool
    other_size: bool
    asked: bool

    def __call__(self, name: str) -> str | None:
        if name == holdout.NAME:
            return None if self.asked else "an output that `compress eval` has measured"
        if name == drift.NAME and not self.dense:
            return "the dense model (--against)"
        if name == scales.NAME and not self.other_size:
            return "a model of another size (--other-size)"
        needs = name not in PASSES or PASSES[name]().wants_data
        return "a text (--data)" if needs and not self.text else None


def _chosen(entries: Sequence[str] | None, lacks: Callable[[str], str | None]) -> list[str]:
    if entries is None:
        return [name for name in ENTRIES if lacks(name) is None]
    for name in entries:
        if name not in ENTRIES:
            near = nearest(name, ENTRIES)
            hint = f"did you mean {near}?" if near else f"there are {', '.join(ENTRIES)}"
            raise UserError(f"There is no diagnosis called {name!r}: {hint}")
        if (lack := lacks(name)) is not None:
            raise UserError(f"The diagnosis {name!r} needs {lack}")
    return _ordered(entries)


def _ordered(entries: Collection[str]) -> list[str]:
    return [name for name in ENTRIES if name in entries]


def _open(path: str | Path, settings: DiagnosisSettings) -> Skeleton:
    folder = embedded_model() if str(path) == EMBEDDED else path
    source = open_dense(folder, trust_remote_code=settings.trust_remote_code)
    return open_skeleton(source, trust_remote_code=settings.trust_remote_code)


def _check_length(skeleton: Skeleton, data: str, settings: DiagnosisSettings) -> None:
    """Refuse a text that is shorter than one window, before the first pass."""
    source = skeleton.source
    tokenizer = load_tokenizer(source.path, trust_remote_code=source.trust_remote_code)
    check_text_length(data, tokenizer, length=_length(skeleton, settings))


def _length(skeleton: Skeleton, settings: DiagnosisSettings) -> int:
    """Tokens in a window that the model takes."""
    return fit_length(skeleton.model.config, settings.length, reserved_positions(skeleton.model))[0]


def _tokens(skeleton: Skeleton, data: str, settings: DiagnosisSettings) -> Tensor:
    source = skeleton.source
    tokenizer = load_tokenizer(source.path, trust_remote_code=source.trust_remote_code)
    length = _length(skeleton, settings)
    tokens = load_corpus(data, tokenizer, samples=settings.samples, length=length, seed=settings.seed).tokens
    check_token_ids(tokens, embedding_rows(skeleton.model), data)
    return tokens
