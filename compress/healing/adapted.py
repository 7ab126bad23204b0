"""Adapters: a low-rank part, or the change of a dense weight, made of fewer numbers than it is stored in."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from compress_kernels.layouts import Dense, Layout, LowRank, PackedInteger, Shape, SumOf
from torch import Tensor, nn
from torch.nn.utils import parametrize

from compress.healing.trainables.base import low_rank_parts
from compress.healing.trained import Trained, TrainedWeight
from compress.linalg.straight_through import through

Factors = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Made:
    """What an adapter trains of one weight, and what it makes of it.

    Attributes:
        masters: the trained tensors, by the ends of their names.
        make: what they make now, with gradients: factors ``([out, rank], [rank, in])``, or a change ``[out, in]``.
    """

    masters: Mapping[str, Trained]
    make: Callable[[], Any]


class Adapter(Protocol):
    """A trainable that makes a weight from fewer numbers."""

    def part(self, name: str, left: Tensor, right: Tensor, rest: Tensor) -> Made:
        """The low-rank part ``left [out, rank] @ right [rank, in]`` of a weight anew, beginning at the same product.

        Args:
            name: of the weight.
            left, right: as they are stored, fp32.
            rest: the weight without them, fp32 ``[out, in]``.

        Raises:
            UserError: it cannot begin at these factors.
        """
        ...

    def change(self, name: str, weight: Tensor) -> Made:
        """A change ``[out, in]`` of a dense weight fp32 ``[out, in]``, 0 at the start."""
        ...


def trained(name: str, kind: str, start: Tensor, unit: Tensor) -> Trained:
    """A trained tensor fp32 that is stored nowhere itself; ``unit`` is what a learning rate of 1 moves it by."""
    start = start.detach().to(torch.float32).clone()
    return Trained(name, kind, nn.Parameter(start.clone()), unit.to(torch.float32), torch.float32, start)


def size_of(matrix: Tensor) -> Tensor:
    """The root mean square; 1 of zeros."""
    size = matrix.square().mean().sqrt() if matrix.numel() else matrix.new_zeros(())
    return torch.where(size > 0, size, 1.0)


def units_of_factors(left: Tensor, right: Tensor, rest: Tensor) -> Factors:
    """What a learning rate of 1 moves the numbers of ``left [out, rank]`` and ``right [rank, in]`` by.

    A factor's own size; that of a factor of zeros such that the product becomes as large as ``rest [out, in]``, the weight
    beside it.
    """
    sizes = [size_of(left), size_of(right)]
    for own, (one, other) in enumerate(((left, right), (right, left))):
        if one.numel() and not bool(one.any()):
            sizes[own] = size_of(rest) / (size_of(other) * left.shape[1] ** 0.5)
    return sizes[0], sizes[1]


class Factor:
    """How a factor is stored: as numbers of a dtype, or on an integer grid whose scales follow the largest magnitudes.

    Args:
        layout: of its tensors.
        shape: of the factor.
        tensors: suffix → tensor as they are stored at the start, of which a grid's scales and zero points are the measure.
    """

    def __init__(self, layout: Layout, shape: Shape, tensors: Mapping[str, Tensor]) -> None:
        self.layout, self.shape = layout, shape
        self.start = layout.decode(tensors, shape, torch.float32)
        if isinstance(layout, PackedInteger):
            self._scale, self._zero = layout.parameters(tensors, shape)
            self._largest = self._magnitudes(self.start)

    def tensors(self, values: Tensor) -> dict[str, Tensor]:
        """Suffix → tensor of values fp32 of this shape, rounded."""
        layout, values = self.layout, values.detach()
        if not isinstance(layout, PackedInteger):
            return {"weight": values.to(layout.specs(self.shape)["weight"].dtype).contiguous()}
        top, now = (1 << layout.bits) - 1, self._magnitudes(values)
        least = max(1, top // 2)  # steps from zero to the nearer end of a symmetric grid
        grown = self._scale.float() * now / torch.where(self._largest > 0, self._largest, 1.0)
        scale = torch.where(self._largest > 0, grown, now / least)
        scale = torch.where(scale * self._scale > 0, scale, self._scale.float()).to(self._scale.dtype)
        grouped = values.view(self.shape[0], scale.shape[-1], -1)
        places = grouped / scale.float().unsqueeze(-1) + self._zero.float().unsqueeze(-1)
        codes = places.round().clamp(0, top).to(torch.int32).view(self.shape)
        return dict(layout.encode(codes, scale, None if layout.symmetric else self._zero))

    def stored(self, values: Tensor) -> Tensor:
        """``values`` as they will be stored, with the gradient passed straight through."""
        return through(values, self.layout.decode(self.tensors(values), self.shape, torch.float32))

    def _magnitudes(self, values: Tensor) -> Tensor:
        """The largest magnitude of each scale's numbers, of the scales' shape."""
        largest = values.view(self.shape[0], self._scale.shape[-1], -1).abs().amax(-1)
        return largest.amax(0, keepdim=True) if self._scale.shape[0] == 1 else largest


@dataclass(frozen=True)
class Part:
    """A low-rank part that is made by an adapter: how its factors are stored, and what makes them."""

    left: Factor
    right: Factor
    made: Made


class AdaptedWeight(TrainedWeight):
    """A packed weight whose low-rank parts are made by adapters; what else is trained of it is as before.

    Args:
        weight: with what is trained beside them.
        parts: the prefix of a part's suffixes → the part.
        dropout: the share of the inputs of the right factors and of the outputs of the left ones that a training step leaves
            out (arXiv:2404.09610).
        kept: the number of a training step → the share of the ranks, from the first on, that it computes with; all if ``None``.
    """

    def __init__(
        self,
        weight: TrainedWeight,
        parts: Mapping[str, Part],
        dropout: float = 0.0,
        kept: Callable[[int], float] | None = None,
    ) -> None:
        self.beside, self.parts, self.dropout, self.kept = weight, parts, dropout, kept
        self.name, self.layout, self.shape = weight.name, weight.layout, weight.shape
        self.fixed, self.done, self.noise = weight.fixed, 0.0, None
        made = {
            f"{prefix}{key}": one for prefix, part in parts.items() for key, one in part.made.masters.items()
        }
        self.trained = {**weight.trained, **made}
        self._free = _with_free_factors(weight.layout)

    def dense(self) -> Tensor:
        """See :class:`~compress.healing.trained.TrainedWeight`."""
        tensors = {**self.fixed, **self.beside.current()}
        for prefix, part in self.parts.items():
            left, right = part.made.make()
            left, right = part.left.stored(left), part.right.stored(right)
            if self.dropout and self.noise is not None:
                left, right = self._thinned(prefix, left, right)
            if self.kept is not None and self.noise is not None:
                left = left * first_ranks(left.shape[1], self.kept(self.noise)).to(left)
            tensors |= {f"{prefix}left_weight": left, f"{prefix}right_weight": right}
        return self._free.decode(tensors, self.shape, torch.float32)

    @property
    def recordable(self) -> bool:
        """See :class:`~compress.healing.trained.TrainedWeight`."""
        return False

    @torch.no_grad()
    def tensors(self) -> dict[str, Tensor]:
        """See :class:`~compress.healing.trained.TrainedWeight`."""
        found = self.beside.tensors()
        for prefix, part in self.parts.items():
            for side, factor, values in zip(
                ("left", "right"), (part.left, part.right), part.made.make(), strict=True
            ):
                found |= {f"{prefix}{side}_{suffix}": one for suffix, one in factor.tensors(values).items()}
        return found

    def _thinned(self, prefix: str, left: Tensor, right: Tensor) -> Factors:
        """Both factors with rows of the left one and columns of the right one left out, the same ones whenever a step asks."""
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.name}.{prefix}.{self.noise}".encode()))
        keep = 1 - self.dropout
        rows, columns = (torch.rand(n, generator=generator) < keep for n in (left.shape[0], right.shape[1]))
        return left * (rows.to(left) / keep).unsqueeze(1), right * (columns.to(right) / keep)


def first_ranks(rank: int, share: float) -> Tensor:
    """1 for the first ``share`` of ``rank`` places, at least one of them, and 0 for the others: fp32 ``[rank]``."""
    return (torch.arange(rank) < max(1, round(share * rank))).to(torch.float32)


def _with_free_factors(layout: Layout) -> Layout:
    """The layout with all factors as fp32 numbers."""
    if isinstance(layout, LowRank):
        return LowRank(layout.rank, Dense(torch.float32), Dense(torch.float32))
    if isinstance(layout, SumOf):
        return SumOf(tuple(_with_free_factors(part) for part in layout.parts))
    return layout


def with_adapters(weight: TrainedWeight, entries: Sequence[Any]) -> TrainedWeight:
    """The weight with the low-rank parts that one of ``entries`` makes; itself where none does.

    Raises:
        UserError: an adapter that cannot begin at a part.
    """
    found: dict[str, Part] = {}
    dropout, kept = 0.0, None
    for prefix, low, shape in low_rank_parts(weight.layout, weight.shape):
        entry = adapter_of(entries, low)
        if entry is None:
            continue
        left, right = (
            Factor(layout, of, _under(weight.fixed, f"{prefix}{side}_"))
            for side, layout, of in zip(
                ("left", "right"), (low.left, low.right), low.shapes(shape), strict=True
            )
        )
        rest = weight.layout.decode(weight.fixed, weight.shape, torch.float32) - left.start @ right.start
        found[prefix] = Part(
            left, right, entry.part(f"{weight.name}.{prefix}", left.start, right.start, rest)
        )
        dropout = max(dropout, entry.dropout)
        kept = getattr(entry, "kept", None)
    return AdaptedWeight(weight, found, dropout, kept) if found else weight


def adapter_of(entries: Sequence[Any], low: LowRank) -> Any:
    """The trainable that makes a low-rank part anew; ``None`` where its stored numbers are trained as they are."""
    return next((entry for entry in entries if getattr(entry, "adapts", lambda low: False)(low)), None)


def apart_from_adapters(
    kinds: Mapping[str, str], layout: Layout, shape: Shape, entries: Sequence[Any]
) -> dict[str, str]:
    """Suffix → trainable without what belongs to parts that adapters make."""
    taken = tuple(
        f"{prefix}{side}_"
        for prefix, low, _ in low_rank_parts(layout, shape)
        if adapter_of(entries, low) is not None
        for side in ("left", "right")
    )
    return {suffix: kind for suffix, kind in kinds.items() if not (taken and suffix.startswith(taken))}


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): one for name, one in tensors.items() if name.startswith(prefix)}


class Changed(nn.Module):
    """A dense weight and its change, as they will be stored, in the dtype of the model: a parametrization of torch."""

    def __init__(self, made: Made, stored: torch.dtype, computed: torch.dtype) -> None:
        super().__init__()
        self.made, self.stored, self.computed = made, stored, computed
        self.masters = nn.ParameterList([one.master for one in made.masters.values()])

    def forward(self, start: Tensor) -> Tensor:
        """``start`` fp32 ``[out, in]``."""
        changed = start + self.made.make()
        return through(changed, changed.to(self.stored).to(torch.float32)).to(self.computed)


def change_parameter(model: nn.Module, name: str, stored: Tensor, made: Made) -> Callable[[], Tensor]:
    """Let a model read the parameter ``name`` with what an adapter adds to it; returns what gives the tensor to be stored."""
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    computed = module.get_parameter(leaf).dtype
    start = stored.to(torch.float32)
    module._parameters[leaf] = nn.Parameter(start, requires_grad=False)
    parametrize.register_parametrization(module, leaf, Changed(made, stored.dtype, computed), unsafe=True)

    def now() -> Tensor:
        with torch.no_grad():
            return (start + made.make()).to(stored.dtype)

    return now
