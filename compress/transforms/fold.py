"""Folding: absorb a scale of some weights' inputs in what makes these inputs, so that the block's function stays.

A scale on the input columns of the weights that read a tensor is undone where that tensor is made: in the vector of a norm,
or in the rows of a linear layer. Candidates are tried on real inputs, not read from a table of families: a fold is accepted
if the block's output does not change. Scales are powers of two, which no floating-point dtype rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from compress.models.views import WeightView

_TOLERANCE = 1e-3
"""Relative change of a block's output that rounding can make; a wrong fold changes it by far more."""


@dataclass(frozen=True)
class Edit:
    """``(v + offset) / scale − offset`` on a vector ``[n]``; the offset is 1 where a norm multiplies by one plus its weight."""

    scale: Tensor
    offset: float = 0.0

    def apply(self, vector: Tensor) -> Tensor:
        """The edited vector, in its dtype."""
        scale = self.scale.to(vector.device)
        if not self.offset:
            return (vector.float() / scale).to(vector.dtype)
        return ((vector.float() + self.offset) / scale - self.offset).to(vector.dtype)


@dataclass(frozen=True)
class Fold:
    """A scale on the columns of ``readers`` that is undone in ``vectors`` (parameter name → offset) and the rows of
    ``maker``."""

    readers: tuple[WeightView, ...]
    vectors: Mapping[str, float] = field(default_factory=dict)
    maker: WeightView | None = None

    @torch.no_grad()
    def apply(self, scale: Tensor, parameters: Mapping[str, Tensor]) -> dict[str, list[Edit]]:
        """Multiply the readers' columns by ``scale`` ``[in]`` in place, and undo it; returns the edits of vectors by name."""
        for view in self.readers:
            view.get(parameters[view.parameter]).mul_(scale)
        if self.maker is not None:
            self.maker.get(parameters[self.maker.parameter]).div_(scale.unsqueeze(1))
        edits = {name: [Edit(scale, offset)] for name, offset in self.vectors.items()}
        for name, (edit,) in edits.items():
            parameters[name].copy_(edit.apply(parameters[name]))
        return edits


def find_fold(
    readers: Sequence[WeightView],
    makers: Sequence[WeightView],
    parameters: Mapping[str, Tensor],
    editable: frozenset[str],
    run: Callable[[], Tensor],
) -> Fold | None:
    """The first fold that absorbs a scale on the readers' input without changing what ``run`` returns.

    Args:
        readers: all planned weights that read the input.
        makers: weights of the block whose rows may be scaled.
        parameters: the loaded block's parameters by their names in the model; unchanged when this returns.
        editable: the vectors that may be changed.
        run: the block's output on some real inputs, with its present parameters.
    """
    size = readers[0].shape[1]
    before = run()
    steps = torch.arange(size) % 3 - 1
    scale = torch.exp2(steps.float()).to(before.device)[torch.randperm(size, generator=_generator())]
    for fold in _candidates(readers, makers, parameters, editable, size):
        changed = {view.parameter for view in (*fold.readers, *((fold.maker,) if fold.maker else ()))}
        saved = {name: parameters[name].detach().clone() for name in (*changed, *fold.vectors)}
        fold.apply(scale, parameters)
        after = run()
        with torch.no_grad():
            for name, values in saved.items():
                parameters[name].copy_(values)
        if float((after - before).float().norm()) <= _TOLERANCE * float(before.float().norm()):
            return fold
    return None


def _candidates(
    readers: Sequence[WeightView],
    makers: Sequence[WeightView],
    parameters: Mapping[str, Tensor],
    editable: frozenset[str],
    size: int,
) -> Iterator[Fold]:
    vectors = [name for name in parameters if name in editable and parameters[name].shape == (size,)]
    by_owner: dict[str, list[str]] = {}
    for name in vectors:
        by_owner.setdefault(name.rpartition(".")[0], []).append(name)
    for names in by_owner.values():
        weights = [name for name in names if name.endswith("weight")]
        if len(weights) == 1:
            for offset in (0.0, 1.0):
                yield Fold(tuple(readers), {name: offset if name in weights else 0.0 for name in names})
    for maker in makers:
        bias = f"{maker.module}.bias"
        if maker.shape[0] != size or maker in readers or (bias in parameters and bias not in vectors):
            continue
        yield Fold(tuple(readers), {bias: 0.0} if bias in parameters else {}, maker)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
