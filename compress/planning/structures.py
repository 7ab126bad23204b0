"""The structure of a step: what its ``quantize``, ``prune`` and ``lowrank`` make together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from compress_kernels.layouts import BLOCK_TYPES, FLOAT_TYPES
from compress_kernels.value_types import TABLE_BITS

from compress.errors import UserError
from compress.recipe.grids import Quantize
from compress.recipe.registry import find
from compress.recipe.sections import Prune, Step
from compress.structures.base import SparsityPattern, Structure
from compress.structures.low_rank.factors import Storage
from compress.structures.sparse.patterns import NM, Blocks, Unstructured


def structure_of(step: Step, dtype: torch.dtype) -> Structure:
    """The structure that a step's ``quantize``, ``prune`` and ``lowrank`` make together."""
    if step.quantize is None and step.prune is None and step.lowrank is None:
        raise UserError("a step needs 'quantize', 'prune' or 'lowrank', which say what its weights become")
    alone = step.quantize is None and step.prune is None
    residual = None if alone else _rounded(step, dtype)
    return residual if step.lowrank is None and residual is not None else _low_rank(step, residual, dtype)


def _low_rank(step: Step, residual: Structure | None, dtype: torch.dtype) -> Structure:
    """Factors alone, or in a sum with kept columns or with a residual."""
    settings = step.lowrank
    assert settings is not None
    grid = None
    if settings.bits is not None:
        grid = find("structure", "integer")(
            settings.bits, settings.group_size, scales="mse", scale_dtype=dtype
        )
    factors: Any = find("structure", "factors")(
        settings.ratio,
        settings.rank,
        Storage(dtype, grid),
        inside=residual is not None or settings.columns is not None,
    )
    if settings.columns is not None and residual is not None:
        raise UserError("'lowrank.columns' does not go with 'quantize' or 'prune': choose one of them")
    if settings.columns is not None:
        factors = find("structure", "factors-and-columns")(factors, settings.columns)
    structure: Structure = (
        factors if residual is None else find("structure", "factors-and")(factors, residual)
    )
    return structure


def _rounded(step: Step, dtype: torch.dtype) -> Structure:
    """The structure of ``quantize`` and ``prune``."""
    grid = (
        None if step.quantize is None else _grid(step.quantize, dtype, packed=not _multiplied_as_bytes(step))
    )
    if step.prune is None:
        assert grid is not None
        return grid
    if step.quantize is not None and step.quantize.type != "int":
        raise UserError(f"'prune' does not go with 'quantize.type: {step.quantize.type}': choose 'type: int'")
    if step.quantize is not None and step.quantize.zero_point == "float":
        raise UserError("'prune' does not go with 'quantize.zero_point: float': zero may not be on the grid")
    pattern = _pattern(step.prune)
    structure: Structure = (
        find("structure", "masked")(pattern, dtype)
        if grid is None
        else find("structure", "masked-grid")(pattern, grid)
    )
    return structure


def _multiplied_as_bytes(step: Step) -> bool:
    """Whether servers multiply the weights as int8 with int8 inputs (W8A8), and want them stored as such."""
    weights, inputs = step.quantize, step.activations
    if weights is None or inputs is None or step.prune is not None or step.lowrank is not None:
        return False
    integers = weights.type == inputs.type == "int" and weights.bits == inputs.bits == 8
    by_row = weights.symmetric and weights.group_size in ("channel", "tensor")
    return integers and by_row and inputs.strategy != "group"


def _grid(settings: Quantize, dtype: torch.dtype, *, packed: bool) -> Structure:
    if settings.type in FLOAT_TYPES:
        floats: Structure = find("structure", "float")(
            settings.type, settings.group_size, settings.scales, scale_dtype=dtype
        )
        return floats
    if settings.type in BLOCK_TYPES:
        blocks: Structure = find("structure", "gguf")(settings.type, settings.fallback)
        return blocks
    if settings.type == "nf4":
        nf4: Structure = find("structure", "nf4")(settings.group_size, dtype)
        return nf4
    if settings.type in TABLE_BITS:
        table: Structure = find("structure", "table")(
            settings.group_size, settings.type, settings.bits, dtype
        )
        return table
    kind, extra = ("affine", {}) if settings.zero_point == "float" else ("integer", {"packed": packed})
    grid: Structure = find("structure", kind)(
        **settings.model_dump(exclude={"type", "fallback", "mix", "zero_point", "solver"}),
        **extra,
        scale_dtype=dtype,
    )
    return grid


def _pattern(settings: Prune) -> SparsityPattern:
    if settings.pattern is not None:
        n, m = (int(part) for part in settings.pattern.split(":"))
        return NM(n, m)
    assert settings.sparsity is not None
    if settings.block is not None:
        return Blocks(settings.sparsity, *settings.block)
    return Unstructured(settings.sparsity, "row" if settings.scope == "row" else "layer")


def with_sparsity(structure: Any, sparsity: float) -> Structure:
    """A pruned structure with another sparsity."""
    changed: Structure = replace(structure, pattern=replace(structure.pattern, sparsity=sparsity))
    return changed


def with_type(structure: Any, type: str) -> Structure:
    """A grid of a GGUF type with another one."""
    changed: Structure = replace(structure, type=type)
    return changed
