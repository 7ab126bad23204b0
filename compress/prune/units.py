"""Units of a block's width: which settings count them, and which tensors have a dimension that runs over them.

No model family is named. The model is built on meta with smaller numbers in its configuration; the tensors whose shapes differ
are those to cut.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from compress.checkpoint.source import Source
from compress.errors import UserError
from compress.models.build import build_on_meta
from compress.models.skeleton import Skeleton
from compress.models.views import WeightView, block_of

_NEURONS = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size")
_SMALL, _LARGE = 8, 64


@dataclass(frozen=True)
class Part:
    """One kind of unit that is pruned: FFN neurons, or groups of query heads with the key and value head that they share.

    Attributes:
        name: ``neurons`` or ``groups``.
        total: how many each block has.
        kept: how many stay in each block; where blocks keep different numbers, their mean.
        step: kept numbers are multiples of it.
        counts: block → how many stay, where blocks keep different numbers.
        config: the settings that change.
        dims: parameter → the dimensions that run over the units.
        readers: block → the weight whose inputs the units are.
    """

    name: str
    total: int
    kept: int
    config: Mapping[str, int]
    dims: Mapping[str, tuple[int, ...]]
    readers: Mapping[int, WeightView]
    step: int = 1
    counts: Mapping[int, int] = field(default_factory=dict)

    @property
    def prunes(self) -> bool:
        """Whether any unit is left out."""
        return self.kept < self.total

    def stays(self, block: int) -> int:
        """How many stay in a block."""
        return self.counts.get(block, self.kept)


def neurons(skeleton: Skeleton, share: float) -> Part:
    """The neurons of the FFNs, of which ``share`` stay, a multiple of 64 where there are many.

    Raises:
        UserError: the architecture does not say how many there are, or stores them in a way that is not cut here.
    """
    config: Any = skeleton.model.config
    key = next((name for name in _NEURONS if hasattr(config, name)), None)
    total = getattr(config, key, None) if key else None
    if key == "n_inner" and total is None:
        total = 4 * config.hidden_size
    if key is None or not isinstance(total, int):
        raise UserError(
            f"'width_pruning.neurons': {_model(skeleton)} does not say in a known way how many neurons its FFNs have"
        )
    step = _LARGE if total >= 8 * _LARGE else _SMALL
    kept = min(total, max(step, round(share * total / step) * step))
    return replace(_part(skeleton, "neurons", total, kept, {key: kept}, {total: kept}), step=step)


def counted_neurons(skeleton: Skeleton, counts: Mapping[int, int]) -> Part:
    """The neurons of the FFNs, of which single blocks keep the numbers in ``counts`` and the others all.

    Raises:
        UserError: as :func:`neurons`; a block that the model does not have, or more neurons than it has.
    """
    part, blocks = neurons(skeleton, 1.0), len(skeleton.blocks)
    for block, count in counts.items():
        if block >= blocks or count > part.total:
            raise UserError(
                f"'width_pruning.counts': there is no block {block} with {count} of {part.total} neurons among {blocks} blocks"
            )
    least = min(counts.values())
    part = neurons(skeleton, least / part.total)
    every = {block: counts.get(block, part.total) for block in range(blocks)}
    return replace(part, kept=least, counts=every)


def groups(skeleton: Skeleton, share: float) -> Part:
    """The groups of query heads with the key and value head that they share, of which ``share`` stay.

    Raises:
        UserError: the architecture ties its heads to its width, or stores them in a way that is not cut here.
    """
    config: Any = skeleton.model.config
    heads = getattr(config, "num_attention_heads", None)
    total = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else None)
    if (
        not isinstance(heads, int)
        or not isinstance(total, int)
        or not isinstance(width, int)
        or heads % total
    ):
        raise UserError(
            f"'width_pruning.groups': {_model(skeleton)} does not say in a known way how many heads it has"
        )
    refusal: UserError | None = None
    for kept in range(max(1, int(share * total + 0.5)), total + 1):
        changes = {"num_attention_heads": heads // total * kept, "head_dim": width}
        changes |= {"num_key_value_heads": kept} if hasattr(config, "num_key_value_heads") else {}
        # Queries, keys or values of all heads, and one number for each head.
        sizes = {n // total * total: n // total * kept for n in (heads * width, total * width, heads)}
        try:
            return _part(skeleton, "groups", total, kept, changes, sizes)
        except _Refused as error:  # some numbers of heads do not go with some widths
            refusal = UserError(str(error))
    assert refusal is not None
    raise refusal


class _Refused(UserError):
    """The model cannot be built with these numbers."""


def _part(
    skeleton: Skeleton, name: str, total: int, kept: int, config: Mapping[str, int], sizes: Mapping[int, int]
) -> Part:
    shapes = {parameter: tuple(tensor.shape) for parameter, tensor in skeleton.model.state_dict().items()}
    try:
        smaller = build_on_meta(changed(skeleton.source, config)).state_dict()
    except UserError as error:
        raise _Refused(
            f"'width_pruning.{name}': {kept} of {total} is no number for this model: {error}"
        ) from None
    dims: dict[str, tuple[int, ...]] = {}
    for parameter, before in shapes.items():
        after = tuple(smaller[parameter].shape)
        if after != before:
            dims[parameter] = _dims(skeleton, name, parameter, before, after, sizes)
    readers = {}
    for view in skeleton.views:
        if (
            view.parameter in dims
            and dims[view.parameter] == (0 if view.transposed else 1,)
            and view.block is not None
        ):
            if view.block in readers:
                raise UserError(
                    f"'width_pruning.{name}': block {view.block} of {_model(skeleton)} has several weights that read them"
                )
            readers[view.block] = view
    if kept < total and len(readers) < len(skeleton.blocks):
        raise UserError(
            f"'width_pruning.{name}': {_model(skeleton)} has none in every block that could go (those of experts stay)"
        )
    return Part(name, total, kept, config, dims, readers)


def _dims(
    skeleton: Skeleton,
    name: str,
    parameter: str,
    before: tuple[int, ...],
    after: tuple[int, ...],
    sizes: Mapping[int, int],
) -> tuple[int, ...]:
    """The dimensions of a parameter that become smaller, each a known number of units."""
    pieces = skeleton.pieces.get(parameter, ())
    known = all(x == y or sizes.get(x) == y for x, y in zip(before, after, strict=True))
    alone = len(pieces) == 1 and pieces[0].whole and None not in pieces[0].dims
    if block_of(parameter, skeleton.blocks) is None or len(before) > 2 or not known or not alone:
        raise UserError(
            f"'width_pruning.{name}': {parameter} of {_model(skeleton)} is stored together with others, which is not cut here"
        )
    return tuple(dim for dim, (x, y) in enumerate(zip(before, after, strict=True)) if x != y)


def changed(source: Source, config: Mapping[str, Any]) -> Source:
    """``source`` with other settings, its tensors as they are."""
    return replace(source, config={**source.config, **config}, changes={**source.changes, **config})


def as_bits(numbers: Sequence[int]) -> str:
    """Rising numbers as the bits of a hexadecimal number, as records of what stays hold them."""
    return f"{sum(1 << number for number in numbers):x}"


def from_bits(text: str) -> list[int]:
    """The numbers that :func:`as_bits` wrote."""
    bits = int(text, 16)
    return [place for place in range(bits.bit_length()) if bits >> place & 1]


def _model(skeleton: Skeleton) -> str:
    return type(skeleton.model).__name__
