"""Rules for products over dimensions, look-ups, normalisations and attention: readers and writers of spaces."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from .arithmetic import reduced, with_added
from .calls import Call, aligned, scaled, unknown
from .labels import Along, Label, Of, Row
from .spaces import Norm, Reader


def matmul(call: Call) -> Row:
    """Of a matrix product, with or without a bias: what is contracted meets a linear layer's weight or refuses."""
    first, second = call.args[-2:] if call.name in ("addmm", "baddbmm") else call.args[:2]
    product = _contracted(call, first, second)
    if call.name not in ("addmm", "baddbmm"):
        return product
    bias = call.args[0]
    if call.kwargs.get("beta", 1) != 1 or call.kwargs.get("alpha", 1) != 1:
        return unknown(call)
    ends = zip(product, (aligned(call, bias, dim) for dim in range(call.result.ndim)), strict=True)
    return tuple(_with_bias(call, label, bias, *given) for label, given in ends)


def _with_bias(call: Call, label: Label, bias: Tensor, given: Label, size: int) -> Label:
    if isinstance(label, Along):
        return with_added(call, label, given, size)
    if isinstance(given, Of):
        call.refuse(bias)
    return label


def _contracted(call: Call, first: Tensor, second: Tensor) -> Row:
    labels = call.labels
    one, two = labels.of(first), labels.of(second)
    left, right = one[-1], two[-2]
    batch = tuple(_batch(call, a, b) for a, b in zip(one[:-2], two[:-2], strict=True))
    _contract(call, left, right, first, second)
    row = one[-2], two[-1]
    return (*batch, *(_written(call, label) for label in row))


def _written(call: Call, label: Label) -> Label:
    """The label of a product's dimension that was not summed over."""
    if isinstance(label, Of):
        return call.labels.written(label)
    if isinstance(label, Along) and label.squared:
        call.labels.refuse_label(label, f"{call.labels.place} multiplies its squares")
        return None
    return label


def _batch(call: Call, *several: Label) -> Label:
    for label in several:
        if isinstance(label, Along):
            call.labels.refuse_label(label, f"{call.labels.place} takes its features for a batch")
    return None


def _contract(call: Call, left: Label, right: Label, first: Tensor, second: Tensor) -> None:
    labels = call.labels
    for label, other, tensor in ((left, right, first), (right, left, second)):
        if isinstance(label, Along) and isinstance(other, Of):
            if label.squared or other.offset:
                labels.refuse_label(label, f"{labels.place} multiplies its squares")
            label.space.root.readers.add(Reader(other.parameter, other.dim, label.norm))
            return
        if isinstance(label, Of) and not isinstance(other, Along):
            labels.read_plainly(label)
            if label.offset:
                call.refuse(tensor)
    for label in (left, right):
        if isinstance(label, Along):
            labels.refuse_label(label, f"{labels.place} multiplies it by what is no parameter")


def looked_up(call: Call) -> Row:
    """Of rows of an embedding: the dimensions of the ids without labels, then the weight's."""
    weight, index = call.args[:2]
    row = call.labels.of(weight)
    label = row[1]
    return (*(None,) * index.ndim, call.labels.written(label) if isinstance(label, Of) else label)


def _layer_norm(call: Call) -> Row:
    source, shape = call.args[:2]
    row = call.labels.of(source)
    label = row[-1]
    weight, bias = call.argument(2, "weight"), call.argument(3, "bias")
    if not isinstance(label, Along):
        for vector in (weight, bias):
            if isinstance(vector, Tensor):
                call.refuse(vector)
        return row
    if label.norm is not None:
        call.labels.refuse_label(label, scaled(label))
    if len(shape) != 1 or label.squared:
        return unknown(call)
    if call.name == "native_layer_norm":
        label.space.keep_mean()
    return (*row[:-1], replace(label, norm=_norm_of(call, weight, bias)))


def _norm_of(call: Call, weight: Any, bias: Any) -> Norm | None:
    names = []
    for vector in (weight, bias):
        label = call.labels.of(vector)[0] if isinstance(vector, Tensor) else None
        names.append(label if isinstance(label, Of) else None)
    scale, shift = names
    if scale is None and shift is None:
        return None
    return Norm(
        scale.parameter if scale else "", scale.offset if scale else 0.0, shift.parameter if shift else ""
    )


def _fused_rms_norm(call: Call) -> Row:
    return _layer_norm(replace(call, args=(*call.args[:3], None)))


def normalised(call: Call, index: int) -> Row:
    """Of a fused norm's output (``index`` 0): scaled along the hidden dimension; its statistics have no labels."""
    rule = _layer_norm if call.name == "native_layer_norm" else _fused_rms_norm
    return rule(call) if index == 0 else (None,) * call.result.ndim


def moments(call: Call, index: int) -> Row:
    """Of a variance with its mean: as a reduction."""
    return reduced(replace(call, name="var"))


def _attention(call: Call) -> Row:
    query, key, value = call.args[:3]
    call.refuse(query, key)
    row = call.labels.of(value)
    return (*(None,) * (call.result.ndim - 1), row[-1])


def attended(call: Call, index: int) -> Row:
    """Of fused attention (output 0): the value's last label; queries and keys refuse a rotation."""
    return _attention(call) if index == 0 else (None,) * call.result.ndim
