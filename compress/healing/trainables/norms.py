"""``norms``: the gains and biases of the model's norms (Frankle et al., "Training BatchNorm and only BatchNorm",
arXiv:2003.00152)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from compress_kernels.layouts import Layout, Shape
from torch import nn

from compress.healing.trainables.base import Rated


@dataclass(frozen=True)
class Norms(Rated):
    """Every module without children whose parameters are vectors, a ``weight`` and maybe a ``bias``, is a norm."""

    name: ClassVar[str] = "norms"
    found_in: ClassVar[str] = "the model has no norms whose parameters are vectors"

    def suffixes(self, layout: Layout, shape: Shape) -> frozenset[str]:
        """None: norms are not packed."""
        return frozenset()

    def parameters(self, model: nn.Module, dense: Mapping[str, nn.Module]) -> frozenset[str]:
        """The parameters of all norms, that in front of the head included."""
        return frozenset(
            f"{name}.{leaf}" if name else leaf
            for name, module in model.named_modules()
            if _is_norm(module)
            for leaf, _ in module.named_parameters(recurse=False)
        )


def _is_norm(module: nn.Module) -> bool:
    own = dict(module.named_parameters(recurse=False))
    if "weight" not in own or next(module.children(), None) is not None or own.keys() - {"weight", "bias"}:
        return False
    return all(p.ndim == 1 and p.is_floating_point() for p in own.values())
