"""What the plain ``fp8`` configuration and ModelOpt's checkpoints have in common: small floats, one scheme for the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from compress_kernels.activations import ActivationScheme
from compress_kernels.layouts import Layout, PackedFloat, ServedFloat, TensorSpec

from compress.structures.base import CompressedWeight, Structure
from compress.structures.grids.floats import FloatGrid

from .base import Planned, TensorWriter, load_packed, save_packed, stands_alone, tensor_name
from .recode import recoded

_KINDS = {
    "conv1d": "is a transposed Conv1D",
    "embedding": "is an embedding",
    "head": "is the head",
    "expert": "is an expert, which servers stack by names of their own",
    "vision": "reads images",
}

BLOCK_INPUTS = ActivationScheme(8, "float", strategy="group", group_size=128)
"""The inputs of weights in blocks of 128 x 128: E4M3 by token in groups of 128."""


def place_objection(weight: Planned, form: str) -> str | None:
    """Why a form does not hold a weight because of where it is, in words."""
    view = weight.view
    if view.kind != "linear":
        return f"{_KINDS[view.kind]}, where {form} holds linear layers of the decoder blocks alone: add it to 'ignore'"
    if view.block is None:
        return f"lies outside the decoder blocks, where {form} holds nothing: add it to 'ignore'"
    if not stands_alone(view):
        return f"is a part of a fused tensor on disk, for which {form} has no name"
    if not isinstance(weight.layout, PackedFloat):
        return f"is stored as {weight.layout.name}, which {form} does not have: it holds small floats"
    return None


def several_schemes(weights: Sequence[Planned], form: str) -> str | None:
    """The objection to weights of more than one scheme."""
    if len({(weight.layout, weight.activations) for weight in weights}) > 1:
        return f"several schemes, of which {form} has one for the whole model"
    return None


def inputs_label(scheme: ActivationScheme | None) -> str:
    """How inputs are rounded, in a few words."""
    return "inputs as they are" if scheme is None else f"{scheme.label} inputs"


def restricted(structure: Structure) -> Structure:
    """A grid of FP8 with scales in fp32; others as they are."""
    if isinstance(structure, FloatGrid) and structure.type == "fp8":
        return replace(structure, scale_dtype=torch.float32)
    return structure


def stored(weight: Planned, form: str) -> Layout:
    """The layout on disk."""
    assert isinstance(weight.layout, PackedFloat)
    return ServedFloat(form, weight.layout.type, weight.layout.group_size)


def specs(weight: Planned, layout: Layout) -> dict[str, TensorSpec]:
    """Full name → spec of the tensors of a weight in ``layout``."""
    return {tensor_name(weight.view, s): spec for s, spec in layout.specs(weight.view.shape).items()}


def save(weight: Planned, packed: CompressedWeight, layout: Layout, writer: TensorWriter) -> CompressedWeight:
    """Write a weight in ``layout``; returns it as it is on disk."""
    found = recoded(weight.view.name, packed, layout)
    save_packed(weight, found, writer, {})
    return found


def load(weight: Planned, layout: Layout, writer: TensorWriter) -> CompressedWeight:
    """Read back what :func:`save` wrote."""
    return load_packed(weight, writer, {}, layout)
