"""Weights as the source has them, whatever was done to the model's parameters since they were loaded."""

from __future__ import annotations

import torch
from torch import Tensor

from compress.models.skeleton import Skeleton
from compress.models.views import WeightView


class SourceWeights:
    """Reads weights ``[out, in]`` from the source of a skeleton.

    The parameter that was read last is kept: weights that share one (fused experts) come one after the other.
    """

    def __init__(self, skeleton: Skeleton) -> None:
        self._skeleton = skeleton
        self._latest: tuple[str, Tensor | None] = ("", None)

    def read(self, view: WeightView) -> Tensor | None:
        """The weight in the source's dtype; None where it is not known how its parameter is put together."""
        if self._latest[0] != view.parameter:
            self._latest = (view.parameter, self._parameter(view.parameter))
        parameter = self._latest[1]
        return None if parameter is None else view.get(parameter)

    def _parameter(self, name: str) -> Tensor | None:
        skeleton = self._skeleton
        pieces = skeleton.pieces.get(name, ())
        unknown = skeleton.source.without_reference
        if not pieces or any(p.disk not in skeleton.source.headers or p.disk in unknown for p in pieces):
            return None
        shape = skeleton.model.get_parameter(name).shape
        result = torch.empty(shape, dtype=skeleton.source.headers[pieces[0].disk].dtype)
        for piece in pieces:
            piece.place(result).copy_(piece.of_disk(skeleton.source.reference(piece.disk)))
        return result


def distance(stored: Tensor, source: Tensor) -> float:
    """Relative Frobenius distance ``‖Θ − W‖ / ‖W‖`` of a stored weight from the source's, both ``[out, in]``."""
    weight = source.to(device=stored.device, dtype=torch.float32)
    norm = weight.norm()
    return float((stored.float() - weight).norm() / norm) if norm > 0 else float(stored.float().norm() > 0)
