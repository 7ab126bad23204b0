"""What a trainable says: which stored numbers of a packed weight, and which dense parameters, are trained."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

from compress_kernels.layouts import Columns, Layout, LowRank, NormalFloat4, PackedInteger, Shape, SumOf
from torch import Tensor, nn

SCALE_SUFFIXES = frozenset({"weight_scale", "scales", "biases", "weight_absmax", "weight_global_scale"})
VALUE_SUFFIXES = frozenset({"weight", "weight_values"})
MATRICES = frozenset({"values", "smallest"})
"""The trainables of dense matrices."""
ZERO_POINT, CODES = "weight_zero_point", "weight_packed"


class Trainable(Protocol):
    """One entry of :data:`compress.recipe.registry.TRAINABLES`; its fields are its options."""

    name: ClassVar[str]
    found_in: ClassVar[str]
    """Why a model may have nothing of it, for an error sentence."""

    def units(self, start: Tensor, unit: Tensor) -> Tensor:
        """What a learning rate of 1 moves each number of a tensor by; 0 holds it.

        Args:
            start: the tensor, fp32.
            unit: its size, of its shape or one number.
        """
        ...

    def suffixes(self, layout: Layout, shape: Shape) -> frozenset[str]:
        """Suffixes of the tensors of a packed weight ``[out, in]`` that are trained; empty where it has none."""
        ...

    def parameters(self, model: nn.Module, dense: Mapping[str, nn.Module]) -> frozenset[str]:
        """Names of the model's own parameters that are trained.

        Args:
            model: the model, on meta or loaded.
            dense: weights of the blocks that a recipe without steps for them leaves dense, by parameter.
        """
        ...


@dataclass(frozen=True)
class Rated:
    """The option that all trainables share: ``rate``, a factor on the learning rate of ``heal``."""

    rate: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.rate < math.inf:
            raise ValueError("rate is above 0")

    def units(self, start: Tensor, unit: Tensor) -> Tensor:
        """See :class:`Trainable`."""
        return unit * self.rate


def float_suffixes(layout: Layout, shape: Shape) -> frozenset[str]:
    """Suffixes of a layout's tensors that are floating-point numbers of more than a byte, constants excepted."""
    specs = layout.specs(shape).items()
    wide = {suffix for suffix, spec in specs if spec.dtype.is_floating_point and spec.dtype.itemsize > 1}
    return frozenset(suffix for suffix in wide if not suffix.endswith("weight_quant_map"))


def leaves(layout: Layout, shape: Shape, prefix: str = "") -> Iterator[tuple[str, Layout, Shape, bool]]:
    """The simple layouts that a layout is made of: prefix of their suffixes, layout, shape, whether it is a low-rank factor."""
    if isinstance(layout, LowRank):
        left, right = layout.shapes(shape)
        yield f"{prefix}left_", layout.left, left, True
        yield f"{prefix}right_", layout.right, right, True
    elif isinstance(layout, SumOf):
        for index, inner in enumerate(layout.parts):
            yield from leaves(inner, shape, f"{prefix}part{index}_")
    elif isinstance(layout, Columns):
        yield f"{prefix}columns_", layout.values, (shape[0], layout.count), False
    else:
        yield prefix, layout, shape, False


def low_rank_parts(layout: Layout, shape: Shape, prefix: str = "") -> Iterator[tuple[str, LowRank, Shape]]:
    """The low-rank parts of a layout: the prefix of their suffixes, layout, shape."""
    if isinstance(layout, LowRank):
        yield prefix, layout, shape
    elif isinstance(layout, SumOf):
        for index, inner in enumerate(layout.parts):
            yield from low_rank_parts(inner, shape, f"{prefix}part{index}_")


def chosen(
    layout: Layout, shape: Shape, kinds: Iterable[str], *, factors: bool | None = None
) -> frozenset[str]:
    """Suffixes, within all leaves or those that are factors (or are none), whose last part is one of ``kinds``."""
    wanted = frozenset(kinds)
    return frozenset(
        prefix + suffix
        for prefix, leaf, leaf_shape, is_factor in leaves(layout, shape)
        if factors is None or factors == is_factor
        for suffix in float_suffixes(leaf, leaf_shape)
        if suffix in wanted
    )


def has_zero_points(layout: Layout) -> bool:
    """Whether whole zero points are stored, one for each group."""
    return isinstance(layout, PackedInteger) and not layout.symmetric


def is_table(layout: Layout) -> bool:
    """Whether the codes stand for the values of a table."""
    return isinstance(layout, NormalFloat4)
