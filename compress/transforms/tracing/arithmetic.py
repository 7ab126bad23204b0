"""Rules for sums, products with numbers, powers and means: what becomes of the labels of dimensions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from .calls import Call, aligned, expanded, scaled, unknown
from .labels import Along, Label, Of, Row
from .spaces import Norm, Writer


def added(call: Call) -> Row:
    """Of a sum (``add``, ``sub``): a dimension's label where both terms have the same; a tensor of zeros adds none."""
    first, second = call.args[0], call.args[1]
    labels = call.labels
    if call.onto_zeros and isinstance(second, Tensor):
        return expanded(replace(call, args=(second,)))
    if isinstance(second, Tensor) and labels.is_zero(second) and isinstance(first, Tensor):
        return expanded(replace(call, args=(first,)))
    return tuple(_sum(call, first, second, dim) for dim in range(call.result.ndim))


def _sum(call: Call, first: Any, second: Any, dim: int) -> Label:
    (one, size), (two, other_size) = aligned(call, first, dim), aligned(call, second, dim)
    if isinstance(one, Of) and not isinstance(two, Along):
        return _shifted(call, one, first, second, two)
    if isinstance(two, Of) and not isinstance(one, Along):
        return _shifted(call, two, second, first, one)
    if isinstance(one, Along) and isinstance(two, Along):
        if one.norm or two.norm or one.squared or two.squared:
            reason = scaled(one if one.norm else two)
            one.space.refuse(reason)
            two.space.refuse(reason)
        one.space.unite(two.space)
        return one
    along, plain, width = (one, two, other_size) if isinstance(one, Along) else (two, one, size)
    if not isinstance(along, Along):
        return None
    return with_added(call, along, plain, width)


def with_added(call: Call, along: Along, added: Label, size: int) -> Label:
    """A vector of a space plus a parameter's vector, or a number for the token."""
    if isinstance(added, Of) and added.offset == 0 and not along.squared:
        if along.norm is not None:
            if along.norm.bias:
                call.labels.refuse_label(along, f"{added.parameter} shifts it a second time")
            return replace(along, norm=replace(along.norm, bias=added.parameter))
        start, stop = 0, size
        along.space.root.writers.add(Writer(added.parameter, added.dim, start, stop))
        return along
    if size == 1 and added is None and along.norm is None and not along.squared:
        along.space.keep_mean()
        return along
    if size == 1 and added is None and along.squared:
        call.labels.refuse_label(along, f"{call.labels.place} adds to its squares")
        return None
    call.labels.refuse_label(along, f"{call.labels.place} computes '{call.name}' of it and of something else")
    return None


def _shifted(call: Call, axis: Of, tensor: Any, other: Any, label: Label) -> Label:
    """A parameter's vector plus a number."""
    if not isinstance(other, Tensor) and isinstance(tensor, Tensor) and tensor.ndim == 1:
        number = float(other) * float(call.kwargs.get("alpha", 1))
        if call.name == "add":
            return replace(axis, offset=axis.offset + number)
        if call.name == "rsub":
            call.refuse(tensor)
            return None
        return replace(axis, offset=axis.offset - number)
    call.refuse(tensor)
    if isinstance(label, Of):
        call.refuse(other)
    return None


def multiplied(call: Call) -> Row:
    """Of a product: a space times a vector of a parameter is scaled by it, times itself squared; most other products refuse."""
    first, second = call.args[0], call.args[1]
    return tuple(_product(call, first, second, dim) for dim in range(call.result.ndim))


def _product(call: Call, first: Any, second: Any, dim: int) -> Label:
    (one, size), (two, other_size) = aligned(call, first, dim), aligned(call, second, dim)
    if isinstance(one, Along) and isinstance(two, Along):
        if first is second and one.norm is None and not one.squared:
            return replace(one, squared=True)
        for label in (one, two):
            call.labels.refuse_label(label, f"{call.labels.place} multiplies its features")
        return None
    if call.name == "div" and not isinstance(one, Along):
        call.refuse(second)
        return None
    along, plain, width = (one, two, other_size) if isinstance(one, Along) else (two, one, size)
    if isinstance(along, Along):
        if isinstance(plain, Of) and along.norm is None and not along.squared and call.name == "mul":
            vector = first if isinstance(one, Of) else second
            if vector.ndim == 1:
                return replace(along, norm=Norm(plain.parameter, plain.offset))
            call.refuse(vector)
        elif plain is None and width == 1:
            return along
        call.labels.refuse_label(
            along, f"{call.labels.place} computes '{call.name}' of it and of something else"
        )
        return None
    if one is not None or two is not None:
        call.refuse(first, second)
    return None


def raised(call: Call) -> Row:
    """Of a power: a square marks its labels as squared, any other power refuses the rotation."""
    exponent = call.argument(1, "exponent", 2)
    row = call.labels.of(call.args[0])
    if exponent != 2 or any(isinstance(label, Of) for label in row):
        return unknown(call)
    return tuple(_square(call, label) for label in row)


def _square(call: Call, label: Label) -> Label:
    if not isinstance(label, Along):
        return None
    if label.norm is not None or label.squared:
        call.labels.refuse_label(label, scaled(label))
    return replace(label, squared=True)


def reduced(call: Call) -> Row:
    """Of a mean, a sum, a variance or a 2-norm: the reduced dimensions' labels go; one that is scaled already refuses."""
    source = call.args[0]
    row = call.labels.of(source)
    position = 2 if call.name == "linalg_vector_norm" else 1
    if call.name == "linalg_vector_norm" and call.argument(1, "ord", 2) != 2:
        return unknown(call)
    dims = call.argument(position, "dim")
    if dims is None or dims == []:
        return unknown(call)
    gone = {int(dim) % len(row) for dim in ([dims] if isinstance(dims, int) else dims)}
    keeps = call.result.ndim == len(row)
    result: list[Label] = []
    for dim, label in enumerate(row):
        if dim not in gone:
            result.append(_carried(call, label))
            continue
        _reduced(call, label)
        if keeps:
            result.append(None)
    return tuple(result)


def _carried(call: Call, label: Label) -> Label:
    """What becomes of a dimension that a sum or a mean does not run over."""
    if isinstance(label, Along) and (call.name in ("var", "std", "linalg_vector_norm") or label.squared):
        call.labels.refuse_label(label, f"{call.labels.place} computes '{call.name}' over others")
        return None
    if isinstance(label, Of):
        call.refuse(call.args[0])
        return None
    return label


def _reduced(call: Call, label: Label) -> None:
    if isinstance(label, Of):
        call.refuse(call.args[0])
    if not isinstance(label, Along):
        return
    if label.norm is not None:
        call.labels.refuse_label(label, scaled(label))
    elif call.name != "linalg_vector_norm" and not label.squared:
        label.space.keep_mean()
