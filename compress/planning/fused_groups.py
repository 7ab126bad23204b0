"""Weights that servers run as one (q/k/v, gate/up) need one scheme."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from compress_kernels.activations import ActivationScheme
from compress_kernels.layouts import Layout, SparseBitmask, SumOf

from compress.errors import UserError
from compress.models.skeleton import Skeleton

Scheme = tuple[Layout | None, ActivationScheme | None]
"""How a weight is stored and how its inputs are rounded."""


def check_fused_groups(
    skeleton: Skeleton,
    layouts: Mapping[str, Layout],
    dense: Mapping[str, str],
    activations: Mapping[str, ActivationScheme | None] | None = None,
) -> None:
    """Weights that servers run as one have to share one scheme; those in ``dense`` gain nothing by it."""
    inputs = activations or {}
    for group in skeleton.fused_groups(skeleton.views):
        schemes: dict[str, Scheme] = {}
        for view in group:
            if view.name not in dense:
                schemes[view.name] = (_scheme_of(layouts.get(view.name)), inputs.get(view.name))
        if len(set(schemes.values())) > 1:
            first, other = _two_unlike(schemes)
            raise UserError(
                f"{first} ({_scheme(schemes[first])}) and {other} ({_scheme(schemes[other])}) are run as one weight by "
                "servers and need one scheme: give both the same, or set allow_split_groups: true"
            )


def _two_unlike(schemes: Mapping[str, Scheme]) -> tuple[str, str]:
    first = next(iter(schemes))
    return first, next(name for name, scheme in schemes.items() if scheme != schemes[first])


def _scheme_of(layout: Layout | None) -> Layout | None:
    """The layout without what may differ between weights that are run as one: a rank, how many numbers a mask keeps."""
    if isinstance(layout, SumOf):
        return SumOf(tuple(part for part in map(_scheme_of, layout.parts) if part is not None))
    scheme: Layout | None = getattr(layout, "scheme", layout)
    return replace(scheme, nnz=0) if isinstance(scheme, SparseBitmask) else scheme


def _scheme(scheme: Scheme) -> str:
    layout, activations = scheme
    if layout is None:
        return "left as it is"
    inputs = "" if activations is None else f", inputs {activations.label}"
    return ", ".join(f"{key} {value}" for key, value in layout.to_json().items() if key != "name") + inputs
