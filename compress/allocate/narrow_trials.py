"""Trials of narrow FFNs: which neurons of a block stay, and its weights without the others on every grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from compress.allocate.units import Choice, Unit
from compress.linalg.eliminate import eliminate
from compress.models.views import WeightView


@dataclass(frozen=True)
class NarrowFfn:
    """The FFN of one block with fewer neurons.

    Attributes:
        kept: how many stay.
        reader: the weight whose inputs they are, whole.
        choices: weight → what it can become.
        views: its weights, whole.
    """

    kept: int
    reader: WeightView
    choices: Mapping[str, tuple[Choice, ...]]
    views: tuple[WeightView, ...]

    def whole(self, name: str) -> tuple[int, int]:
        """The shape of a weight with all neurons."""
        return next(view.shape for view in self.views if view.name == name)


def narrow_ffns(units: Sequence[Unit], block: int) -> list[NarrowFfn]:
    """The narrow FFNs among the candidates of a block, the widest first."""
    found = []
    own = [unit for unit in units if unit.block == block and unit.narrow]
    for kept in sorted({kept for unit in own for kept in unit.narrow}, reverse=True):
        views = tuple(unit.views[0] for unit in own)
        choices = {unit.name: unit.narrow[kept] for unit in own}
        (reader,) = (view for view in views if _cut_shape(choices[view.name])[1] != view.shape[1])
        found.append(NarrowFfn(kept, reader, choices, views))
    return found


def staying(weight: Tensor, gram: Tensor | None, kept: int) -> tuple[Tensor, Tensor]:
    """Which neurons stay, and the weight that reads them.

    Args:
        weight: ``[out, neurons]``.
        gram: of its inputs ``[neurons, neurons]``; None where none was gathered.
        kept: how many.

    Returns:
        Their numbers, int64 ``[kept]``, rising, and the weight fitted anew, ``[out, neurons]`` with zeros for the others.
    """
    total = weight.shape[1]
    known = torch.eye(total, device=weight.device) if gram is None else gram
    found = eliminate(weight, known, torch.arange(total, device=weight.device).view(total, 1), kept)
    return found.kept, found.theta


def widened(narrow: Tensor, shape: tuple[int, int], kept: Tensor) -> Tensor:
    """A weight without some neurons as one of the whole ``shape`` ``[out, in]``, with zeros in their rows or columns."""
    whole = narrow.new_zeros(shape)
    if narrow.shape[0] != shape[0]:
        whole[kept] = narrow
    else:
        whole[:, kept] = narrow
    return whole


def cut(weight: Tensor, narrow: tuple[int, int], kept: Tensor) -> Tensor:
    """The rows or columns of the neurons that stay; ``narrow`` is the shape that is left."""
    return weight[kept] if weight.shape[0] != narrow[0] else weight[:, kept]


def _cut_shape(choices: Sequence[Choice]) -> tuple[int, int]:
    return choices[0].weights[0].view.shape


def without_narrow(units: Sequence[Unit]) -> tuple[Unit, ...]:
    """The units with the choices of all neurons alone."""
    return tuple(replace(unit, narrow={}) for unit in units)


def smallest_labels(units: Sequence[Unit]) -> dict[str, str]:
    """Unit → the label of its smallest choice, with as many neurons as make each block smallest."""
    labels = {unit.name: unit.choices[0].label for unit in units}
    for block in {unit.block for unit in units if unit.narrow and unit.block is not None}:
        own = [unit for unit in units if unit.block == block and unit.narrow]
        ways = [{unit.name: unit.choices[0] for unit in own}]
        ways += [{unit.name: unit.narrow[kept][0] for unit in own} for kept in own[0].narrow]
        least = min(ways, key=lambda way: sum(choice.nbytes for choice in way.values()))
        labels |= {name: choice.label for name, choice in least.items()}
    return labels
