"""What becomes of the labels of dimensions when a tensor is given another shape."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from .labels import Along, Label, Labels, Row


def carried_by_view(
    labels: Labels, source: Tensor, shape: Sequence[int], refuse: Callable[[Tensor], None]
) -> Row:
    """The labels of ``source`` seen in another ``shape``.

    A dimension may be cut in blocks, whose features are then the last new dimension, and blocks may be joined again. Other
    changes of a labelled dimension refuse it.
    """
    row = labels.of(source)
    result: list[Label] = [None] * len(shape)
    for before, after in _groups(tuple(source.shape), tuple(shape)):
        labelled = [dim for dim in before if row[dim] is not None]
        if not labelled:
            continue
        last = before[-1]
        if labelled != [last] or not after:
            refuse(source)
            continue
        label = row[last]
        size = shape[after[-1]]
        if len(before) == 1 and len(after) == 1:
            result[after[0]] = label
        elif not isinstance(label, Along) or label.norm is not None or label.squared:
            refuse(source)
        elif len(before) == 1:
            label.space.split_into_blocks(size)
            result[after[-1]] = label
        elif len(after) == 1 and source.shape[last] % label.space.root.block == 0:
            result[after[0]] = label
        else:
            refuse(source)
    return tuple(result)


def _groups(before: Sequence[int], after: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """The smallest runs of dimensions of both shapes that hold the same number of entries; dimensions of one entry are left
    out."""
    old = [dim for dim, size in enumerate(before) if size != 1]
    new = [dim for dim, size in enumerate(after) if size != 1]
    while old or new:
        first, second = [old.pop(0)] if old else [], [new.pop(0)] if new else []
        count = before[first[0]] if first else 1
        other = after[second[0]] if second else 1
        while count != other:
            if count < other:
                first.append(old.pop(0))
                count *= before[first[-1]]
            else:
                second.append(new.pop(0))
                other *= after[second[-1]]
        yield first, second
