"""The weights of a model, each seen as a matrix `[out, in]`, whatever it is stored as."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from compress.models.conversion import Piece
from compress.models.disk import DiskMap
from compress.models.experts import Rows, gate_and_up, runs_experts

Kind = Literal["linear", "conv1d", "expert", "embedding", "head"]


@dataclass(frozen=True)
class WeightView:
    """One weight `[out, in]`: a parameter, or a slice of one.

    name: its name on disk without `.weight`, or for a slice of a tensor that is fused on disk, one made
    after the module. parameter: the model's parameter that it is (a slice of). block: None outside the
    blocks. expert: its index, or None. sources: the disk tensors that it accounts for; the views of one
    fused disk tensor share it. tied: other modules of the model that use this very weight (a tied head).
    rows: which output features of the parameter (of its expert) it takes. transposed: the parameter is
    `[in, out]`.
    """

    name: str
    parameter: str
    kind: Kind
    block: int | None
    shape: tuple[int, int]
    expert: int | None
    sources: tuple[str, ...]
    tied: tuple[str, ...] = ()
    rows: Rows = (0, 0, 1)
    transposed: bool = False

    @property
    def module(self) -> str:
        """The name of the module that holds the parameter."""
        return self.parameter.rpartition(".")[0]

    def get(self, parameter: Tensor) -> Tensor:
        """The weight `[out, in]`: a view of the parameter, never a copy."""
        matrix = parameter if self.expert is None else parameter[self.expert]
        matrix = matrix.T if self.transposed else matrix
        start, stop, step = self.rows
        return matrix[start:stop:step]

    def put(self, parameter: Tensor, dense: Tensor) -> None:
        """Writes a weight `[out, in]` of any dtype back to where it was found, in place."""
        self.get(parameter.detach()).copy_(dense)


def find_views(model: PreTrainedModel, blocks: Sequence[str], disk: DiskMap) -> Iterator[WeightView]:
    """Every weight of the model that can be compressed, block by block as the modules come."""
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        block = block_of(name, blocks)
        for view in _of_module(name, module, block, module is head):
            if view.parameter not in disk.tied:
                yield from _on_disk(view, disk)


def block_of(name: str, blocks: Sequence[str]) -> int | None:
    """The index of the block that a module or parameter lies in."""
    return next((i for i, block in enumerate(blocks) if name == block or name.startswith(block + ".")), None)


def _of_module(name: str, module: nn.Module, block: int | None, is_head: bool) -> Iterator[WeightView]:
    """The weights of one module itself, named after the model, as if nothing were on disk."""
    if is_head and isinstance(module, nn.Linear):
        yield _matrix(name, module.weight, "head", block)
    elif isinstance(module, nn.Embedding):
        yield _matrix(name, module.weight, "embedding", block)
    elif block is None:
        return
    elif isinstance(module, nn.Linear):
        yield _matrix(name, module.weight, "linear", block)
    elif isinstance(module, Conv1D):
        yield _matrix(name, module.weight, "conv1d", block, transposed=True)
    elif runs_experts(module):
        yield from _experts(name, module, block)


def _matrix(
    name: str, weight: Tensor, kind: Kind, block: int | None, *, transposed: bool = False
) -> WeightView:
    rows, columns = weight.T.shape if transposed else weight.shape
    return WeightView(
        name,
        f"{name}.weight",
        kind,
        block,
        (rows, columns),
        None,
        (),
        rows=(0, rows, 1),
        transposed=transposed,
    )


def _experts(name: str, module: nn.Module, block: int) -> Iterator[WeightView]:
    fused = module.gate_up_proj if module.has_gate else module.up_proj
    parts: list[tuple[str, str, Tensor, Rows | None]] = [("down_proj", "down_proj", module.down_proj, None)]
    split = gate_and_up(module, fused.shape[2 if module.is_transposed else 1]) if module.has_gate else None
    if split is not None:
        parts = [
            ("gate_up_proj", p, fused, r) for p, r in zip(("gate_proj", "up_proj"), split, strict=True)
        ] + parts
    else:
        whole = "gate_up_proj" if module.has_gate else "up_proj"
        parts = [(whole, whole, fused, None), *parts]
    for expert in range(fused.shape[0]):
        for parameter, logical, tensor, rows in parts:
            out, columns = (tensor.shape[2], tensor.shape[1]) if module.is_transposed else tensor.shape[1:]
            rows = rows or (0, out, 1)
            yield WeightView(
                f"{name}.{expert}.{logical}",
                f"{name}.{parameter}",
                "expert",
                block,
                (len(range(*rows)), columns),
                expert,
                (),
                rows=rows,
                transposed=bool(module.is_transposed),
            )


def _on_disk(view: WeightView, disk: DiskMap) -> Iterator[WeightView]:
    """The view with its name on disk; several, where it is split there; none, where it cannot be found."""
    if view.parameter not in disk.pieces:
        if not disk.is_known(view.parameter):
            yield view  # nowhere on disk: it can only be supplied, under the name it has here
        return
    tied = tuple(
        target.rpartition(".")[0] for target, origin in disk.tied.items() if origin == view.parameter
    )
    pieces = [piece for piece in disk.pieces[view.parameter] if _bounds(view, piece) is not None]
    if len(pieces) == 1 and _contains(_bounds(view, pieces[0]), view.rows):
        (piece,) = pieces
        exact = _bounds(view, piece) == view.rows[:2] and view.rows[2] == 1 and len(piece.disk_box) == 2
        alone = piece.whole and (exact or view.expert is None)
        name = piece.disk.removesuffix(".weight") if alone else view.name
        yield replace(view, name=name, sources=(piece.disk, *disk.twins.get(view.parameter, ())), tied=tied)
    elif view.rows[2] == 1 and all(_contains(view.rows[:2], _bounds(view, piece)) for piece in pieces):
        for piece in pieces:
            start, stop = _bounds(view, piece) or (0, 0)
            name = piece.disk.removesuffix(".weight") if piece.whole else f"{view.name}.{start}"
            shape = (stop - start, view.shape[1])
            yield replace(view, name=name, shape=shape, sources=(piece.disk,), rows=(start, stop, 1))


def _bounds(view: WeightView, piece: Piece) -> tuple[int, int] | None:
    """The output features that the piece holds, if it has anything of the view's."""
    box = piece.box
    if view.expert is not None:
        if not box[0][0] <= view.expert < box[0][1]:
            return None
        box = box[1:]
    start, stop = box[1] if view.transposed else box[0]
    return (start, stop) if start < view.rows[1] and view.rows[0] < stop else None


def _contains(outer: tuple[int, ...] | None, inner: tuple[int, ...] | None) -> bool:
    return outer is not None and inner is not None and outer[0] <= inner[0] and inner[1] <= outer[1]
