"""What GPTQ's and AWQ's checkpoints have in common: linear layers of the decoder blocks in one scheme, all else dense."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import torch
from compress_kernels.layouts import AWQInteger, GPTQInteger, Layout, PackedInteger
from compress_kernels.layouts.integer import Group

from compress.structures.base import CompressedWeight, Structure
from compress.structures.grids.integer import IntegerGrid

from .base import Facts, Planned, TensorWriter, rounded_inputs, save_packed, stands_alone
from .left_dense import left_dense
from .recode import recoded

GROUPS = (32, 64, 128)
"""Group sizes that every reader has kernels for, besides one group for a whole row."""

_NUMBER = re.compile(r"\.\d+\.")
_KINDS = {
    "conv1d": "is a transposed Conv1D",
    "embedding": "is an embedding",
    "head": "is the head",
    "expert": "is an expert, which transformers keeps in one parameter with the others",
    "vision": "reads images",
}


def scheme_objection(
    weights: Sequence[Planned], facts: Facts, form: str, bits: tuple[int, ...]
) -> str | None:
    """Why a form cannot hold these weights, in words.

    Args:
        weights: what is compressed.
        facts: what is known of the model.
        form: its name in sentences.
        bits: the widths that it packs.
    """
    for weight in weights:
        if reason := _objection(weight, form, bits):
            return f"{weight.view.name} {reason}"
    if len({weight.layout for weight in weights}) > 1:
        return f"several schemes, of which {form} has one for the whole model"
    return rounded_inputs(weights, facts, form)


def _objection(weight: Planned, form: str, bits: tuple[int, ...]) -> str | None:
    view, layout = weight.view, weight.layout
    if view.kind != "linear":
        return f"{_KINDS[view.kind]}, where {form} holds linear layers of the decoder blocks alone: add it to 'ignore'"
    if view.block is None:
        return f"lies outside the decoder blocks, where {form} holds nothing: add it to 'ignore'"
    if not stands_alone(view):
        return f"is a part of a fused tensor on disk, for which {form} has no name"
    if not isinstance(layout, PackedInteger):
        return f"is stored as {layout.name}, which {form} does not have: it holds integers with whole zero points"
    if layout.bits not in bits:
        return f"has {layout.bits} bits, where {form} packs {_listed(bits)}"
    if isinstance(layout.group_size, int) and layout.group_size not in GROUPS:
        return f"has groups of {layout.group_size}, where readers of {form} take 32, 64, 128 or 'channel'"
    if any(size % 32 for size in view.shape):
        return f"{list(view.shape)} is no multiple of 32, which the kernels that read {form} ask for"
    return None


def _listed(bits: tuple[int, ...]) -> str:
    return f"{', '.join(map(str, bits[:-1]))} and {bits[-1]}" if len(bits) > 1 else f"{bits[0]} alone"


def group_of(layout: Layout) -> int:
    """The group size in these programs' words: −1 is one group for a whole row."""
    assert isinstance(layout, GPTQInteger | AWQInteger)
    return layout.group_size if isinstance(layout.group_size, int) else -1


def by_row(layout: PackedInteger) -> Group:
    """The group size on disk: the scale of a whole tensor is repeated for every row."""
    return layout.group_size if isinstance(layout.group_size, int) else "channel"


def restricted(structure: Structure, *, lowest_zero: int) -> Structure:
    """An integer grid whose scales are fp16 and whose zero points are at least ``lowest_zero``; others as they are."""
    if type(structure) is not IntegerGrid:
        return structure
    lowest = 0 if structure.symmetric else lowest_zero
    return replace(structure, scale_dtype=torch.float16, lowest_zero=lowest)


def save(weight: Planned, packed: CompressedWeight, stored: Layout, writer: TensorWriter) -> CompressedWeight:
    """Write a weight in another layout; returns it as it is on disk."""
    found = recoded(weight.view.name, packed, stored)
    save_packed(weight, found, writer, {})
    return found


def dense_in_blocks(weights: Sequence[Planned], facts: Facts) -> list[str]:
    """Linear layers of the decoder blocks that stay dense, by both their names."""
    inside = tuple({_NUMBER.split(name)[0] + "." for name in names_of(weights)})
    return [name for name in left_dense(weights, facts) if name.startswith(inside)]


def names_of(weights: Sequence[Planned]) -> list[str]:
    """The weights under the model's name and the checkpoint's; loaders differ in which they know."""
    return list(dict.fromkeys(name for w in weights for name in (w.view.module, w.view.name)))
