"""Outliers: single elements of a weight that are so large that few bits lose everything beside them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

EXTREME = 1000.0
"""Largest magnitude over the median one; trained weights stay below a hundred."""

_SAMPLED = 1 << 16
"""Elements whose median is taken."""


def outlier_of(weight: Tensor) -> float | None:
    """How many times the median magnitude the largest element of a weight is, where that is extreme; else None.

    Args:
        weight: ``[out, in]``, any dtype.
    """
    flat = weight.detach().reshape(-1)
    low, high = flat.aminmax()
    largest = max(abs(float(low)), abs(float(high)))
    median = float(flat[:: max(1, flat.numel() // _SAMPLED)].float().abs().median())
    return largest / median if median > 0 and largest > EXTREME * median else None


def outlier_notes(records: Iterable[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """A sentence about the weights that hold outliers, with the recipe that survives them; none without.

    Args:
        records: name and record of every weight.
    """
    found = {name: float(record["outlier"]) for name, record in records if record.get("outlier") is not None}
    if not found:
        return []
    worst = max(found, key=lambda name: found[name])
    count = "1 weight holds" if len(found) == 1 else f"{len(found)} weights hold"
    return [
        f"{count} elements of more than {EXTREME:.0f} times the median magnitude (the largest in {worst}, "
        f"{found[worst]:.3g} times): at four bits and fewer the weights that share a scale with such an element are lost; "
        "the recipe w8 survives it better, and a weight named under 'ignore' is left as it is."
    ]
