"""The weights of a model, each seen as a matrix `[out, in]`, whatever it is stored as."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from compress.checkpoint.source import Source
from compress.models.conversion import Piece
from compress.models.disk_map import DiskMap
from compress.models.experts import Rows, gate_and_up, runs_experts
from compress.models.stacked import Stack, find_routers, find_stacks
from compress.models.towers import beside_decoder

Kind = Literal["linear", "conv1d", "expert", "embedding", "head", "vision"]


@dataclass(frozen=True)
class WeightView:
    """One weight `[out, in]`: a parameter, or a slice of one.

    name: its name on disk without `.weight`, or one made after the module for a slice of a tensor that is fused on
    disk and for a tensor whose name ends otherwise. parameter: the model's parameter that it is (a slice of).
    block: None outside the blocks. expert: its index, or None. sources: the disk tensors that it accounts for; the views of one
    fused disk tensor share it. tied: other modules of the model that use this very weight (a tied head).
    rows: which output features of the parameter (of its expert) it takes. transposed: the parameter is
    `[in, out]`. flattened: how many experts lie below each other in a parameter of two dimensions; 0 where they do
    not. router: it chooses among experts. in_head: the output head multiplies by it, whose own it is or which is tied to it.
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
    flattened: int = 0
    router: bool = False
    in_head: bool = False

    @property
    def module(self) -> str:
        """The name of the module that holds the parameter."""
        return self.parameter.rpartition(".")[0]

    def get(self, parameter: Tensor) -> Tensor:
        """The weight `[out, in]`: a view of the parameter, never a copy."""
        if self.flattened:
            parameter = parameter.unflatten(0, (self.flattened, -1))
        matrix = parameter if self.expert is None else parameter[self.expert]
        matrix = matrix.T if self.transposed else matrix
        start, stop, step = self.rows
        return matrix[start:stop:step]

    def put(self, parameter: Tensor, dense: Tensor) -> None:
        """Writes a weight `[out, in]` of any dtype back to where it was found, in place."""
        self.get(parameter.detach()).copy_(dense)


def find_views(
    model: PreTrainedModel,
    blocks: Sequence[str],
    disk: DiskMap,
    source: Source,
    supplied: Container[str] = (),
) -> Iterator[WeightView]:
    """Every weight of the model that can be compressed, in the order of the modules; those whose names are in ``supplied``
    may be on disk in any form."""
    head = model.get_output_embeddings()
    head_name = next((name for name, module in model.named_modules() if module is head), None)
    towers = beside_decoder(model)
    stacks = find_stacks(model, blocks)
    routers = _routers(model, blocks, stacks)
    for name, module in model.named_modules():
        by_parameter: dict[str, list[WeightView]] = {}
        block = block_of(name, blocks)
        found_here = (
            _of_tower(name, module)
            if name in towers and module is not head
            else (
                *_of_module(name, module, block, module is head),
                *(view for stack in stacks.get(name, ()) for view in _of_stack(stack, block)),
            )
        )
        for view in found_here:
            if name in routers:
                view = replace(view, router=True)
            if view.parameter not in disk.tied:
                by_parameter.setdefault(view.parameter, []).append(view)
        found = [on_disk for views in by_parameter.values() for on_disk in _on_disk(views, disk)]
        found.sort(key=lambda view: view.expert or 0)
        for view in found:
            infos = [source.headers[name] for name in view.sources if name in source.headers]
            if view.name in supplied or all(info.dtype.is_floating_point for info in infos):
                yield replace(view, in_head=head_name in (view.module, *view.tied))


def block_of(name: str, blocks: Sequence[str]) -> int | None:
    """The index of the block that a module or parameter lies in."""
    prefix = blocks[0].rpartition(".")[0] + "."
    if not name.startswith(prefix):
        return None
    return int(name[len(prefix) :].partition(".")[0])


def _of_tower(name: str, module: nn.Module) -> Iterator[WeightView]:
    """The linear weights of a part that does not read text: a tower for images, or what leads from there to the decoder."""
    if isinstance(module, nn.Linear):
        yield _matrix(name, module.weight, "vision", None)


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


def _routers(
    model: PreTrainedModel, blocks: Sequence[str], stacks: Mapping[str, Sequence[Stack]]
) -> set[str]:
    owners = {name: found[0].count for name, found in stacks.items() if found[0].count > 1}
    for name, module in model.named_modules():
        if block_of(name, blocks) is not None and runs_experts(module):
            owners[name] = module.down_proj.shape[0]
    return find_routers(model, blocks, owners)


def _of_stack(stack: Stack, block: int | None) -> Iterator[WeightView]:
    out, columns = (stack.columns, stack.rows) if stack.transposed else (stack.rows, stack.columns)
    for index in range(stack.count):
        yield WeightView(
            f"{stack.module}.{stack.leaf}.{index}",
            f"{stack.module}.{stack.leaf}",
            "expert",
            block,
            (out, columns),
            index,
            (),
            rows=(0, out, 1),
            transposed=stack.transposed,
            flattened=stack.count if stack.flattened else 0,
        )


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


def _experts(name: str, module: Any, block: int) -> Iterator[WeightView]:
    fused = module.gate_up_proj if module.has_gate else module.up_proj
    features = fused.shape[2 if module.is_transposed else 1]
    split = gate_and_up(module, features) if module.has_gate else None
    parts: list[tuple[str, str, Rows]]  # the parameter, the name of the weight, its output features
    if split is not None:
        parts = [("gate_up_proj", "gate_proj", split[0]), ("gate_up_proj", "up_proj", split[1])]
    else:
        whole = "gate_up_proj" if module.has_gate else "up_proj"
        parts = [(whole, whole, (0, features, 1))]
    parts.append(("down_proj", "down_proj", (0, module.down_proj.shape[2 if module.is_transposed else 1], 1)))
    for expert in range(fused.shape[0]):
        for parameter, logical, rows in parts:
            columns = getattr(module, parameter).shape[1 if module.is_transposed else 2]
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


def _on_disk(views: Sequence[WeightView], disk: DiskMap) -> Iterator[WeightView]:
    """The views of one parameter with their names on disk; several for one, where it is split there; none for
    one that cannot be found."""
    parameter = views[0].parameter
    if not disk.is_known(parameter):
        yield from views  # nowhere on disk: they can only be supplied, under the names they have here
        return
    tied = tuple(target.rpartition(".")[0] for target, origin in disk.tied.items() if origin == parameter)
    twins = disk.twins.get(parameter, ())
    by_expert: dict[int, list[Piece]] = {}
    for piece in disk.pieces.get(parameter, ()):
        for expert in _experts_in(views[0], piece):
            by_expert.setdefault(expert, []).append(piece)
    for view in views:
        pieces = [piece for piece in by_expert.get(view.expert or 0, ()) if _overlap(view, piece)]
        for found in _named(view, pieces):
            yield replace(found, sources=(*found.sources, *twins), tied=tied)


def _experts_in(view: WeightView, piece: Piece) -> Iterable[int]:
    if view.flattened:
        return range(view.flattened) if piece.whole else ()
    return range(*piece.box[0]) if view.expert is not None else (0,)


def _named(view: WeightView, pieces: Sequence[Piece]) -> Iterator[WeightView]:
    start, stop, step = view.rows
    held = [_rows(view, piece) for piece in pieces]
    if len(pieces) == 1 and held[0][0] <= start and stop <= held[0][1]:
        (piece,) = pieces
        alone = piece.whole and held[0] == (start, stop) and step == 1 and len(piece.disk_box) == 2
        # A name without `.weight` is that of a tensor, not of a module: packed tensors beside it would find no place.
        alone = alone and not view.flattened and piece.disk.endswith(".weight")
        name = piece.disk.removesuffix(".weight") if alone else view.name
        yield replace(view, name=name, sources=(piece.disk,))
    elif step == 1 and held and all(start <= first and last <= stop for first, last in held):
        for piece, (first, last) in zip(pieces, held, strict=True):
            named = piece.whole and piece.disk.endswith(".weight")
            name = piece.disk.removesuffix(".weight") if named else f"{view.name}.{first}"
            shape = (last - first, view.shape[1])
            yield replace(view, name=name, shape=shape, sources=(piece.disk,), rows=(first, last, 1))


def _rows(view: WeightView, piece: Piece) -> tuple[int, int]:
    """The output features of the parameter that the piece holds; of a flattened one all those of an expert."""
    if view.flattened:
        return view.rows[0], view.rows[1]
    return piece.box[-1] if view.transposed else piece.box[-2]


def _overlap(view: WeightView, piece: Piece) -> bool:
    """Whether the piece holds some rows of the view, and these from the first to the last column."""
    if view.flattened:
        return True
    columns = piece.box[-2] if view.transposed else piece.box[-1]
    first, last = _rows(view, piece)
    return columns == (0, view.shape[1]) and first < view.rows[1] and view.rows[0] < last
