"""Rules for shapes, parts and joins: what becomes of the labels of dimensions that are moved, cut or put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from .arithmetic import added
from .calls import Call, aligned, labelled, unknown
from .labels import Along, Label, Of, Row
from .shapes import carried_by_view


def kept(call: Call) -> Row:
    """Of an operator that leaves every element where it is (a cast, a copy): the labels of its input."""
    return call.labels.of(call.args[0])


def viewed(call: Call) -> Row:
    """Of a reshape: labels of the dimensions that it leaves whole, splits or joins."""
    source = call.args[0]
    return carried_by_view(call.labels, source, tuple(call.result.shape), call.refuse)


def permuted(call: Call) -> Row:
    """Of a transpose or a permutation: the labels in the new order."""
    row = call.labels.of(call.args[0])
    if call.name == "t":
        return tuple(reversed(row))
    if call.name == "transpose":
        order = list(range(len(row)))
        first, second = (int(dim) % len(row) for dim in call.args[1:3])
        order[first], order[second] = second, first
        return tuple(row[dim] for dim in order)
    return tuple(row[int(dim) % len(row)] for dim in call.args[1])


def unsqueezed(call: Call) -> Row:
    """Of a new dimension of one: it has no label."""
    row = list(call.labels.of(call.args[0]))
    row.insert(int(call.args[1]) % (len(row) + 1), None)
    return tuple(row)


def squeezed(call: Call) -> Row:
    """Of dimensions of one that go: so do their labels."""
    source = call.args[0]
    row, dims = call.labels.of(source), call.argument(1, "dim")
    chosen = range(len(row)) if dims is None else [dims] if isinstance(dims, int) else dims
    gone = {int(dim) % len(row) for dim in chosen if source.shape[int(dim)] == 1}
    return tuple(label for dim, label in enumerate(row) if dim not in gone)


def concatenated(call: Call) -> Row:
    """Of tensors that are joined or stacked: a label where all agree; along the joint, parts of one whole in order."""
    tensors = [tensor for tensor in call.args[0] if tensor.numel()]
    dim = int(call.argument(1, "dim", 0)) % call.result.ndim
    rows = [call.labels.of(tensor) for tensor in tensors if not call.labels.is_zero(tensor)]
    if call.name == "stack":
        rows = [(*row[:dim], None, *row[dim:]) for row in rows]
    complete = len(rows) == len(tensors)
    return tuple(
        _joined(call, [row[place] for row in rows], place == dim and call.name == "cat", complete)
        for place in range(call.result.ndim)
    )


def _joined(call: Call, several: Sequence[Label], along_it: bool, complete: bool) -> Label:
    """The label of a dimension of several tensors put one behind the other."""
    if all(label is None for label in several):
        return None
    first = several[0]
    if not along_it and isinstance(first, Along):
        alike = all(
            isinstance(label, Along) and label.norm == first.norm and label.squared == first.squared
            for label in several
        )
        if alike:
            for label in several[1:]:
                assert isinstance(label, Along)
                first.space.unite(label.space)
            return first
    call.refuse(call.args[0])
    return None


def indexed(call: Call) -> Row:
    """Of indexing by tensors: dimensions that are picked from lose their label, a rotated one refuses."""
    source, places = call.args[:2]
    row = call.labels.of(source)
    taken = [dim for dim, index in enumerate(places) if index is not None]
    shapes = [index.ndim for index in places if index is not None and index.dtype.is_floating_point is False]
    masks = any(str(index.dtype) == "torch.bool" for index in places if index is not None)
    if not taken or masks or taken != list(range(taken[0], taken[-1] + 1)):
        return unknown(call)
    for dim in taken:
        _taken(call, row[dim], source)
    return (*row[: taken[0]], *(None,) * max(shapes), *row[taken[-1] + 1 :])


def _taken(call: Call, label: Label, source: Tensor) -> None:
    """Some entries of a dimension are taken."""
    if isinstance(label, Along):
        call.labels.refuse_label(label, f"{call.labels.place} takes some of its features")
    elif isinstance(label, Of):
        call.labels.cut(label)


def index_selected(call: Call) -> Row:
    """Of a choice of indices along one dimension: it loses its label, a rotated one refuses."""
    source, dim = call.args[0], int(call.args[1])
    row = list(call.labels.of(source))
    dim %= len(row)
    _taken(call, row[dim], source)
    row[dim] = None
    return tuple(row)


def selected(call: Call) -> Row:
    """Of one index of a dimension: the dimension goes."""
    row = list(index_selected(call))
    del row[int(call.args[1]) % len(row)]
    return tuple(row)


def sliced(call: Call) -> Row:
    """Of a slice: the dimension's label becomes that of the part."""
    source = call.args[0]
    dim = int(call.argument(1, "dim", 0)) % source.ndim
    row = list(call.labels.of(source))
    if source.shape[dim] == call.result.shape[dim]:
        return tuple(row)
    start = int(call.argument(2, "start", 0) or 0)
    start = start + source.shape[dim] if start < 0 else start
    step = int(call.argument(4, "step", 1))
    row[dim] = _part(call, row[dim], source, start, call.result.shape[dim], step)
    return tuple(row)


def _part(call: Call, label: Label, source: Tensor, start: int, size: int, step: int = 1) -> Label:
    if isinstance(label, Along) and step == 1 and source.shape[-1] == label.space.root.size:
        return call.labels.part(label, start, start + size)
    _taken(call, label, source)
    return None


def split(call: Call, index: int) -> Row:
    """Of the part ``index`` of a split: the dimension's label becomes that of the part."""
    source, sizes = call.args[:2]
    dim = int(call.argument(2, "dim", 0)) % source.ndim
    row = list(call.labels.of(source))
    if call.result.shape[dim] == source.shape[dim]:
        return tuple(row)
    start = index * int(sizes) if isinstance(sizes, int) else sum(int(size) for size in sizes[:index])
    row[dim] = _part(call, row[dim], source, start, call.result.shape[dim])
    return tuple(row)


def masked(call: Call) -> Row:
    """Entries are replaced by zero where a mask, which is the same for all features, says so."""
    source, mask, value = call.args[:3]
    row = call.labels.of(source)
    for dim, label in enumerate(row):
        place = dim - (source.ndim - mask.ndim)
        if label is not None and (
            (place >= 0 and mask.shape[place] != 1) or isinstance(value, Tensor) or value
        ):
            return unknown(call)
    return row


def chosen(call: Call) -> Row:
    """Of ``where``: a label that both branches have, or one beside zeros; a mask along a labelled dimension refuses."""
    mask, first, second = call.args[:3]
    call = replace(call, onto_zeros=isinstance(first, Tensor) and call.labels.is_zero(first))
    for dim in range(call.result.ndim):
        (one, _), (two, _) = aligned(call, first, dim), aligned(call, second, dim)
        place = dim - (call.result.ndim - mask.ndim)
        if (one is not None or two is not None) and place >= 0 and mask.shape[place] != 1:
            return unknown(call)
    zero = [one for one in (first, second) if isinstance(one, Tensor) and call.labels.is_zero(one)]
    if zero or all(isinstance(one, Tensor) and labelled(call.labels, one) for one in (first, second)):
        return added(replace(call, args=(first, second)))
    return unknown(call)


def index_added(call: Call) -> Row:
    """Of rows that are added at indices: the labels of both, if the indexed dimension has none."""
    target, dim, _, source = call.args[:4]
    dim = int(dim) % target.ndim
    if call.labels.of(source)[dim] is not None or call.labels.of(target)[dim] is not None:
        return unknown(call)
    return _accumulated(call, target, source)


def scatter_added(call: Call) -> Row:
    """Of elements that are added at indices: the labels of both, if the indexed dimension has none."""
    target, dim, _, source = call.args[:4]
    dim = int(dim) % target.ndim
    if call.labels.of(source)[dim] is not None or call.labels.of(target)[dim] is not None:
        return unknown(call)
    return _accumulated(call, target, source)


def _accumulated(call: Call, target: Tensor, source: Tensor) -> Row:
    row = call.labels.of(source)
    if call.onto_zeros:
        return row
    return tuple(_joined(call, [a, b], False, True) for a, b in zip(call.labels.of(target), row, strict=True))


def gathered(call: Call) -> Row:
    """Of elements that are picked along a dimension without a label: the other labels, where those dimensions are whole."""
    source, dim = call.args[0], int(call.args[1])
    row = list(call.labels.of(source))
    dim %= len(row)
    if row[dim] is not None or any(
        label is not None and source.shape[place] != call.result.shape[place]
        for place, label in enumerate(row)
        if place != dim
    ):
        return unknown(call)
    return tuple(row)
