"""Plain weights: names, shapes and dtypes of the source, values of the compressed weights. Loads anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from compress_kernels.layouts import Dense, Layout, TensorSpec
from torch import Tensor

from compress.models.conversion import Piece
from compress.models.views import WeightView
from compress.structures.base import CompressedWeight

from .base import Facts, Planned, TensorWriter, rounded_inputs


class DenseExport:
    """The weights as a server of the original model would hold them after decoding."""

    name: ClassVar[str] = "dense"

    def objection(self, weights: Sequence[Planned], facts: Facts) -> str | None:
        """Why a dense checkpoint cannot hold these weights, in words; ``None`` if it can."""
        return rounded_inputs(weights, facts, "a dense checkpoint")

    def stored(self, weight: Planned, facts: Facts) -> Layout:
        """A dense tensor of the source's dtype."""
        return Dense(facts.headers[weight.view.sources[0]].dtype)

    def specs(self, weight: Planned, facts: Facts) -> dict[str, TensorSpec]:
        """The source's own tensors of the weight, in their shapes and dtypes."""
        infos = {source: facts.headers[source] for source in weight.view.sources}
        return {source: TensorSpec(info.shape, info.dtype) for source, info in infos.items()}

    def save(
        self, weight: Planned, packed: CompressedWeight, writer: TensorWriter, facts: Facts
    ) -> CompressedWeight:
        """Write the decoded values in the source's dtype; returns them, as a loader will find them."""
        first = weight.view.sources[0]
        dense = packed.dense(facts.headers[first].dtype)
        if _is_whole(weight.view, facts):
            writer.put(dict.fromkeys(weight.view.sources, dense))
        else:
            region(weight.view, writer.mapped(first), facts).copy_(dense)
        return _stored(dense)

    def load(self, weight: Planned, writer: TensorWriter, facts: Facts) -> CompressedWeight:
        """Read the decoded values of a weight back, ``[out, in]``."""
        tensor = writer.read(weight.view.sources[0])
        whole = _is_whole(weight.view, facts)
        return _stored(tensor if whole else region(weight.view, tensor, facts).contiguous())

    def quantization_config(self, weights: Sequence[Planned], facts: Facts) -> dict[str, Any] | None:
        """``None``: an ordinary checkpoint."""
        return None


def region(view: WeightView, tensor: Tensor, facts: Facts) -> Tensor:
    """The weight ``[out, in]`` inside its (first) tensor on disk: a view of ``tensor``."""
    piece = next(piece for piece in facts.pieces[view.parameter] if _holds(piece, view))
    part, box = piece.of_disk(tensor), piece.box
    if view.flattened:
        part = part.unflatten(0, (view.flattened, -1))
        box = ((0, view.flattened), (0, part.shape[1]), box[1])
    if view.expert is not None:
        part, box = part[view.expert - box[0][0]], box[1:]
    if view.transposed:
        part, box = part.T, box[::-1]
    start, stop, step = view.rows
    return part[start - box[0][0] : stop - box[0][0] : step]


def _holds(piece: Piece, view: WeightView) -> bool:
    """Whether a piece has the view's rows; a tensor may hold several ranges of rows, each in a piece of its own."""
    first, last = piece.box[-1] if view.transposed else piece.box[-2]
    return piece.disk == view.sources[0] and (bool(view.flattened) or first <= view.rows[0] < last)


def _is_whole(view: WeightView, facts: Facts) -> bool:
    return facts.headers[view.sources[0]].shape == view.shape and not view.transposed


def _stored(dense: Tensor) -> CompressedWeight:
    return CompressedWeight(Dense(dense.dtype), (dense.shape[0], dense.shape[1]), {"weight": dense})
