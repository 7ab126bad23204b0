"""What solving a weight costs: time between products, products, and numbers moved through memory.

The coefficients were fitted to single weights of 128 to 3072 columns on one core (AMD EPYC, torch on one thread), which they
meet within 15%, GPTQ and group scales with the kernel of their columns; YAQA's within 25%, AWP's and ALPS's within 35%: their
steps end when they gain nothing. ``compress plan --measure`` tries the solvers and keeps how far this machine is off.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from compress.planning.plan import PlannedWeight
from compress.planning.work import Cost

_SIDES = frozenset({"output_gradients", "fisher"})


@dataclass(frozen=True)
class _Coefficients:
    """``weight`` and ``column``: seconds; ``products``: of ``out · in²``; ``factor``: of ``in³``; ``element``: bytes."""

    weight: float = 0.0
    column: float = 0.0
    products: float = 0.0
    factor: float = 0.0
    element: float = 0.0


_SOLVERS: Mapping[str, _Coefficients] = {
    "Nearest": _Coefficients(weight=5e-3, products=0.0, element=2600),
    "Wanda": _Coefficients(weight=3e-4, element=450),
    "GPTQ": _Coefficients(weight=2.5e-4, column=5.5e-6, products=3.4, factor=0.5, element=680),
    "SparseGPT": _Coefficients(column=41e-6, products=0.78, factor=0.82, element=1100),
    "GroupScales": _Coefficients(column=25e-6, products=9.5, element=5200),
    "CoordinateDescent": _Coefficients(weight=2.2e-2, column=100e-6, products=78, element=3600),
    "AdaRound": _Coefficients(weight=7e-2, products=386, factor=0.5, element=133e3),
    "AWP": _Coefficients(weight=5e-3, products=42, factor=6.0, element=20e3),
    "ALPS": _Coefficients(weight=5e-3, products=90, factor=6.0, element=22e3),
    "YAQA": _Coefficients(weight=0.27, products=1.0, element=120e3),
}
_OTHER = _Coefficients(weight=2e-2, column=100e-6, products=20, element=20e3)
_SEARCHED = 19e3
"""Bytes for an element of a grid of GGUF, whose scales are searched."""


def solver_cost(name: str, shape: tuple[int, int], *, both_sides: bool = False) -> Cost:
    """What one solver takes for a weight.

    Args:
        name: of its class.
        shape: ``(out, in)``.
        both_sides: whether errors are judged by both sides of a two-sided metric.
    """
    out, columns = shape
    one = _SOLVERS.get(name, _OTHER)
    products = one.products * out * columns * (columns + (out if both_sides else 0))
    factors = one.factor * (columns**3 + (out**3 if both_sides else 0))
    return Cost(one.weight + one.column * columns, products + factors, one.element * out * columns)


def costs_of(weight: PlannedWeight) -> dict[str, Cost]:
    """Solver → what it takes for a weight."""
    both = bool(weight.needs & _SIDES)
    names = [type(solver).__name__ for solver in weight.methods.solvers]
    return {name: solver_cost(name, weight.view.shape, both_sides=both) for name in names}


def search_cost(weight: PlannedWeight) -> Cost:
    """What it takes to search the scales of a grid of GGUF's types."""
    return Cost(moved=_SEARCHED * weight.numel)
