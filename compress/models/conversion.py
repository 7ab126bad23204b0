"""Where the bytes of a parameter lie on disk, where transformers stores a model differently from how it
runs it.

transformers describes the difference by converters, lists of operations on tensors (stack the experts, then
join gate and up). The operations are followed here on shapes alone, which says for each disk tensor the
part of the parameter that it fills.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor
from transformers.core_model_loading import (
    Chunk,
    Concatenate,
    ConversionOps,
    Interleave,
    MergeModulelist,
    Transpose,
)

Box = tuple[tuple[int, int], ...]
"""A range (start, stop) for each dimension."""
DiskBox = tuple[tuple[int, int, int], ...]
"""A range (start, stop, step) for each dimension."""


@dataclass(frozen=True)
class Piece:
    """`parameter[box] = disk[disk_box]`, with the disk tensor's dimensions in the order `dims`.

    dims: for each dimension of the parameter the one of the disk tensor, None where tensors were stacked.
    whole: this piece takes all of the disk tensor.
    """

    disk: str
    box: Box
    disk_box: DiskBox
    dims: tuple[int | None, ...]
    whole: bool = True

    def of_disk(self, tensor: Tensor) -> Tensor:
        """The disk tensor's part, in the shape of its place in the parameter: a view."""
        part = tensor[tuple(slice(*bounds) for bounds in self.disk_box)]
        part = part.permute([dim for dim in self.dims if dim is not None])
        for position, dim in enumerate(self.dims):
            if dim is None:
                part = part.unsqueeze(position)
        return part

    def place(self, parameter: Tensor) -> Tensor:
        """The parameter's part: a view."""
        return parameter[tuple(slice(*bounds) for bounds in self.box)]


@dataclass(frozen=True)
class Symbol:
    """A tensor of which only the shape, and where its parts come from, are known."""

    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]

    @classmethod
    def of(cls, disk: str, shape: Sequence[int]) -> Symbol:
        """The whole of a tensor on disk, of this name and shape."""
        box = tuple((0, size) for size in shape)
        disk_box = tuple((0, size, 1) for size in shape)
        return cls(tuple(shape), (Piece(disk, box, disk_box, tuple(range(len(box)))),))


class NotUnderstood(Exception):
    """The operations cannot be followed on shapes alone."""


class Misfit(Exception):
    """The tensors cannot be put together: some are missing, or of another shape."""


def follow(
    operations: Sequence[ConversionOps],
    inputs: Mapping[str, list[Symbol]],
    sources: Sequence[str],
    targets: Sequence[str],
    expected: tuple[int, ...] | None = None,
) -> dict[str, Symbol]:
    """What the operations of a converter make of the tensors collected for its source patterns.

    expected: the shape of the first target's parameter, which decides whether some checkpoints' tensors are turned.

    Returns: a symbol for each target pattern. Raises: `NotUnderstood`, `Misfit`.
    """
    state: dict[str, list[Symbol]] = dict(inputs)
    for operation in operations:
        kind = type(operation)
        turns_to_fit = kind is Transpose and operation.check_dims and expected is not None
        if turns_to_fit and len(state) == 1 and _single(state).shape == expected:
            state = {targets[0]: [_single(state)]} if len(targets) == 1 else state
            continue
        if getattr(operation, "num_shards_attribute", None) or (
            getattr(operation, "check_dims", False) and not turns_to_fit
        ):
            raise NotUnderstood(f"{kind.__name__} that depends on the model")
        if kind is MergeModulelist:
            state = {
                _merged(key, state, targets): [_stack(part, operation.dim)] for key, part in state.items()
            }
        elif kind is Concatenate and len(targets) == 1:
            parts = [symbol for key in sources for symbol in state.get(key, [])]
            state = {targets[0]: [_concatenate(parts, operation.dim)]}
        elif kind is Chunk and len(state) == 1:
            chunks = _chunk(_single(state), len(targets), operation.dim)
            state = {target: [chunk] for target, chunk in zip(targets, chunks, strict=True)}
        elif kind is Interleave and len(state) == 1 and not operation.inverse:
            # Its one output is named after the first target, whichever operation follows.
            state = {targets[0]: [_deinterleave(_single(state), operation.dim)]}
        elif kind is Transpose and len(state) == 1 and len(targets) == 1:
            state = {targets[0]: [_transpose(_single(state), operation.dim0, operation.dim1)]}
        else:
            raise NotUnderstood(kind.__name__)
    if any(len(symbols) != 1 for symbols in state.values()):
        raise NotUnderstood("more than one tensor for one parameter")
    return {key: symbols[0] for key, symbols in state.items()}


def _merged(key: str, state: Mapping[str, list[Symbol]], targets: Sequence[str]) -> str:
    # As transformers does it: the last operation of a chain names its output after the target.
    return targets[0] if len(state) == 1 and len(targets) == 1 else key


def _single(state: Mapping[str, list[Symbol]]) -> Symbol:
    (symbols,) = state.values()
    if len(symbols) != 1:
        raise NotUnderstood("more than one tensor for one parameter")
    return symbols[0]


def _stack(symbols: Sequence[Symbol], dim: int) -> Symbol:
    if dim != 0:
        raise NotUnderstood("stacked in the middle")
    if len({symbol.shape for symbol in symbols}) != 1:
        raise Misfit
    pieces = [
        replace(piece, box=((index, index + 1), *piece.box), dims=(None, *piece.dims))
        for index, symbol in enumerate(symbols)
        for piece in symbol.pieces
    ]
    return Symbol((len(symbols), *symbols[0].shape), tuple(pieces))


def _concatenate(symbols: Sequence[Symbol], dim: int) -> Symbol:
    if len({(*s.shape[:dim], *s.shape[dim:][1:]) for s in symbols}) != 1:
        raise Misfit
    pieces, offset = [], 0
    for symbol in symbols:
        for piece in symbol.pieces:
            start, stop = piece.box[dim]
            pieces.append(replace(piece, box=_with(piece.box, dim, (start + offset, stop + offset))))
        offset += symbol.shape[dim]
    return Symbol((*symbols[0].shape[:dim], offset, *symbols[0].shape[dim:][1:]), tuple(pieces))


def _chunk(symbol: Symbol, count: int, dim: int) -> list[Symbol]:
    if symbol.shape[dim] % count:
        raise NotUnderstood("chunks of several sizes")
    size = symbol.shape[dim] // count
    return [_narrow(symbol, dim, index * size, (index + 1) * size) for index in range(count)]


def _narrow(symbol: Symbol, dim: int, low: int, high: int) -> Symbol:
    pieces = []
    for piece in symbol.pieces:
        start, stop = piece.box[dim]
        first, last = max(start, low), min(stop, high)
        if first >= last:
            continue
        disk_box, disk_dim = piece.disk_box, piece.dims[dim]
        if disk_dim is not None:
            origin, _, step = disk_box[disk_dim]
            bounds = (origin + (first - start) * step, origin + (last - 1 - start) * step + 1, step)
            disk_box = _with_disk(disk_box, disk_dim, bounds)
        whole = piece.whole and (first, last) == (start, stop)
        box = _with(piece.box, dim, (first - low, last - low))
        pieces.append(replace(piece, box=box, disk_box=disk_box, whole=whole))
    return Symbol((*symbol.shape[:dim], high - low, *symbol.shape[dim:][1:]), tuple(pieces))


def _deinterleave(symbol: Symbol, dim: int) -> Symbol:
    """The even entries of a dimension, then the odd ones."""
    dim, pieces = dim % len(symbol.shape), []
    size = symbol.shape[dim]
    for piece in symbol.pieces:
        disk_dim = piece.dims[dim]
        if piece.box[dim] != (0, size) or disk_dim is None or size % 2:
            raise NotUnderstood("Interleave of several tensors")
        start, stop, step = piece.disk_box[disk_dim]
        for odd in (0, 1):
            box = _with(piece.box, dim, (odd * size // 2, (odd + 1) * size // 2))
            disk_box = _with_disk(piece.disk_box, disk_dim, (start + odd * step, stop, 2 * step))
            pieces.append(replace(piece, box=box, disk_box=disk_box, whole=False))
    return Symbol(symbol.shape, tuple(pieces))


def _transpose(symbol: Symbol, first: int, second: int) -> Symbol:
    order = list(range(len(symbol.shape)))
    order[first], order[second] = order[second], order[first]
    pieces = [
        replace(piece, box=tuple(piece.box[i] for i in order), dims=tuple(piece.dims[i] for i in order))
        for piece in symbol.pieces
    ]
    return Symbol(tuple(symbol.shape[i] for i in order), tuple(pieces))


def _with(box: Box, dim: int, bounds: tuple[int, int]) -> Box:
    dim %= len(box)
    return (*box[:dim], bounds, *box[dim + 1 :])


def _with_disk(box: DiskBox, dim: int, bounds: tuple[int, int, int]) -> DiskBox:
    return (*box[:dim], bounds, *box[dim + 1 :])
